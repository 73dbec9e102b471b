"""A picture as you would see it: upright, 8-bit sRGB, and in plain words where it is none.

Shared by the trainer and the scrapers, and knows neither. `sniff` names content by its first bytes, `decode` opens
and decodes, `colour` does depth, profiles and transparency.
"""
