"""``python -m mitoseg.viewers.neuroglancer RUN``: the same as ``mitoseg view RUN``."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "view")
    runpy.run_module("mitoseg", run_name="__main__")
