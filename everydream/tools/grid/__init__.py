"""Pictures over what varies: checkpoints, prompts, seeds, guidance, samplers, steps, adapters, averages, sizes.

values    the words behind an axis's name -> values: lists, ranges
axes      what an axis is called, costs and changes; axes and settings -> cells, the costly axis outermost
weights   puts in place what a cell is drawn by; a checkpoint is loaded once
drawing   cells -> PNGs with their settings, those that are there already left alone
sheet     PNGs -> one labelled picture; page: -> a page with a slider
"""
