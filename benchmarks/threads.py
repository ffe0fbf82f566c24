"""How fast a CPU trains on one thread and on all, alone and beside other work, by how long the threads wait awake.

python benchmarks/threads.py [key=value ...]

one         one thread
default     all threads, which wait for each other as OpenMP has it: for milliseconds
brief       all threads, which wait for as long as the commands of mitoseg have them
passive     all threads, which sleep at once

Each is a process of its own (OpenMP reads its settings once); they take turns, and the medians over the turns count.
Beside other work: a busy loop on each core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from options import read_options
from rich.console import Console
from rich.table import Table
from timing import name_processor
from torch import nn

from mitoseg.cli.launch import SPINS
from mitoseg.control_groups import usable_cores
from mitoseg.networks import DenseForm, PatchCNN
from mitoseg.provenance import git_state
from mitoseg.storage import write_json

SIDES = {
    "one": {"OMP_NUM_THREADS": "1"},
    "default": {},
    "brief": {"GOMP_SPINCOUNT": SPINS},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}
NETWORKS = ("paper", "tiny")


@dataclass
class Options:
    """The words of the command line: a JSON file for the numbers, seconds of a turn, and how many turns."""

    out: str | None = None
    seconds: float = 1.0
    turns: int = 8


class Paper:
    """Steps of 100 blocks by the abstract's network."""

    def __init__(self) -> None:
        self.network: nn.Module = PatchCNN(3).to(memory_format=torch.channels_last)
        self.image = torch.randn(100, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 1e-3)

    def step(self) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        self.network(self.image).square().mean().backward()
        self.optimizer.step()


class Tiny(Paper):
    """Steps of a dense network of two small layers: hundreds of operations of microseconds."""

    def __init__(self) -> None:
        layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(4, 2, 3))
        self.network, self.image = DenseForm(layers), torch.randn(4, 1, 64, 64)
        self.optimizer = torch.optim.AdamW(layers.parameters(), 1e-3)


def work() -> None:
    """Train whenever a line with a number of seconds comes, and answer with the steps a second of each network."""
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    loops = [Paper(), Tiny()]
    for loop in loops:
        loop.step()
    print("ready", flush=True)
    for line in sys.stdin:
        speeds = []
        for loop in loops:
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < float(line):
                loop.step()
                count += 1
            speeds.append(count / (time.perf_counter() - start))
        print(*speeds, flush=True)


def measure(options: Options, busy: int) -> dict[str, dict[str, float]]:
    """Steps a second of each network by each side, beside a number of busy loops."""
    clean = {k: v for k, v in os.environ.items() if k not in {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}}
    sides: dict[str, subprocess.Popen[str]] = {}
    others: list[subprocess.Popen[bytes]] = []
    found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    try:
        for side, settings in SIDES.items():
            command = [sys.executable, __file__, "work"]
            sides[side] = subprocess.Popen(
                command, env=clean | settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        for process in sides.values():
            _answer(process)
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        for _ in range(options.turns):
            for side, process in sides.items():
                assert process.stdin is not None
                print(options.seconds, file=process.stdin, flush=True)
                found[side].append([float(number) for number in _answer(process).split()])
    finally:
        for started in (*sides.values(), *others):
            started.kill()
            started.communicate()  # closes its pipes as well
    medians = {side: [statistics.median(column) for column in zip(*rows, strict=True)] for side, rows in found.items()}
    return {side: dict(zip(NETWORKS, row, strict=True)) for side, row in medians.items()}


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def main(words: Sequence[str]) -> None:
    """Measure, print a table of steps a second, and write the numbers."""
    options = read_options(Options, words)
    cores = usable_cores()
    table = Table("beside", "network", *SIDES)
    results: dict[str, Any] = {}
    for name, busy in (("nothing of ours", 0), ("a busy loop on each core", cores)):
        results[name] = measure(options, busy)
        results[name]["load"] = os.getloadavg()[0]
        for network in NETWORKS:
            table.add_row(name, network, *(f"{results[name][side][network]:.2f}" for side in SIDES))
    console = Console()
    console.print(table, f"{name_processor()}, {cores} cores, steps a second; all other work counts as well")
    if options.out:
        about = {
            "options": asdict(options),
            "cores": cores,
            "torch": torch.__version__,
            "commit": git_state(Path(__file__).resolve().parents[1])[0],
        }
        write_json(options.out, {**about, "steps_per_second": results})


if __name__ == "__main__":
    if sys.argv[1:] == ["work"]:
        work()
    else:
        main(sys.argv[1:])
