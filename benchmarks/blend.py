"""Do the tiles of ``method=blend`` show? Two tile sizes and three overlaps on a real slab, with a small U-Net.

python benchmarks/blend.py [checkpoint=U.ckpt] [steps=600] [slices=4] [tiles=128,256] [out=FILE.json]

A checkpoint that does not exist is trained first, on slices 30-142 of the EPFL training volume that MITOSEG_DATA holds
(random crops, AdamW; minutes), and kept. The slab lies in z 151-164, which it has not seen. It prints, for each tile
size with half, a quarter and no overlap: the jump of the log-odds across tile borders over the jump elsewhere (1: no
seam) and the JAC at the best threshold of the slab; and the largest and mean difference between the two tile sizes.
"""

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from mitoseg.geometry import Box
from mitoseg.inference import Prediction, predict_volume
from mitoseg.inference.methods import starts
from mitoseg.metrics import Calibration
from mitoseg.metrics.histogram import best_threshold, curve, logit_histogram
from mitoseg.networks.checkpoint import FORMAT, KEY, load_model
from mitoseg.storage import write_json
from mitoseg.volumes import ArrayVolume, Normalization, map_labels, measure_normalization, open_volume
from mitoseg.volumes.base import ArrayWriter

NETWORK = {
    "_target_": "monai.networks.nets.BasicUNet",
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": 2,
    "features": [16, 16, 32, 64, 64, 16],
}
TRAINING, SLAB = (30, 143), 151
OVERLAPS = (0.5, 0.25, 0.0)


def train(path: Path, image, label, steps: int) -> None:
    """Train the U-Net on random crops and write a checkpoint."""
    from mitoseg.networks.checkpoint import build_network

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    part = Box((TRAINING[0] - 1, 0, 0), (TRAINING[1] + 1, *image.shape[1:]))
    normalization = measure_normalization([(image, part)])
    grey, truth = normalization.apply(image.read(part)), label.read(part).astype(np.int64)
    network = build_network(NETWORK).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        crops = [_crop(rng, grey, truth) for _ in range(8)]
        images, targets = (torch.from_numpy(np.stack(column)) for column in zip(*crops, strict=True))
        with torch.autocast("cpu", torch.bfloat16):
            scores = network(images.contiguous(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(scores.float(), targets, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    record = {
        "format": FORMAT,
        "network": NETWORK,
        "normalization": {"mean": normalization.mean, "std": normalization.std},
        "channels": "adjacent",
        "voxel_size": [5.0, 5.0, 5.0],
        "calibration": {"prior_shift": 0.0, "temperature": 1.0, "bias": 0.0},
        "threshold": 0.5,
    }
    torch.save({KEY: record, "state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}}, path)


def _crop(rng: np.random.Generator, grey: np.ndarray, truth: np.ndarray, size: int = 128):
    z, y, x = (int(rng.integers(low, high)) for low, high in zip((1, 0, 0), _room(grey, size), strict=True))
    image, target = grey[z - 1 : z + 2, y : y + size, x : x + size], truth[z, y : y + size, x : x + size]
    turn, flip = int(rng.integers(4)), bool(rng.integers(2))
    image, target = (np.rot90(a, turn, axes=(-2, -1)) for a in (image, target))
    return (image[..., ::-1].copy(), target[:, ::-1].copy()) if flip else (image.copy(), target.copy())


def _room(grey: np.ndarray, size: int) -> tuple[int, int, int]:
    return (grey.shape[0] - 1, grey.shape[1] - size, grey.shape[2] - size)


def measure(model, image, label, tile: int, overlap: float) -> tuple[np.ndarray, dict[str, float]]:
    """Log-odds of the slab for one tile size, its seam and its JAC."""
    prediction = Prediction(
        model.network,
        Normalization(**model.normalization),
        model.channels,
        Calibration(),
        0.5,
        method="blend",
        tile=(1, tile, tile),
        overlap=overlap,
        save="log_odds",
    )
    writer = ArrayWriter(image.shape)
    predict_volume(prediction, image, writer)
    borders = {}
    for axis in (1, 2):
        first = starts(image.shape[axis], tile, overlap)
        borders[axis] = sorted({*first, *(p + tile for p in first)})
    _, jaccard = best_threshold(curve(logit_histogram(writer.array_zyx, label)))
    return writer.array_zyx, {"seam_ratio": seam_ratio(writer.array_zyx, borders), "jaccard_foreground": jaccard}


def seam_ratio(map_zyx: np.ndarray, borders: Mapping[int, Sequence[int]]) -> float:
    """Mean jump between neighbours across tile borders over the mean jump between other neighbours.

    1 means that tiles cannot be told from the rest of the map; a map made of tiles that do not fit is above it.
    ``borders`` are, for each axis that is tiled, the positions at which a tile starts or ends. NaN where there is none
    within the map, or nothing jumps elsewhere.
    """
    across, elsewhere = [0.0, 0], [0.0, 0]
    for axis, positions in borders.items():
        jump = np.abs(np.diff(map_zyx.astype(np.float64), axis=axis))
        at_border = np.zeros(jump.shape[axis], bool)
        at_border[[p - 1 for p in positions if 0 < p < map_zyx.shape[axis]]] = True
        for total, mask in ((across, at_border), (elsewhere, ~at_border)):
            part = np.compress(mask, jump, axis=axis)
            total[0] += float(part.sum())
            total[1] += part.size
    if not across[1] or not elsewhere[0]:
        return float("nan")
    return (across[0] / across[1]) / (elsewhere[0] / elsewhere[1])


def main() -> None:
    """Train if need be, measure, print, write."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    default = {"checkpoint": "blend_unet.ckpt", "steps": 600, "slices": 4, "tiles": "128,256", "out": None}
    options = OmegaConf.merge(default, OmegaConf.create(given))
    if "MITOSEG_DATA" not in os.environ:
        sys.exit("MITOSEG_DATA must name the folder of real volumes")
    folder = Path(os.environ["MITOSEG_DATA"], "epfl_ca1")
    image, label = open_volume(folder / "training.tif"), map_labels(open_volume(folder / "training_groundtruth.tif"))
    path = Path(options.checkpoint)
    if not path.exists():
        train(path, image, label, int(options.steps))
    model = load_model(path)
    slab = Box((SLAB, 0, 0), (SLAB + int(options.slices), *image.shape[1:]))
    part, truth = ArrayVolume(image.read(slab)), label.read(slab)
    tiles = [int(t) for t in str(options.tiles).split(",")]
    maps, report = {}, {}
    for tile, overlap in itertools.product(tiles, OVERLAPS):
        maps[tile, overlap], found = measure(model, part, truth, tile, overlap)
        report[f"tile {tile}, overlap {overlap}"] = found
        print(f"tile {tile}, overlap {overlap}: seam {found['seam_ratio']:.3f}, JAC {found['jaccard_foreground']:.4f}")
    for overlap in OVERLAPS:
        first, second = (1 / (1 + np.exp(-maps[tile, overlap])) for tile in tiles[:2])
        gap = np.abs(first - second)
        report[f"difference, overlap {overlap}"] = {"largest": float(gap.max()), "mean": float(gap.mean())}
        print(f"tiles {tiles[0]} and {tiles[1]}, overlap {overlap}: probabilities differ by up to {gap.max():.3f}")
        print(f"  and by {gap.mean():.5f} on average")
    if options.out:
        write_json(Path(options.out), report)


if __name__ == "__main__":
    main()
