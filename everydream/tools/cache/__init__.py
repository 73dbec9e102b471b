"""`everydream cache`: fill, verify, size, gc."""
