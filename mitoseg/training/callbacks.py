"""Callbacks: checkpoints under fixed names, an estimate of what remains, pictures in TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from scipy.special import expit
from torch import Tensor

from mitoseg.training.module import BlockClassifier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[..., "Figure"]
"""From ``image_yx``, ``truth_yx`` and ``result_yx`` (bool) to a figure of them with the errors in colour."""


def checkpoints(folder: Path, monitor: str = "val/jaccard_foreground") -> list[ModelCheckpoint]:
    """Keep ``best.ckpt`` (highest validation score) and ``last.ckpt``, written anew after every validation."""
    fixed: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    return [
        ModelCheckpoint(filename="best", monitor=monitor, mode="max", **fixed),
        ModelCheckpoint(filename="last", **fixed),
    ]


class SaveOnException(Callback):
    """Write ``last.ckpt`` when the user interrupts training, so that Ctrl-C loses nothing.

    Args:
        folder: Where the checkpoints lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, whatever was trained so far."""
        if isinstance(exception, KeyboardInterrupt):
            trainer.save_checkpoint(self.folder / "last.ckpt")


class SlicePictures(Callback):
    """Pictures of a few validation slices and the precision-recall curve, into TensorBoard after each validation.

    Args:
        draw: Makes the figure of one slice.
        count: Slices, evenly spaced over the validation slabs.
    """

    def __init__(self, draw: Draw, count: int = 3) -> None:
        self.draw, self.count = draw, count
        self._kept: list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Mapping[str, Any],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the slice if it is one of the chosen."""
        total = int(trainer.num_val_batches[0])
        chosen = {round((i + 0.5) * total / self.count - 0.5) for i in range(self.count)}
        if trainer.is_global_zero and batch_idx in chosen and isinstance(outputs, Tensor):
            name = f"region {int(batch['region'])}, z {int(batch['z'])}"
            middle = batch["image_cyx"].shape[0] // 2
            image_yx, truth_yx = batch["image_cyx"][middle], batch["label_yx"]
            self._kept.append((name, image_yx.cpu().numpy(), truth_yx.cpu().numpy(), outputs.cpu().numpy()))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept, with the calibration and threshold of this validation."""
        kept, self._kept = self._kept, []
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not (boards and trainer.is_global_zero and isinstance(pl_module, BlockClassifier)):
            return
        board, step = boards[0], trainer.global_step
        for name, image_yx, truth_yx, log_odds_yx in kept:
            probability_yx = expit(pl_module.calibration.apply(log_odds_yx))
            figure = self.draw(image_yx, truth_yx, probability_yx >= pl_module.threshold, title=name, dpi=80)
            board.add_figure(f"validation/{name}", figure, step, close=False)
            board.add_image(f"validation probability/{name}", probability_yx, step, dataformats="HW")
        c = pl_module.curve
        picked = np.linspace(0, len(c.tp) - 1, 127).astype(int)
        tp, fp, fn, tn = (column[picked].astype(float) for column in (c.tp, c.fp, c.fn, c.tn))
        precision, recall = tp / np.maximum(tp + fp, 1), tp / np.maximum(tp + fn, 1)
        board.add_pr_curve_raw("validation/precision_recall", tp, fp, tn, fn, precision, recall, step, len(picked))


class Progress(RichProgressBar):
    """Lightning's rich progress bar, with the time that the whole run still needs."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._clock, self._first_step = time.monotonic(), trainer.global_step

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The logged scores, and ``left`` in minutes and seconds once there is something to go by."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        done = trainer.global_step - self._first_step
        total = trainer.estimated_stepping_batches
        if done >= 20 and total != float("inf"):
            left = (time.monotonic() - self._clock) / done * (total - trainer.global_step)
            metrics["left"] = f"{int(left) // 60}:{int(left) % 60:02d}"
        return metrics
