"""Stop when the loss is no number any more, before a checkpoint holds what came of it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mitoseg.errors import UserError

SHOWN = 3
"""Blocks whose place the error line tells."""


class Positions(Protocol):
    """What the guard asks of the datamodule."""

    def batch_positions(self, epoch: int, batch: int) -> npt.NDArray[np.int64]:
        """Region, z, y, x of each block of a batch, (B, 4)."""
        ...


class FiniteLoss(Callback):
    """Ends training at the first loss that is NaN or infinite.

    On the CPU each loss is looked at before its gradients are computed. On a GPU that would make the host wait at
    every step, so there the first bad step is noted on the device, and looked up every ``log_every_n_steps`` steps and
    before anything is scored or saved.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[int, int, int]] = []
        self._bad: Tensor | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at a loss, or have the device do it."""
        place = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        if loss.device.type == "cpu":
            if not torch.isfinite(loss):
                raise not_finite(trainer, trainer.global_step, *place)
        else:
            self.note(loss, (trainer.global_step, *place))

    def note(self, loss: Tensor, place: tuple[int, int, int]) -> None:
        """Have the device remember the first loss that is not finite.

        Args:
            loss: A scalar.
            place: Step, epoch and batch.
        """
        number = len(self._seen)
        self._seen.append(place)
        if self._bad is None:
            self._bad = torch.full((), -1, device=loss.device)
        self._bad = torch.where((self._bad < 0) & ~torch.isfinite(loss.detach()), number, self._bad)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:  # noqa: ANN401 (Lightning's signature)
        """Ask the device from time to time."""
        if len(self._seen) >= trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._ask(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not score what a bad loss has left of the weights."""
        self._ask(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Never save what a bad loss has left of the weights."""
        self._ask(trainer)

    def _ask(self, trainer: Trainer) -> None:
        number = -1 if self._bad is None else int(self._bad)
        seen, self._seen, self._bad = self._seen, [], None
        if number >= 0:
            raise not_finite(trainer, *seen[number])


def not_finite(trainer: Trainer, step: int, epoch: int, batch: int) -> UserError:
    """The line about a batch whose loss is no number: its place in the run, its blocks, and what to do."""
    data: Positions = trainer.datamodule  # type: ignore[attr-defined]
    position_b4 = data.batch_positions(epoch, batch)
    shown = ", ".join(f"{r}:[{z},{y},{x}]" for r, z, y, x in position_b4[:SHOWN].tolist())
    more = f" and {len(position_b4) - SHOWN} more" if len(position_b4) > SHOWN else ""
    what = (
        f"the loss is not finite at step {step}, epoch {epoch}, batch {batch}, "
        f"whose blocks lie at region:[z,y,x] {shown}{more}"
    )
    remedy = "lower optimizer.lr, set trainer.gradient_clip_val=1, use trainer.precision=32-true, or look there"
    return UserError(what, None, f"{remedy}; last.ckpt is from before it")
