"""How fast blocks are trained on: the loop against the bare network, and the batches against a conventional dataset.

python benchmarks/training.py [key=value ...]

bare          forward, loss, backward and optimizer step on one fixed batch: the ceiling
loop          `train.py`'s loop with its datamodule, loggers, callbacks and progress bar, from batch to batch
delivered     batches of our pipeline, with no network
conventional  the same batches from a map-style dataset that turns one block at a time, through torch's DataLoader
conventional_train   the conventional batches through the bare loop

The sides of a ratio take turns in one process, in the same precision, layout and compile setting; the best turn
counts. Validation is left out, and so is warming up. The conventional pipeline has the best of 0 to all cores as
workers and the faster of two ways to turn a block; its first batch is compared with ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from options import read_options
from rich.console import Console
from rich.table import Table
from timing import Sample, Side, name_processor, take_turns
from training_conventional import WAYS, batches, largest_difference
from training_sides import SETTINGS, BareLoop, delivered, make_data, read_config, time_loop

from mitoseg.provenance import git_state
from mitoseg.storage import write_json

RECIPES = {"default": [], "paper": ["experiment=paper"]}
GOALS = {"loop_fraction_of_ceiling": {"cpu": 0.95, "cuda": 0.9}, "over_conventional": {"cpu": 5, "cuda": 5}}
HELP = {
    "out": "JSON file for all numbers",
    "batch": "blocks per step",
    "networks": "of which networks",
    "settings": f"some of {','.join(SETTINGS)}",
    "recipes": "default (as train.py has it) and paper (experiment=paper), for the loop",
    "augment": "of the batches that are delivered without a network",
    "device": "cpu or cuda; auto: cuda where there is one",
    "threads": "of torch; 0: as torch chooses",
    "seconds": "for each side of a comparison, at least",
    "turns": "in which they are spent",
    "quick": "tiny samples of a tiny volume that say nothing, to see whether all runs",
}


@dataclass
class Options:
    """The words of the command line, see `HELP`; those of a list are separated by commas."""

    out: str | None = None
    batch: int = 100
    networks: str = "patch_cnn,context_cnn"
    settings: str = "fp32,bf16"
    recipes: str = "default,paper"
    augment: str = "any_angle"
    device: str = "auto"
    threads: int = 0
    seconds: float = 5.0
    turns: int = 5
    quick: bool = False

    @property
    def sample(self) -> Sample:
        """How long is measured."""
        return Sample(0.01, 2) if self.quick else Sample(self.seconds, self.turns)

    def chosen(self, key: str, known: Sequence[str]) -> list[str]:
        """The words of a list.

        Raises:
            SystemExit: One is not known.
        """
        words: list[str] = getattr(self, key).split(",")
        if set(words) - set(known):
            sys.exit(f"error: {key}={','.join(words)}: choose some of {','.join(known)}")
        return words


def data_words(options: Options, folder: Path) -> list[str]:
    """The EPFL training volume below ``MITOSEG_DATA``, or else a phantom of its slices' size."""
    root = os.environ.get("MITOSEG_DATA")
    if options.quick:
        return ["data=phantom", f"data.root={folder}", "data.train_shape=[12,320,320]", "data.test_shape=[4,96,96]"]
    if root is None:
        return ["data=phantom", f"data.root={folder}", "data.train_shape=[24,768,1024]", "data.test_shape=[4,96,96]"]
    names = {key: f"data.{key}" for key in ("train", "test")}
    words = [f"{names['train']}.image=training.tif", f"{names['train']}.label=training_groundtruth.tif"]
    words += [f"{names['test']}.image=testing_z000-081.tif", f"{names['test']}.label=testing_z000-081_groundtruth.tif"]
    return ["data=lucchi", f"data.root={Path(root) / 'epfl_ca1'}", *words]


def time_delivery(words: list[str], options: Options, device: torch.device) -> dict[str, Any]:
    """Batches a second without a network: ours, and the conventional ones with each number of workers."""
    data = make_data(read_config([*words, f"data.augment={options.augment}"]))
    ours = delivered(data, device)
    ways = {way: batches(data, 0, way) for way in WAYS}
    sides = {way: Side(lambda stream=stream: next(stream)) for way, stream in ways.items()}
    found = take_turns(sides, device, options.sample)
    way = min(found, key=lambda name: found[name].best)
    counts = range(2) if options.quick else range((os.cpu_count() or 1) + 1)
    streams = {str(workers): batches(data, workers, way) for workers in counts}
    sides = {name: Side(lambda stream=stream: next(stream)) for name, stream in streams.items()}
    turns = take_turns({"ours": Side(lambda: next(ours)), **sides}, device, options.sample)
    speed = {name: options.batch / t.best for name, t in turns.items()}
    workers = max(streams, key=lambda name: speed[name])
    return {
        "augment": options.augment,
        "difference": {w: largest_difference(data, w) for w in WAYS},
        "way": way,
        "workers": int(workers),
        "blocks_per_second": speed,
        "over_conventional": speed["ours"] / speed[workers],
    }


