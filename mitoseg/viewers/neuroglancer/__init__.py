"""Volumes in a browser: a local neuroglancer that reads what is looked at, when it is looked at."""
