"""How fast a U-Net predicts a volume: mitoseg, MONAI's sliding window on the same network, and the hardware's limit.

python benchmarks/unet_prediction.py [checkpoint=epfl-unet25d] [slices=4] [precision=auto] [seconds=10] [out=FILE.json]

mitoseg     as `predict` does by default: slices whole, or in large tiles
same tiles  mitoseg with the tiles of the training (256 x 256 pixels, half of which overlap)
monai       `monai.inferers.sliding_window_inference` with those tiles, Gaussian weights, four tiles at a time, on
            slices already normalised in memory; precision and memory layout as for mitoseg
ceiling     the network's operations for each pixel once, at the speed of a matrix product of that precision

The image is the public half of the EPFL test volume below `MITOSEG_DATA`. The sides take turns. JAC is that of the
slices at the model's own threshold.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from options import read_options
from rich.console import Console
from rich.table import Table
from timing import Sample, Side, count_work, measure_ceiling, name_processor, take_turns

from mitoseg.geometry import Box
from mitoseg.inference import Prediction, predict_volume
from mitoseg.inference.precision import computing
from mitoseg.inference.prepare import make_prediction
from mitoseg.inference.views import assemble, read_grey
from mitoseg.metrics import count, scores
from mitoseg.networks.checkpoint import find_weights, load_model
from mitoseg.networks.ensemble import log_odds
from mitoseg.storage import write_json
from mitoseg.volumes import open_volume
from mitoseg.volumes.base import ArrayVolume, ArrayWriter

TILE, OVERLAP = (256, 256), 0.5
Maps = np.ndarray[Any, np.dtype[np.float32]]


@dataclass
class Options:
    """The command line."""

    checkpoint: str = "epfl-unet25d"
    slices: int = 4
    side: int = 0  # of a smaller crop, in pixels; 0: whole slices
    precision: str = "auto"
    seconds: float = 10.0
    turns: int = 3
    out: str | None = None


def ours(prediction: Prediction, volume: ArrayVolume) -> Maps:
    """Probabilities of all slices, by mitoseg."""
    writer = ArrayWriter(volume.shape)
    predict_volume(prediction, volume, writer)
    return writer.array_zyx


def monai(prediction: Prediction, image: torch.Tensor) -> Maps:
    """Probabilities of normalised slices (z, C, Y, X), by MONAI."""
    with torch.inference_mode(), computing(prediction.precision, image.device):
        logits = [
            sliding_window_inference(one[None], TILE, 4, prediction.network, OVERLAP, mode="gaussian") for one in image
        ]
    odds = log_odds(torch.cat(logits))  # type: ignore[arg-type]
    return torch.sigmoid(prediction.calibration.apply(odds)).numpy()


def main(words: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    options = read_options(Options, words)
    folder = Path(os.environ["MITOSEG_DATA"]) / "epfl_ca1"
    files = ("testing_z000-081.tif", "testing_z000-081_groundtruth.tif")
    side = options.side or None
    image_zyx, label_zyx = (open_volume(folder / name).read()[: options.slices, :side, :side] for name in files)
    volume, device = ArrayVolume(image_zyx, (5.0, 5.0, 5.0)), torch.device("cpu")
    model = load_model(find_weights(options.checkpoint))
    prediction = make_prediction(model, precision=options.precision, accelerator="cpu")
    small = replace(prediction, tile=(1, *TILE), overlap=OVERLAP)
    greys = read_grey(volume, Box.of_shape(volume.shape), model.channels, 2)
    image = assemble(greys, prediction.normalization, device, 2)
    calls = {
        "mitoseg": partial(ours, prediction, volume),
        "same tiles": partial(ours, small, volume),
        "monai": partial(monai, prediction, image),
    }
    sample = Sample(options.seconds, options.turns)
    turns = take_turns({name: Side(call) for name, call in calls.items()}, device, sample)
    highest = max(measure_ceiling(prediction.precision, (1024, 2048), device, sample).values())
    alone = copy.deepcopy(prediction.network).to("meta")
    work = count_work(partial(alone, torch.empty(image.shape, device="meta")))["operations"]
    seconds = {name: times.best for name, times in turns.items()} | {"ceiling": work / highest}
    label_zyx = (label_zyx > 0).astype(np.uint8)
    found = {name: scores(count(call() >= model.threshold, label_zyx)) for name, call in calls.items()}
    jaccard = {name: scored["jaccard_foreground"] for name, scored in found.items()}
    report = {
        "processor": name_processor(),
        "threads": torch.get_num_threads(),
        "precision": prediction.precision,
        "shape": list(volume.shape),
        "seconds": seconds,
        "jaccard_foreground": jaccard,
        "speed_over_monai": seconds["monai"] / seconds["mitoseg"],
        "fraction_of_ceiling": seconds["ceiling"] / seconds["mitoseg"],
    }
    table = Table("", "s", "of the ceiling", "JAC")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{seconds['ceiling'] / value:.2f}", f"{jaccard.get(name, np.nan):.4f}")
    Console().print(f"{options.checkpoint}, {prediction.precision}, {volume.shape}", table)
    if options.out:
        write_json(options.out, report)
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
