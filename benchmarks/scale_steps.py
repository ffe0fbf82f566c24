"""The commands whose time and memory ``scale.py`` takes: one run of this file is one of them, in a process of its own.

predict     mitoseg predict: image -> probability
label       the package's labelling alone, as predict does it for save=instances: mask -> instances
measure     mitoseg measure: mask -> table; it numbers the mask first
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mitoseg.cli.launch import main
from mitoseg.evaluation.instances import label_prediction
from mitoseg.provenance import peak_memory
from mitoseg.segmentation import Labelling, write_instances
from mitoseg.volumes import create_volume, open_volume
from mitoseg.volumes.predicted import decide

MEASURED = "measured "
"""What the line with the numbers begins with."""


def predict_words(folder: Path, memory: str) -> list[str]:
    """The words of the command that predicts the image of a folder."""
    paths = [f"checkpoint={folder.parent / 'a.ckpt'}", f"input={folder / 'image.zarr'}"]
    return [
        "predict",
        *paths,
        f"output={folder / 'probability.zarr'}",
        "dtype=uint8",
        f"memory={memory}",
        "accelerator=cpu",
    ]


def label_words(folder: Path, memory: str) -> list[str]:
    """The words for `label_file`."""
    return ["label", f"input={folder / 'mask.zarr'}", f"output={folder / 'instances.zarr'}"]


def measure_words(folder: Path, memory: str) -> list[str]:
    """The words of the command that numbers and measures the mask of a folder."""
    return ["measure", f"input={folder / 'mask.zarr'}", f"output={folder / 'cells.csv'}"]


STEPS: dict[str, Callable[[Path, str], list[str]]] = {
    "predict": predict_words,
    "label": label_words,
    "measure": measure_words,
}
"""By name, what gives the words of a command for a folder with ``image.zarr`` and ``mask.zarr``."""


def label_file(words: Sequence[str]) -> int:
    """Number a mask as ``key=value`` words say: ``input``, ``output``, ``split``."""
    given = dict(word.split("=", 1) for word in words)
    mask = open_volume(given["input"])
    instances = label_prediction(mask, decide(mask), Labelling(split=given.get("split") == "true"))
    options = {"voxel_size": mask.voxel_size, "metadata": instances.info.metadata}
    with create_volume(given["output"], mask.shape, "uint32", **options) as writer:  # type: ignore[arg-type]
        write_instances(instances, writer)
    return 0


def run(words: Sequence[str]) -> int:
    """Do a step and print what it took: seconds, those of processors, and bytes of the largest process."""
    start = time.monotonic()
    before = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    code = label_file(words[1:]) if words[0] == "label" else main(words)
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    used = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(before, after, strict=True))
    peak = max(peak_memory(), 1024 * after[1].ru_maxrss)
    times = {"seconds": time.monotonic() - start, "processor_seconds": used}
    print(MEASURED + json.dumps({**times, "peak": peak}))
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
