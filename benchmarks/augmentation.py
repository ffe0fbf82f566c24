"""What augmentation costs a sample, on one thread: ``python benchmarks/augmentation.py [EMAugmentation's options]``.

Prints milliseconds a sample, averaged over many seeds, for a tile of a volume and for one of five sections, and writes
them as JSON with ``output=FILE``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
import yaml

from mitoseg.blocks.augmentation import EMAugmentation

SAMPLES = 60
SHAPES = {"volume 48 x 128 x 128": (1, 48, 128, 128), "five sections of 256 x 256": (5, 256, 256)}


def milliseconds(augment: EMAugmentation, shape: tuple[int, ...]) -> float:
    """Mean time of a sample."""
    image = torch.randn(1, *shape)
    label = torch.zeros(1, *(shape[1:] if len(shape) == 4 else shape[-2:]), dtype=torch.int64)
    augment(image, label, torch.tensor([0]))
    start = time.perf_counter()
    for seed in range(SAMPLES):
        augment(image, label, torch.tensor([seed]))
    return 1000 * (time.perf_counter() - start) / SAMPLES


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    output = words.pop("output", None)
    augment = EMAugmentation(**{name: yaml.safe_load(value) for name, value in words.items()})
    found = {name: milliseconds(augment, shape) for name, shape in SHAPES.items()}
    for name, value in found.items():
        print(f"{name}: {value:.1f} ms")
    if output:
        Path(output).write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
