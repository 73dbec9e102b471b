"""What can be seen of a model while and after it trains.

grids         a labelled picture of many samples
heldout       which images show what is kept of the base model; never trained on
preservation  its loss on them, beside the base's
copying       how near pictures are to those that were trained on
"""