def time_training(words: list[str], options: Options, delivery: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Blocks a second of the loop, of the bare loop and of conventional training."""
    cfg = read_config(words)
    data = make_data(cfg)

    def others(bare: BareLoop) -> dict[str, Any]:
        batch = next(delivered(data, bare.device))
        stream = batches(data, delivery["workers"], delivery["way"])
        twin = bare.copy(cfg)
        return {"bare": bare.fixed(batch["image"], batch["label"]), "conventional_train": twin.fed(stream)}

    turns = time_loop(cfg, data, others, options.sample, folder)
    data.bank.to("cpu")
    speed = {name: options.batch / t.best for name, t in turns.items()}
    return {
        "blocks_per_second": speed,
        "turns_seconds": {name: list(t) for name, t in turns.items()},
        "draws_per_epoch": len(data.draws),
        "seconds_of_45_epochs": 45 * len(data.draws) / speed["loop"],
        "loop_fraction_of_ceiling": speed["loop"] / speed["bare"],
        "train_over_conventional": speed["loop"] / speed["conventional_train"],
    }


def facts(options: Options, device: torch.device) -> dict[str, Any]:
    """What the numbers are numbers of."""
    commit, dirty = git_state(Path(__file__).resolve().parents[1])
    return {
        "device": name_processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "cpu": name_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": dirty,
        "goals": {key: goal[device.type] for key, goal in GOALS.items()},
        "options": asdict(options),
    }


def main(words: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    if {"--help", "-h"} & set(words):
        print(__doc__, *(f"{f.name + '=' + str(f.default):38} {HELP[f.name]}" for f in fields(Options)), sep="\n")
        return {}
    options = read_options(Options, words)
    networks = options.chosen("networks", ("patch_cnn", "context_cnn"))
    settings, recipes = options.chosen("settings", list(SETTINGS)), options.chosen("recipes", list(RECIPES))
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    if options.threads:
        torch.set_num_threads(options.threads)
    report = facts(options, torch.device(kind)) | {"delivery": {}, "training": {}}
    with TemporaryDirectory() as folder:
        for network in networks:
            words = [*data_words(options, Path(folder)), f"network={network}", f"data.batch_size={options.batch}"]
            report["delivery"][network] = delivery = time_delivery(words, options, torch.device(kind))
            for recipe in recipes:
                for setting in settings:
                    precision, compiled = SETTINGS[setting]
                    more = [f"trainer.accelerator={kind}", f"trainer.precision={precision}", f"compile={compiled}"]
                    name = f"{network} {recipe} {setting}"
                    run = Path(folder) / name.replace(" ", "_")
                    found = time_training([*RECIPES[recipe], *words, *more], options, delivery, run)
                    report["training"][name] = found
    report |= headlines(report)
    show(report)
    if options.out:
        write_json(options.out, report)
    return report


def headlines(report: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The ratios, by what they are ratios of."""
    lines = {"over_conventional": {name: d["over_conventional"] for name, d in report["delivery"].items()}}
    for key in ("loop_fraction_of_ceiling", "train_over_conventional"):
        lines[key] = {name: found[key] for name, found in report["training"].items()}
    return lines


def show(report: dict[str, Any]) -> None:
    """Print speeds and ratios beside the goals."""
    console = Console() if sys.stdout.isatty() else Console(width=140)
    goals, columns = report["goals"], ("bare", "loop", "conventional_train")
    goal = goals["loop_fraction_of_ceiling"]
    title = f"{report['device']}, {report['threads']} threads: blocks/s"
    table = Table("network, recipe, setting", *columns, f"loop/bare (goal {goal})", "loop/conventional", title=title)
    for name, found in report["training"].items():
        speeds = [f"{found['blocks_per_second'][column]:,.0f}" for column in columns]
        ratios = (found["loop_fraction_of_ceiling"], found["train_over_conventional"])
        table.add_row(name, *speeds, *(f"{ratio:.3f}" for ratio in ratios))
    console.print(table)
    for network, found in report["delivery"].items():
        speeds = ", ".join(f"{name} {speed:,.0f}" for name, speed in found["blocks_per_second"].items())
        console.print(
            f"{network}, {found['augment']}, no network, blocks/s (numbers: conventional with so many workers): "
            f"{speeds}; ours/conventional {found['over_conventional']:.1f} (goal {goals['over_conventional']})"
        )
    if report["options"]["quick"]:
        console.print("quick=true: these numbers say nothing")


if __name__ == "__main__":
    main(sys.argv[1:])
