"""What became of a run, told from its folder, while it goes on and after it has ended.

history   the folder's files as values
charts    curves, as SVG for pages and PNG for people
verdict   which checkpoint to take, why, what went wrong, what to change in the data
page      all of it as one HTML file
"""
