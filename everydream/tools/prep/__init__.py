"""From photos to training images: crops of one size, around faces where a person is trained.

    list -> decode -> faces -> frames (which part) -> pixels -> files, contact sheet, report

`frames` decides and `pixels` does; `outbox` knows which files in the output folder are ours. `work` is the table of
contents.
"""
