"""Time and peak memory against the size of a volume: ``python benchmarks/scale.py megabytes=[50,100] out=FILE.json``.

Each step runs as a command of its own on volumes of growing size, cut from one image that is continued by reflection.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from inference_command import find_image, make_checkpoint
from options import read_options

from mitoseg.geometry import Box, reflect, slabs
from mitoseg.provenance import collect
from mitoseg.storage import write_json
from mitoseg.volumes import Volume, create_volume, open_volume

PROGRAM = """
import json, sys, time
from mitoseg.cli.main import main
from mitoseg.provenance import peak_memory

start, used = time.monotonic(), time.process_time()
code = main(sys.argv[1:])
times = {"seconds": time.monotonic() - start, "processor_seconds": time.process_time() - used}
print("measured", json.dumps({**times, "peak": peak_memory()}))
sys.exit(code)
"""


@dataclass
class Options:
    """What is measured.

    Attributes:
        megabytes: Sizes of the volumes, uint8.
        side: Voxels along y and x; z grows.
        steps: Keys of `STEPS`, in order; each finds what the ones before have made.
        memory: That a command may take.
        threads: Of each command.
        data: The image; None: EPFL CA1 below MITOSEG_DATA, else the phantom.
        checkpoint: None: the paper's network with random weights.
        words: Further words for each ``predict``.
        out: Where the numbers go as JSON.
    """

    megabytes: list[float] = field(default_factory=lambda: [100, 200, 400, 800, 1600, 4000])
    side: int = 1024
    steps: list[str] = field(default_factory=lambda: ["predict"])
    memory: str = "1GB"
    threads: int = 2
    data: str | None = None
    checkpoint: str | None = None
    words: list[str] = field(default_factory=lambda: ["method=strided", "precision=fp32", "compile=false"])
    out: str | None = None


def predict_words(folder: Path, options: Options) -> list[str]:
    """The command that predicts the volume of a folder."""
    paths = [f"checkpoint={folder.parent / 'a.ckpt'}", f"input={folder / 'image.zarr'}"]
    given = [f"output={folder / 'probability.zarr'}", "dtype=uint8", f"memory={options.memory}", "accelerator=cpu"]
    return ["predict", *paths, *given, *options.words]


STEPS: dict[str, Callable[[Path, Options], list[str]]] = {"predict": predict_words}
"""By name, the words of a command for a folder with ``image.zarr`` and what the steps before have left."""


def make_image(source: Volume, megabytes: float, side: int, path: Path) -> tuple[int, int, int]:
    """Write a volume of that size, slab by slab; its shape."""
    depth = max(1, round(megabytes * 1e6 / side**2))
    index = [reflect(np.arange(n), m) for n, m in zip((depth, side, side), source.shape, strict=True)]
    with create_volume(path, (depth, side, side), "uint8", voxel_size=(5, 5, 5), chunks=(16, 256, 256)) as writer:
        for slab in slabs(Box.of_shape((depth, side, side)), 16):
            z = index[0][slab.slices[0]]
            part = Box((int(z.min()), 0, 0), (int(z.max()) + 1, *source.shape[1:]))
            writer.write(slab, source.read(part)[np.ix_(z - part.start[0], index[1], index[2])].astype(np.uint8))
    return (depth, side, side)


def measure(words: Sequence[str], folder: Path, threads: int) -> dict[str, float]:
    """Run a command in a process of its own; its seconds without imports, and its peak memory in bytes.

    Raises:
        SystemExit: It failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", PROGRAM, *words, "progress=false", f"hydra.run.dir={folder / 'run'}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.rsplit("measured ", 1)[1]))


def deviation(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """How far the seconds lie from the straight line through them at most, as a share of it (least squares).

    >>> round(deviation([1, 2, 3], [3.0, 5.0, 7.0]), 9)
    0.0
    """
    line = np.polyval(np.polyfit(sizes, seconds, 1), sizes) if len(sizes) > 1 else np.asarray(seconds)
    return float(np.max(np.abs(np.asarray(seconds) / line - 1)))


def main(words: Sequence[str]) -> dict[str, object]:
    """Measure, print, and write."""
    options = read_options(Options, words)
    rows: list[dict[str, object]] = []
    with TemporaryDirectory(prefix="scale") as name:
        source = open_volume(find_image(options.data))
        shutil.copy(make_checkpoint("patch_cnn", options.checkpoint, source, Path(name)), Path(name) / "a.ckpt")
        for megabytes in options.megabytes:
            folder = Path(name) / f"{megabytes:g}"
            folder.mkdir()
            shape = make_image(source, megabytes, options.side, folder / "image.zarr")
            for step in options.steps:
                found = measure(STEPS[step](folder, options), folder, options.threads)
                rows.append({"step": step, "megabytes": megabytes, "shape": shape, **found})
                rate = np.prod(shape) / found["processor_seconds"] / 1e6
                print(
                    f"{step} {megabytes:g} MB: {found['seconds']:.1f} s on the clock, "
                    f"{found['processor_seconds']:.1f} s of the processors ({rate:.2f} megavoxels/s), "
                    f"peak {found['peak'] / 1e6:.0f} MB",
                    flush=True,
                )
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
