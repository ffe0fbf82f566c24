"""``python -m mitoseg``, and the file that further ranks of a run are started with."""

import sys
from pathlib import Path

if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if sys.path and Path(sys.path[0]).resolve() == here:  # run as a file: our folders would hide other packages
        sys.path[0] = str(here.parent)
    from mitoseg.cli.launch import main

    sys.exit(main())
