"""`everydream studio`: the page of the inspection, served on this machine, with captions to edit and the live run.

    library   the images as they are now; looked at again one by one after an edit
    sidecars  which file says an image's caption, and what would be written there
    edits     changes of many captions: planned, shown, done
    journal   files before and after each change: undo and redo
    page      the inspection's page from the library's facts
    runs      what a run has come to, in parts that a page replaces
    guard     who may ask: this machine's browser with the token, and nobody else
    app       the addresses, and the server

A caption is written to a text file beside its image, never to the image; images that are off are a list in the project.
"""
