"""What can be seen of a model while and after it trains.

grids    a labelled picture of many samples
"""
