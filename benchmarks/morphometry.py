"""How long measuring takes, against scikit-image's basic properties and against the size of the volume.

python benchmarks/morphometry.py [objects=2000] [image=true]

Tubes of 200 to 1,200 nm length and 60 to 140 nm radius lie in a volume of 10 nm voxels, one in each cell of a grid.
The ratio is that to `skimage.measure.regionprops_table` of volume, centroid, box and axes, which has no surface,
length, thickness, texture or neighbours.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from options import read_options
from skimage.measure import regionprops_table

from mitoseg.provenance import git_state, peak_memory
from mitoseg.segmentation import Sources, measure_instances
from mitoseg.storage import write_json
from mitoseg.volumes import ArrayVolume

SIZE = 10.0
CELL = 64


@dataclass
class Options:
    """The command's keys.

    Attributes:
        objects: How many.
        image: Whether grey values and cristae are measured.
        out: JSON file for all numbers.
    """

    objects: int = 2000
    image: bool = True
    out: str | None = None


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def tubes(count: int) -> npt.NDArray[np.uint32]:
    """Numbered tubes, one in each cell."""
    side = math.ceil(count ** (1 / 3))
    depth = math.ceil(count / side**2)
    labels_zyx = np.zeros((depth * CELL, side * CELL, side * CELL), np.uint32)
    rng = np.random.default_rng(1)
    grid = (np.indices((CELL,) * 3) - CELL / 2 + 0.5).reshape(3, -1).T
    for i in range(count):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        half, radius = rng.uniform(4, 24), rng.uniform(4, 7)
        along = np.clip(grid @ axis, -half, half)
        inside = ((grid - along[:, None] * axis) ** 2).sum(1) <= radius**2
        z, y, x = (int(n) * CELL for n in np.unravel_index(i, (depth, side, side)))
        labels_zyx[z : z + CELL, y : y + CELL, x : x + CELL][inside.reshape((CELL,) * 3)] = i + 1
    return labels_zyx


def main(words: list[str]) -> dict[str, object]:
    """Measure, print, and write the numbers."""
    if {"--help", "-h"} & {*words}:
        print(__doc__)
        return {}
    options = read_options(Options, words)
    labels_zyx = tubes(options.objects)
    image = None
    if options.image:
        noise = np.random.default_rng(2).integers(0, 40, labels_zyx.shape, np.uint8)
        image = ArrayVolume(np.where(labels_zyx > 0, 80, 140).astype(np.uint8) + noise)
    size = (SIZE, SIZE, SIZE)
    sources = Sources(ArrayVolume(labels_zyx, size), size, image)
    before = peak_memory()
    properties = ("area", "centroid", "bbox", "axis_major_length", "axis_minor_length")
    basic = seconds(lambda: regionprops_table(labels_zyx, spacing=size, properties=properties))
    ours = seconds(lambda: measure_instances(sources))
    result: dict[str, object] = {
        "objects": options.objects,
        "voxels": labels_zyx.size,
        "seconds": ours,
        "skimage_basic_seconds": basic,
        "ratio": ours / basic,
        "objects_per_second": options.objects / ours,
        "peak_memory_bytes": peak_memory(),
        "before_bytes": before,
        "commit": git_state(Path(__file__).resolve().parents[1])[0],
    }
    print(f"{options.objects} objects in {labels_zyx.size / 1e6:.0f} million voxels: {ours:.1f} s")
    print(f"{options.objects / ours:.0f} objects a second; {ours / basic:.1f} times skimage's basic properties")
    print(f"peak memory {peak_memory() / 1e9:.2f} GB, {before / 1e9:.2f} GB of it before")
    if options.out:
        write_json(options.out, result)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
