"""Pictures, curves and histograms in TensorBoard after each validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from scipy.special import expit
from torch import Tensor

from mitoseg.metrics.histogram import CENTRES
from mitoseg.training.module import SegmentationModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

PROBABILITIES = np.linspace(0, 1, 51)
"""Bounds of the bars in the histograms of probabilities."""

Draw = Callable[..., "Figure"]
"""From ``image_yx``, ``truth_yx`` and ``result_yx`` (bool) to a figure of them with the errors in colour."""


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
            picture = [tensor.float().cpu().numpy() for tensor in middle_slice(batch, outputs)]
            self._kept.append((name, picture[0], picture[1], picture[2]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what was kept, with the calibration and threshold of this validation."""
        kept, self._kept = self._kept, []
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not (boards and trainer.is_global_zero and isinstance(pl_module, SegmentationModule)):
            return
        board, step = boards[0], trainer.global_step
        for name, image_yx, truth_yx, log_odds_yx in kept:
            probability_yx = expit(pl_module.calibration.apply(log_odds_yx))
            figure = self.draw(image_yx, truth_yx, probability_yx >= pl_module.threshold, title=name, dpi=80)
            board.add_figure(f"validation/{name}", figure, step, close=False)
            board.add_image(f"validation probability/{name}", probability_yx, step, dataformats="HW")
        add_precision_recall(board, pl_module, step)
        add_histograms(board, pl_module, step)


def middle_slice(batch: Mapping[str, Any], outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image, label and log-odds (Y, X) of what was validated: the slice, or the middle one of the slab."""
    if "image_cyx" in batch:
        channels = batch["image_cyx"]
        return channels[len(channels) // 2], batch["label_yx"], outputs
    z = len(outputs) // 2
    return batch["image_czyx"][0, int(batch["first"]) + z], batch["label_zyx"][z], outputs[z]


def add_precision_recall(board: SummaryWriter, module: SegmentationModule, step: int) -> None:
    """The precision-recall curve of the last validation."""
    c = module.curve
    picked = np.linspace(0, len(c.tp) - 1, 127).astype(int)
    tp, fp, fn, tn = (column[picked].astype(float) for column in (c.tp, c.fp, c.fn, c.tn))
    precision, recall = tp / np.maximum(tp + fp, 1), tp / np.maximum(tp + fn, 1)
    board.add_pr_curve_raw("validation/precision_recall", tp, fp, tn, fn, precision, recall, step, len(picked))


def add_histograms(board: SummaryWriter, module: SegmentationModule, step: int) -> None:
    """How the calibrated probabilities of background and of mitochondria are spread."""
    probability = expit(module.calibration.apply(CENTRES))
    for name, count in zip(("background", "mitochondria"), module.histogram, strict=True):
        bars, _ = np.histogram(probability, PROBABILITIES, weights=count)
        total, square = float(count @ probability), float(count @ probability**2)
        board.add_histogram_raw(
            f"validation/probability of {name}",
            *(0.0, 1.0, int(count.sum()), total, square),
            PROBABILITIES[1:].tolist(),
            bars.tolist(),
            step,
        )
