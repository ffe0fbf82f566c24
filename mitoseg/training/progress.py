"""What a run shows while it goes on: blocks a second, the running score, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from torch import Tensor

from mitoseg.metrics.torch_metrics import block_scores
from mitoseg.training.module import SegmentationModule

SECONDS = 1.0
"""Between two looks at the scores: reading them makes the host wait for a GPU."""


class Throughput(Callback):
    """Logs the loss, the rate and the speed every ``log_every_n_steps`` steps, and at the other steps costs nothing.

    ``train/loss`` is that of one batch (on several devices: of the first one's part), ``train/blocks_per_second`` the
    speed of all devices since the log before. Validation does not count: the clock starts anew with the first batch
    after it.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=2)
        self._blocks = 0

    @property
    def speed(self) -> float | None:
        """Blocks a second between the last two marks; None before there are two."""
        if len(self._marks) < 2:
            return None
        (earlier, before), (later, after) = self._marks
        return (after - before) / (later - earlier)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Mapping[str, Any],
        batch_idx: int,
    ) -> None:
        """Count the blocks of this rank; the others have as many, give or take one."""
        self._blocks += len(batch["label"]) * trainer.world_size
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self._marks and (batch_idx + 1) % every:
            return
        self._marks.append((time.perf_counter(), self._blocks))
        told: dict[str, float] = {"epoch": trainer.current_epoch}
        if isinstance(pl_module, SegmentationModule) and pl_module.last_loss is not None:
            told["train/loss"] = float(pl_module.last_loss)
        if trainer.optimizers:
            told["train/learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        if self.speed is not None:
            told["train/blocks_per_second"] = self.speed
        for logger in trainer.loggers:
            logger.log_metrics(told, step=trainer.global_step - 1)  # counted as Lightning counts

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the time before."""
        self._marks.clear()


class Progress(RichProgressBar):
    """Lightning's rich progress bar, refreshed by the clock, with the run's speed, running score and time left.

    Args:
        throughput: Counts the blocks.
    """

    def __init__(self, throughput: Throughput) -> None:
        super().__init__(leave=False)
        self.throughput = throughput
        self._next = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._clock, self._first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:  # noqa: ANN401
        """Show the batch, if it is time to."""
        now = time.monotonic()
        if now >= self._next or trainer.is_last_batch:
            self._next = now + SECONDS
            super().on_train_batch_end(trainer, pl_module, *rest)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The scores, ``loss``, ``JAC`` of the epoch so far, ``blocks/s``, and ``left`` in minutes:seconds."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if isinstance(pl_module, SegmentationModule) and trainer.training:
            counts = pl_module.block_counts.here()
            if pl_module.last_loss is not None:
                metrics["loss"] = float(pl_module.last_loss)
            if counts.voxels:
                metrics["JAC"] = block_scores(counts)["block_jaccard"]
        if self.throughput.speed is not None:
            metrics["blocks/s"] = f"{self.throughput.speed:,.0f}"
        done, total = trainer.global_step - self._first_step, trainer.estimated_stepping_batches
        if done >= 20 and total != float("inf"):
            left = (time.monotonic() - self._clock) / done * (total - trainer.global_step)
            metrics["left"] = f"{int(left) // 60}:{int(left) % 60:02d}"
        return metrics
