"""What need not be computed again: posterior moments of images, and what frozen text encoders make of captions.

keys      what an entry is called: made from all that its numbers depend on, and from nothing else
contents  a hash of each image file's bytes, remembered while the file stays as it is
shards    a file of entries, written once, whole or not there, each entry with its checksum
store     a folder of shards: what is in it, reading, room
needed    which crops and captions a run visits
filling   what is missing is encoded and written
known     what the loader asks while training
"""
