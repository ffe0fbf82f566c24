"""How fast slices are predicted: by windows, by the strided pass, by the dense form, and by the whole command.

python benchmarks/inference.py [key=value ...]

window      the network on batches of windows of the reflected slice, extrapolated to one window for each pixel;
            cutting the windows out is not counted, which favours the window, and the best batch size is
strided     one pass over the reflected slice, with the interpolation to every pixel
dense       `mitoseg.networks.DenseForm` on the reflected slice
predict     `python predict.py` from the command's start to its exit: imports, compilation without a cache, reading a
            TIFF, writing a float32 TIFF; against the bare dense form in the same setting just before and after

A setting is a precision, eager or compiled; images and weights are channels-last. The sides of a ratio have the same
setting and take turns with each other and with a matrix product, whose speed is the ceiling. Other settings are
compared only in dense_over_window_fp32: the fastest dense form over float32 windows as torch computes them unless told
otherwise, eager and contiguous.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from inference_command import NETWORKS, find_image, make_checkpoint, make_volume, time_command
from inference_report import GOALS, headlines, show, show_goals
from inference_sides import SETTINGS, Bench, Setting, possible_settings
from options import read_options
from rich.console import Console
from timing import Sample, measure_ceiling, name_processor

from mitoseg.networks.checkpoint import load_model
from mitoseg.provenance import git_state
from mitoseg.storage import write_json
from mitoseg.volumes import Volume

PARTS = ("window", "dense", "strided", "predict")
HELP = {
    "out": "JSON file for all numbers",
    "checkpoint": "of one of the networks; without it, random weights",
    "data": "image; default: epfl_ca1/training.tif in the folder MITOSEG_DATA names, or else the phantom",
    "slices": "of the volume; a smaller image is continued by reflection",
    "slice": "pixels along y and x, likewise",
    "parts": "what to time",
    "networks": "of which networks",
    "settings": f"some of {','.join(SETTINGS)}; auto: those that the device has",
    "devices": "cpu or cuda; auto: both where there is a GPU",
    "seconds": "for each side of a comparison, at least",
    "turns": "in which they are spent",
    "quick": "tiny samples that say nothing, to see whether all runs",
}


@dataclass
class Options:
    """The words of the command line, see `HELP`; those of a list are separated by commas."""

    out: str | None = None
    checkpoint: str | None = None
    data: str | None = None
    slices: int = 165
    slice: str = "768,1024"
    parts: str = ",".join(PARTS)
    networks: str = ",".join(NETWORKS)
    settings: str = "auto"
    devices: str = "auto"
    seconds: float = 3.0
    turns: int = 5
    quick: bool = False

    @property
    def sample(self) -> Sample:
        """How long is measured."""
        return Sample(0.01, 2) if self.quick else Sample(self.seconds, self.turns)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the volume (z, y, x)."""
        y, x = (int(n) for n in self.slice.split(","))
        return (self.slices, y, x)

    def chosen(self, key: str, known: Sequence[str]) -> list[str]:
        """The words of a list, or all that there are for ``auto``.

        Raises:
            SystemExit: One is not known.
        """
        text = getattr(self, key)
        words = list(known) if text == "auto" else text.split(",")
        if set(words) - set(known):
            sys.exit(f"error: {key}={text}: choose some of {','.join(known)}")
        return words


def main(words: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    if {"--help", "-h"} & set(words):
        print(__doc__, *(f"{f.name + '=' + str(f.default):38} {HELP[f.name]}" for f in fields(Options)), sep="\n")
        return {}
    options = read_options(Options, words)
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    devices, names = options.chosen("devices", here), options.chosen("networks", list(NETWORKS))
    image = find_image(options.data)
    report = {"image": "/".join(Path(image).parts[-2:])} | facts(options)
    with TemporaryDirectory() as folder:
        volume = make_volume(image, options.shape, Path(folder))
        checkpoints = {name: make_checkpoint(name, options.checkpoint, volume, Path(folder)) for name in names}
        for device in devices:
            found = measure_device(torch.device(device), volume, checkpoints, options)
            show(found)
            report |= found if device == "cpu" else {device: found}
    show_goals(report)
    if options.out:
        write_json(options.out, report)
    return report


def facts(options: Options) -> dict[str, Any]:
    """What the numbers are numbers of."""
    commit, dirty = git_state(Path(__file__).resolve().parents[1])
    return {
        "slice": options.shape[1:],
        "slices": options.slices,
        "torch": torch.__version__,
        "cpu": name_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": dirty,
        "quick": options.quick,
        "sample": asdict(options.sample),
        "goals": GOALS,
    }


def measure_device(
    device: torch.device, volume: Volume, checkpoints: Mapping[str, Path], options: Options
) -> dict[str, Any]:
    """Everything on one device; see `headlines` for the keys that hold one number for each network."""
    console, sample, parts = Console(stderr=True), options.sample, options.chosen("parts", PARTS)
    asked = options.chosen("settings", list(SETTINGS))
    settings = [setting for setting in possible_settings(device) if setting.name in asked]
    sizes = (128, 256) if options.quick else (1024, 2048, 4096)
    ceiling = {p: measure_ceiling(p, sizes, device, sample) for p in sorted({s.precision for s in settings})}
    found: dict[str, Any] = {
        "device": name_processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "settings": [setting.name for setting in settings],
        "ceiling": ceiling,
        **{key: {} for key in ("operations", "per_setting", "fp32_contiguous", "predict")},
    }
    for name, checkpoint in checkpoints.items():
        bench = Bench(load_model(checkpoint), volume, device, quick=options.quick)
        found["operations"][name] = bench.count_operations()
        timed = found["per_setting"][name] = {}
        for setting in settings if set(parts) != {"predict"} else []:
            console.print(f"{device} {name} {setting.name}", style="dim")
            timed[setting.name] = bench.compare(setting, parts, ceiling[setting.precision], sample)
        if settings and {"dense", "window"} <= set(parts):
            console.print(f"{device} {name} against fp32 windows", style="dim")
            fastest: Setting = min(settings, key=lambda s: timed[s.name]["seconds_per_slice"]["dense"])
            found["fp32_contiguous"][name] = bench.compare_with_default(fastest, sample)
        if "predict" in parts:
            console.print(f"{device} {name} predict", style="dim")
            found["predict"][name] = time_command(bench, checkpoint, sample)
    return found | headlines(found)


if __name__ == "__main__":
    main(sys.argv[1:])
