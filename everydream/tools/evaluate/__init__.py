"""How good pictures are, in numbers: against real ones, against their prompts, against what was trained on.

pictures   folders of pictures, or checkpoints that draw some first (as `grid` does) -> pictures with prompts
measures   rows of features -> FID, KID, CLIP score, each with what it can be trusted for
copying    each picture's nearest training image, and how literally it repeats it
judge      pictures -> all measures; show: numbers -> table, JSON
"""
