"""Captions of a folder: read, counted, edited, moved between names and sidecars, and written by a model.

    list -> read by the trainer's rule -> plan what changes -> show it -> write it

What is planned is shown before it is done. Only text sidecars are ever written beside the user's images; whatever would
need another file to change (a name, a YAML) is refused before anything is touched, or made in a new folder.
"""
