"""What `resample=` is worth: a labelled crop is binned, predicted with each option, and scored on its own grid.

python benchmarks/resampling.py checkpoint=A.ckpt image=I.tif label=L.tif [key=value ...]

The image is averaged over bins, the label takes the majority. JAC is of the foreground, at the checkpoint's threshold.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from options import read_options
from rich.console import Console
from rich.table import Table

from mitoseg.geometry import Box
from mitoseg.metrics import Counts, scores
from mitoseg.storage import write_json
from mitoseg.volumes import ArrayVolume, create_volume, map_labels, open_volume
from mitoseg.volumes.resampling import resampled
from mitoseg.volumes.zarrs import coarser

HELP = {
    "checkpoint": "what predicts",
    "image": "an EM volume",
    "label": "its labels",
    "voxel_size": "[z,y,x] in nm of both",
    "crop": "z0:z1,y0:y1,x0:x1; none: all",
    "bins": "1 or 2 along z, y, x",
    "options": "values of resample=, separated by spaces",
    "out": "JSON file for all numbers",
}


@dataclass
class Options:
    """See `HELP`."""

    checkpoint: str = ""
    image: str = ""
    label: str = ""
    voxel_size: list[float] = field(default_factory=lambda: [5.0, 5.0, 5.0])
    crop: str | None = None
    bins: list[int] = field(default_factory=lambda: [2, 2, 2])
    options: str = "none auto"
    out: str | None = None


def binned(options: Options) -> tuple[ArrayVolume, np.ndarray[Any, Any], tuple[float, float, float]]:
    """The image in bins, whether most of a bin is foreground, and the bins' size."""
    image, label = open_volume(options.image), map_labels(open_volume(options.label))
    box = image.box if options.crop is None else Box.parse(options.crop, image.shape)
    z, y, x = (size * n for size, n in zip(options.voxel_size, options.bins, strict=True))
    source = ArrayVolume(image.read(box), tuple(options.voxel_size))  # type: ignore[arg-type]
    grey_zyx = np.rint(resampled(source, (z, y, x)).read()).astype(np.uint8)
    truth_zyx = coarser((label.read(box) == 1).astype(np.uint8), tuple(options.bins), labels=True)  # type: ignore[arg-type]
    return ArrayVolume(grey_zyx, (z, y, x)), truth_zyx == 1, (z, y, x)


def predict(options: Options, folder: Path, choice: str) -> tuple[Path, float]:
    """Run the command; its output and how long it took."""
    output = folder / f"{choice.strip('[]').replace(',', '_')}.tif"
    words = [f"checkpoint={options.checkpoint}", f"input={folder / 'in.tif'}", f"output={output}", "progress=false"]
    command = [sys.executable, "-m", "mitoseg", "predict", *words, f"resample={choice}"]
    print(shlex.join(command[1:]), flush=True)
    begin = time.perf_counter()
    subprocess.run([*command, f"hydra.run.dir={folder / 'run'}"], check=True)
    return output, time.perf_counter() - begin


def main(words: Sequence[str]) -> dict[str, dict[str, float]]:
    """Bin, predict and score; the scores by option."""
    if {"--help", "-h"} & set(words):
        print(__doc__, *(f"{name + '=':14} {text}" for name, text in HELP.items()), sep="\n")
        return {}
    options = read_options(Options, words)
    image, truth_zyx, size = binned(options)
    table = Table(
        "resample=", "fg JAC", "mean JAC", "precision", "recall", "seconds", title=f"{image.shape}, {size} nm"
    )
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with create_volume(folder / "in.tif", image.shape, image.dtype, voxel_size=size) as writer:
            writer.write(image.box, image.read())
        for choice in options.options.split():
            output, seconds = predict(options, folder, choice)
            found = open_volume(output)
            mask_zyx = found.read() >= found.info.metadata["threshold"]
            cells = np.bincount(2 * truth_zyx.ravel() + mask_zyx.ravel(), minlength=4)
            tn, fp, fn, tp = (int(n) for n in cells)
            row = scores(Counts(tp=tp, fp=fp, fn=fn, tn=tn))
            rows[choice] = {**row, "seconds": seconds}
            shown = ("jaccard_foreground", "jaccard_mean", "precision", "recall")
            table.add_row(choice, *(f"{100 * row[key]:.1f}" for key in shown), f"{seconds:.0f}")
    Console().print(table)
    if options.out:
        write_json(options.out, {"shape": image.shape, "voxel_size": size, "rows": rows})
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
