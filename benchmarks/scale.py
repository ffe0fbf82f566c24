"""Time and peak memory against the size of a volume: ``python benchmarks/scale.py megabytes=[50,100] out=FILE.json``.

Each step (``steps=[predict,label,measure]``) runs as a command of its own on volumes of growing size, cut from one
image and one mask that are continued by reflection.
Two things should hold: the time grows in proportion, and the memory does not grow. Printed are seconds on the clock
and of the processors, and the peak memory of each; how far the seconds of the processors, which other work on the
machine changes less, lie from a straight line; and the largest peak over the smallest.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from inference_command import find_image, make_checkpoint
from options import read_options
from scale_steps import MEASURED, STEPS
from scale_volumes import find_mask, make_image, make_mask, shape_of

from mitoseg.provenance import collect
from mitoseg.storage import write_json
from mitoseg.volumes import open_volume


@dataclass
class Options:
    """What is measured.

    Attributes:
        megabytes: Sizes of the volumes, uint8.
        side: Voxels along y and x; z grows.
        steps: Of `scale_steps.STEPS`, in order.
        memory: That ``predict`` may take.
        threads: Of each command.
        data: The image for ``predict``; None: EPFL CA1 below MITOSEG_DATA, else the phantom.
        mask: Labels or a stored prediction, for the other steps; None: the labels of the same image.
        checkpoint: None: the paper's network with random weights.
        words: Further words for each ``predict``.
        label_words: Such as ``split=true``.
        measure_words: Such as ``reach=0``.
        out: Where the numbers go as JSON.
    """

    megabytes: list[float] = field(default_factory=lambda: [100, 200, 400, 800, 1600, 4000])
    side: int = 1024
    steps: list[str] = field(default_factory=lambda: ["predict"])
    memory: str = "1GB"
    threads: int = 2
    data: str | None = None
    mask: str | None = None
    checkpoint: str | None = None
    words: list[str] = field(default_factory=lambda: ["method=strided", "precision=fp32", "compile=false"])
    label_words: list[str] = field(default_factory=list)
    measure_words: list[str] = field(default_factory=list)
    out: str | None = None


def measure(step: str, folder: Path, options: Options) -> dict[str, float]:
    """Run a step in a process of its own; its seconds without imports, and its peak memory in bytes.

    Raises:
        SystemExit: It failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [*STEPS[step](folder, options.memory), *further_words(step, options)]
    if step != "label":
        words += ["progress=false", f"hydra.run.dir={folder / 'run'}"]
    command = [sys.executable, str(Path(__file__).with_name("scale_steps.py")), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.rsplit(MEASURED, 1)[1]))


def further_words(step: str, options: Options) -> list[str]:
    """What the user adds to the command of a step."""
    return {"predict": options.words, "label": options.label_words, "measure": options.measure_words}[step]


def make_inputs(folder: Path, megabytes: float, options: Options) -> None:
    """Write what the steps read, of one size, in a new folder."""
    folder.mkdir()
    if "predict" in options.steps:
        make_image(open_volume(find_image(options.data)), megabytes, options.side, folder / "image.zarr")
    if {"label", "measure"} & {*options.steps}:
        make_mask(find_mask(options.mask), megabytes, options.side, folder / "mask.zarr")


def deviation(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """How far the seconds lie from the straight line through them at most, as a share (least squares of the shares).

    >>> round(deviation([1, 2, 3], [3.0, 5.0, 7.0]), 9)
    0.0
    """
    if len(sizes) < 2:
        return 0.0
    shares = 1 / np.asarray(seconds)
    line = np.polyval(np.polyfit(sizes, seconds, 1, w=shares), sizes)
    return float(np.max(np.abs(line * shares - 1)))


def main(words: Sequence[str]) -> dict[str, object]:
    """Measure, print, and write."""
    options = read_options(Options, words)
    if unknown := {*options.steps} - {*STEPS}:
        sys.exit(f"error: no such step: {', '.join(sorted(unknown))}; choose of {', '.join(STEPS)}")
    rows: list[dict[str, object]] = []
    with TemporaryDirectory(prefix="scale") as name:
        if "predict" in options.steps:
            source = open_volume(find_image(options.data))
            shutil.copy(make_checkpoint("patch_cnn", options.checkpoint, source, Path(name)), Path(name) / "a.ckpt")
        for megabytes in options.megabytes:
            folder, shape = Path(name) / f"{megabytes:g}", shape_of(megabytes, options.side)
            make_inputs(folder, megabytes, options)
            for step in options.steps:
                found = measure(step, folder, options)
                rows.append({"step": step, "megabytes": megabytes, "shape": shape, **found})
                rate = np.prod(shape) / found["processor_seconds"] / 1e6
                print(
                    f"{step} {megabytes:g} MB: {found['seconds']:.1f} s on the clock, "
                    f"{found['processor_seconds']:.1f} s of the processors ({rate:.2f} megavoxels/s), "
                    f"peak {found['peak'] / 1e6:.0f} MB",
                    flush=True,
                )
            shutil.rmtree(folder)
    result: dict[str, object] = {"rows": rows, "steps": {step: conclude(step, rows) for step in options.steps}}
    if options.out:
        write_json(options.out, collect(**result))
    return result


def conclude(step: str, rows: Sequence[dict[str, object]]) -> dict[str, float]:
    """How straight the line of seconds is, and how flat that of memory; printed."""
    own = [row for row in rows if row["step"] == step]
    sizes, seconds, peaks = ([float(row[key]) for row in own] for key in ("megabytes", "processor_seconds", "peak"))  # type: ignore[arg-type]
    found = {"deviation": deviation(sizes, seconds), "peaks": max(peaks) / min(peaks)}
    print(f"{step}: within {100 * found['deviation']:.1f} % of a line, peaks within x{found['peaks']:.2f}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
