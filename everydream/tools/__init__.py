"""Commands around training: `prep` makes training images of photos, `captioning` reads and edits captions, and others.

A user's images are read and never touched. What is written lies in a folder of its own, or, for captions and only where
that is what the user asked for, in text sidecars beside the images. Captions are read by the data room's rule, pictures
are decoded by `pictures`; a bad file is rejected with its reason and counted, and the rest goes on.
"""
