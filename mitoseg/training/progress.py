"""What a run shows while it goes on: blocks a second, the running score, and the time that is left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from torch import Tensor

from mitoseg.metrics.torch_metrics import block_scores
from mitoseg.progress import clock, lines
from mitoseg.training.checkpointing import SCORE
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
        """The scores, ``loss``, ``JAC`` of the epoch so far, ``blocks/s``, and the time ``left``."""
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
        if (left := time_left(trainer, self._clock, self._first_step)) is not None:
            metrics["left"] = clock(left)
        return metrics


class ProgressLines(ProgressBar):
    """Step, loss, validation JAC and time left as a line every half minute, where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._going_on = ExitStack()

    def disable(self) -> None:
        """Lightning asks further ranks to be silent; they start no lines."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the lines."""
        self._clock, self._first_step = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            self._going_on.enter_context(lines(partial(self.line, trainer, pl_module)))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No more lines."""
        self._going_on.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """No more lines."""
        self._going_on.close()

    def line(self, trainer: Trainer, module: LightningModule) -> str:
        """Such as ``step 1200, epoch 3 of 12, loss 0.1234, validation JAC 0.812, 0:12:30 left``."""
        told = [f"step {trainer.global_step}", f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"]
        if isinstance(module, SegmentationModule) and module.last_loss is not None:
            told.append(f"loss {float(module.last_loss):.4f}")
        if (score := trainer.callback_metrics.get(SCORE)) is not None:
            told.append(f"validation JAC {float(score):.3f}")
        if (left := time_left(trainer, self._clock, self._first_step)) is not None:
            told.append(f"{clock(left)} left")
        return ", ".join([*told, *(["validating"] if trainer.validating else [])])


def time_left(trainer: Trainer, start: float, first_step: int) -> float | None:
    """Seconds until the last step, by the speed since the first; None before that can be told."""
    done = trainer.global_step - first_step
    if done < 1 or (total := trainer.estimated_stepping_batches) == float("inf"):
        return None
    return (time.monotonic() - start) / done * (total - trainer.global_step)
