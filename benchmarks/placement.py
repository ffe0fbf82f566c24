"""Where a prediction lies against the truth, in each ninth of the slices, by phase correlation.

python benchmarks/placement.py prediction=RUN/predictions/test_0.tif truth=LABELS [every=4] [out=FILE.json]
"""

import itertools
import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from skimage.registration import phase_cross_correlation

from mitoseg.evaluation import decide
from mitoseg.geometry import Box, slabs
from mitoseg.storage import write_json
from mitoseg.volumes import Volume, map_labels, open_volume

PLACES = ("first", "middle", "last")
"""Thirds of an axis, in order."""


def placement_offsets(prediction: Volume, truth: Volume, every: int = 1) -> dict[str, tuple[float, float]]:
    """How far the predicted mask lies from the true one in each ninth of every n-th slice.

    Both masks are mean-free and the correlation is not whitened (Guizar-Sicairos et al., 2008, Optics Letters
    33(2)): the edges of two masks that differ in shape have no common phase at high frequencies.

    For each ninth, such as ``"first y, last x"``, the shift (y, x) in pixels that all its slices together agree on:
    positive where the prediction lies below or right of the truth. NaN where one of the masks is empty.
    """
    decision, (depth, height, width) = decide(prediction), truth.shape
    offsets = {}
    for (i, name_y), (j, name_x) in itertools.product(enumerate(PLACES), repeat=2):
        stop = (depth, height * (i + 1) // 3, width * (j + 1) // 3)
        boxes = list(slabs(Box((0, height * i // 3, width * j // 3), stop), 1))[::every]
        true_zyx = np.concatenate([truth.read(box) == 1 for box in boxes]).astype(np.float32)
        mine_zyx = np.concatenate([decision.foreground(prediction.read(box)) for box in boxes]).astype(np.float32)
        offset = (float("nan"), float("nan"))
        if true_zyx.any() and mine_zyx.any():
            masks = (mine_zyx - mine_zyx.mean(), true_zyx - true_zyx.mean())
            (_, y, x), _, _ = phase_cross_correlation(*masks, upsample_factor=20, normalization=None)
            offset = (float(y), float(x))
        offsets[f"{name_y} y, {name_x} x"] = offset
    return offsets


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
