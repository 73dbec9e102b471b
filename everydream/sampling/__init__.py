"""Prompts -> images, on the reference library's schedulers and through the family's own verbs."""
