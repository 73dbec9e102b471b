"""Settings of other trainers as ours: one file is read, one YAML and one report come out.

    reading     the file -> whose it is, and its keys (told by content, never by name)
    joepenna, everydream2, kohya*    its keys -> a Draft: our settings, and what is to be told of the rest
    text        a Draft -> the YAML and the report

Nothing is dropped in silence: a key is taken over, or told with the reason, or told as unknown.
"""
