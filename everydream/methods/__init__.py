"""The seam for methods: which parameters train, at which learning rate.

full    UNet and text encoder themselves
"""
