"""Model files: other formats, without what trainers leave in them, with adapters baked in, and pictures of them."""
