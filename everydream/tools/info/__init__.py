"""What a file of weights, a model's folder or a drawn picture is, and what it says of how it was made."""
