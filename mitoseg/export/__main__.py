"""``python -m mitoseg.export``: the same as ``mitoseg export``."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "export")
    runpy.run_module("mitoseg", run_name="__main__")
