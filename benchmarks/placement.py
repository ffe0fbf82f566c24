"""Where a prediction lies against the truth, in each ninth of the slices, by phase correlation.

python benchmarks/placement.py prediction=RUN/predictions/test_0.tif truth=LABELS [every=4] [out=FILE.json]
"""

import sys
from pathlib import Path

from omegaconf import OmegaConf

from mitoseg.evaluation.figures import placement_offsets
from mitoseg.storage import write_json
from mitoseg.volumes import map_labels, open_volume


def main() -> None:
    """Print a line for each ninth, and the largest offset along an axis."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    options = OmegaConf.merge({"prediction": "???", "truth": "???", "every": 4, "out": None}, OmegaConf.create(given))
    truth = map_labels(open_volume(options.truth))
    offsets = placement_offsets(open_volume(options.prediction), truth, every=int(options.every))
    for name, (y, x) in offsets.items():
        print(f"{name:20} {y:+.2f} px down, {x:+.2f} px right")
    largest = max(abs(value) for pair in offsets.values() for value in pair)
    print(f"largest offset along an axis: {largest:.2f} px")
    if options.out:
        write_json(Path(options.out), {"offsets": offsets, "largest": largest})


if __name__ == "__main__":
    main()
