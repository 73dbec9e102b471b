"""Ground truth from the web, into the folder contract of `datasets/README.md`.

`names` is the part of it that exists so far: captions as file names that every file system takes.
"""
