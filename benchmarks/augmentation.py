"""What augmentation costs a sample, on one thread: ``python benchmarks/augmentation.py [EMAugmentation's options]``.

Prints milliseconds of processor time a sample, averaged over many seeds, for a tile of a volume and for one of five
sections: of all effects with their probabilities, and of each where it strikes. ``output=FILE`` writes them as JSON,
``samples=60`` is how many there are.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from mitoseg.sampling.augmentation import Augmenter, EMAugmentation
from mitoseg.storage import write_json

SHAPES = {"volume 32 x 128 x 128": (1, 32, 128, 128), "five sections of 256 x 256": (5, 256, 256)}
EFFECTS = ("deform", "curve", "shifted", "missing", "contrast", "sections")
EFFECTS += ("defocus", "blur", "resolution", "noise", "cutout")


def milliseconds(augment: Augmenter, shape: tuple[int, ...], samples: int) -> float:
    """Mean processor time of a sample, which others on the machine change less than the time on the clock."""
    image = torch.randn(1, *shape)
    label = torch.zeros(1, *(shape[1:] if len(shape) == 4 else shape[-2:]), dtype=torch.int64)
    augment(image, label, torch.tensor([0]))
    start = time.process_time()
    for seed in range(samples):
        augment(image, label, torch.tensor([seed]))
    return 1000 * (time.process_time() - start) / samples


def main(words: Sequence[str]) -> dict[str, dict[str, float]]:
    """Measure and print."""
    torch.set_num_threads(1)
    options = {name: yaml.safe_load(value) for name, value in (word.split("=", 1) for word in words)}
    output, samples = options.pop("output", None), options.pop("samples", 60)
    off = options | dict.fromkeys(EFFECTS, 0.0)
    sides = {"all": EMAugmentation(**options)}
    sides |= {name: EMAugmentation(**{**off, name: 1.0}) for name in EFFECTS}
    found = {
        name: {side: milliseconds(augment, shape, samples) for side, augment in sides.items()}
        for name, shape in SHAPES.items()
    }
    for name, costs in found.items():
        print(f"{name}: {costs['all']:.1f} ms")
        print("  where it strikes: " + ", ".join(f"{side} {costs[side]:.1f}" for side in EFFECTS))
    if output:
        write_json(Path(output), found)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
