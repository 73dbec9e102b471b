"""Pure tensor functions of diffusion training: no model, no device, no I/O.

schedule   alpha-bar, SNR                 timesteps  which t an image is trained at
noise      epsilon, offset noise          objective  what the network predicts: epsilon or v
weighting  min-SNR                        loss       one value per image
"""
