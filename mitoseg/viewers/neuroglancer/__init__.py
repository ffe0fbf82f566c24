"""Volumes in a browser: a local neuroglancer that reads what is looked at, when it is looked at.

levels.py     a volume, and coarser ones where its file has them -> boxes at any halving
surfaces.py   instances -> their surfaces, one at a time
served.py     those two -> what the library's server hands to the browser
scene.py      what is shown -> layers, colours, position
serving.py    the server, its port and its link

Only the last three need the library.
"""
