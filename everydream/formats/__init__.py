"""Bytes <-> named tensors. Nothing here builds a module, and nothing here executes what a file says.

files     read and write .safetensors, .ckpt and the like by content and ending
pickles   the restricted reader for pickled checkpoints
atomic    whole files or none, and the free space looked at first
"""
