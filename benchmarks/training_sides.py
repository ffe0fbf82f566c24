"""The sides of the comparison in `training.py`: the bare loop, the Trainer's loop, and two ways to make batches."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from timing import Sample, Turns, synchronize
from torch import Tensor, nn

from mitoseg.sampling import BlockDataModule
from mitoseg.training import SegmentationModule
from mitoseg.workflows.train import build_trainer, network_config

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "fp32": ("32-true", False),
    "bf16": ("bf16-mixed", False),
    "fp32_compiled": ("32-true", True),
    "bf16_compiled": ("bf16-mixed", True),
}
"""Precision of the Trainer, and whether the step is compiled."""
SETTLE = 0.5
"""Seconds for a DataLoader's workers to make their batches in advance, before the next side's turn."""
Steps = Callable[[int], None]
"""Does so many optimizer steps."""


def read_config(words: list[str]) -> DictConfig:
    """The config that `train.py` would have with these words."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", overrides=["name=benchmark", *words])
    cfg.network = network_config(cfg)
    return cfg


def make_data(cfg: DictConfig) -> BlockDataModule:
    """The datamodule, ready to use.

    Raises:
        SystemExit: An epoch has no whole batch.
    """
    data: BlockDataModule = instantiate(cfg.data, window=instantiate(cfg.network).window, seed=cfg.seed)
    data.prepare_data()
    data.setup()
    if len(data.draws) < data.batch_size:
        sys.exit(f"error: batch={data.batch_size}: an epoch has no more than {len(data.draws)} blocks")
    return data


def delivered(data: BlockDataModule, device: torch.device) -> Iterator[dict[str, Any]]:
    """Whole batches as our pipeline makes them for the network, without end."""
    loader, epoch = data.train_dataloader(), 0
    while True:
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            if len(batch["label"]) < data.batch_size:
                continue
            moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
            yield data.on_after_batch_transfer(moved, 0)
        epoch += 1


@dataclass
class BareLoop:
    """Forward, loss, backward, optimizer step, and nothing else; a network and an optimizer of its own."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: str
    layout: torch.memory_format

    @classmethod
    def like(cls, module: SegmentationModule, cfg: DictConfig, device: torch.device) -> BareLoop:
        """The same as a training module, which has its first weights, computes."""
        network = copy.deepcopy(module.network).to(device, memory_format=module.layout)  # type: ignore[call-overload]
        loop = cls(network, instantiate(cfg.optimizer)(network), device, cfg.trainer.precision, module.layout)
        if cfg.compile:
            loop.network = torch.compile(network)  # type: ignore[assignment]
        return loop

    def copy(self, cfg: DictConfig) -> BareLoop:
        """Another one, with weights and an optimizer of its own."""
        network = copy.deepcopy(getattr(self.network, "_orig_mod", self.network))
        twin = BareLoop(network, instantiate(cfg.optimizer)(network), self.device, self.precision, self.layout)
        if cfg.compile:
            twin.network = torch.compile(network)  # type: ignore[assignment]
        return twin

    def step(self, image_bcyx: Tensor, label_b: Tensor) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision.startswith("bf16")):
            loss = nn.functional.cross_entropy(self.network(image_bcyx).flatten(1), label_b)
        loss.backward()
        self.optimizer.step()

    def fixed(self, image_bcyx: Tensor, label_b: Tensor) -> Steps:
        """Steps on one batch."""
        image_bcyx = image_bcyx.contiguous(memory_format=self.layout)

        def run(count: int) -> None:
            for _ in range(count):
                self.step(image_bcyx, label_b)

        return run

    def fed(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Steps:
        """Steps on the batches of a DataLoader."""

        def run(count: int) -> None:
            for _ in range(count):
                image_bcyx, label_b = (t.to(self.device, non_blocking=True) for t in next(batches))
                self.step(image_bcyx.contiguous(memory_format=self.layout), label_b)

        return run


class LoopTurns(Callback):
    """Times the Trainer's own steps, from batch to batch, in turns with other sides, whose time does not count.

    Args:
        sides: What the Trainer takes turns with.
        sample: How long is measured.
        device: Where.
        warmup: Steps of each side before.

    Attributes:
        turns: Seconds for one step, by side; the Trainer's is "loop".
    """

    def __init__(self, sides: Mapping[str, Steps], sample: Sample, device: torch.device, warmup: int = 10) -> None:
        self.sides, self.sample, self.device, self.left = sides, sample, device, warmup
        self.warmup = warmup
        self.turns: dict[str, Turns] = {name: Turns() for name in ("loop", *sides)}
        self.steps, self.started = 0, 0.0

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> int | None:
        """Between two steps: warm up, count, or let the others have their turn; -1 ends the epoch."""
        self.left -= 1
        if self.left > 0:
            return None
        now = self._now()
        if self.steps:
            self.turns["loop"].append((now - self.started) / self.steps)
        elif self.started:  # the warm-up's last step tells how many fill a turn
            self.steps = max(1, round(self.sample.seconds / self.sample.turns / (now - self.started)))
            for run in self.sides.values():
                run(self.warmup)
        if len(self.turns["loop"]) == self.sample.turns:
            trainer.should_stop = True
            return -1
        if self.steps:
            self._others()
        self.left, self.started = self.steps or 1, self._now()
        return None

    def _others(self) -> None:
        for name, run in self.sides.items():
            start = self._now()
            run(self.steps)
            self.turns[name].append((self._now() - start) / self.steps)
        time.sleep(SETTLE)

    def _now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()


def time_loop(
    cfg: DictConfig,
    data: BlockDataModule,
    others: Callable[[BareLoop], Mapping[str, Steps]],
    sample: Sample,
    folder: Path,
) -> dict[str, Turns]:
    """Seconds for a step of the Trainer's loop, as `train.py` builds it, and of other sides."""
    quiet = {"max_epochs": 1_000_000, "limit_val_batches": 0}
    trainer = build_trainer(cfg, folder, **quiet)
    module = SegmentationModule(
        instantiate(cfg.network),
        {},
        instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        channels_last=cfg.channels_last,
        compile=cfg.compile,
    )
    device = trainer.strategy.root_device
    turns = LoopTurns(others(BareLoop.like(module, cfg, device)), sample, device)
    trainer.callbacks.append(turns)  # type: ignore[attr-defined]
    trainer.fit(module, datamodule=data)
    return turns.turns
