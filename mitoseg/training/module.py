"""The LightningModule: blocks in, whole validation slices scored, and a checkpoint that prediction can use alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import mitoseg
from mitoseg.inference import choose_method, slice_log_odds
from mitoseg.metrics import (
    Calibration,
    average_precision,
    choose_decision,
    expected_calibration_error,
    prior_shift,
    scores,
)
from mitoseg.metrics.torch_metrics import LogitHistogram, block_metrics
from mitoseg.volumes import Normalization

FORMAT = 1
"""Version of the entry that `BlockClassifier.record` writes into a checkpoint."""

OptimizerFactory = Callable[[nn.Module], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


class BlockData(Protocol):
    """What the module asks of the datamodule, once it is set up."""

    normalization: Normalization
    prior: float
    batch_prior: float
    channels: str

    @property
    def voxel_size(self) -> tuple[float, float, float] | None:
        """(z, y, x) in nm, or None."""


class BlockClassifier(LightningModule):
    """Train a block network and watch it on whole slices of the validation slabs.

    After each validation the log-odds are corrected for the prior of the batches, calibrated (temperature and bias),
    and the threshold that maximises the foreground JAC is kept; all of it goes into the checkpoint.

    Args:
        network: Maps ``image_bcyx`` of one window to ``logits_bcyx`` (B, 2, 1, 1).
        network_config: Plain config that rebuilds the network from a checkpoint.
        optimizer: From the network to its optimizer.
        scheduler: From the optimizer and the number of steps to a schedule, stepped every batch; or None.
        loss: From logits (B, 2) and labels (B,) to a scalar.
        method: How whole slices are predicted in validation.
    """

    def __init__(
        self,
        network: nn.Module,
        network_config: Mapping[str, Any],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        loss: nn.Module | None = None,
        method: str = "strided",
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network_config = dict(network_config)
        self.optimizer_factory, self.scheduler_factory = optimizer, scheduler
        self.loss = loss or nn.CrossEntropyLoss()
        self.method = choose_method(method, network)
        self.train_metrics = block_metrics("train/")
        self.slice_counts = LogitHistogram()
        self.calibration, self.threshold = Calibration(), 0.5
        self.record: dict[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Take from the datamodule what a checkpoint must carry."""
        data: BlockData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.record = {
            "format": FORMAT,
            "version": mitoseg.__version__,
            "network": self.network_config,
            "normalization": {"mean": data.normalization.mean, "std": data.normalization.std},
            "channels": data.channels,
            "voxel_size": data.voxel_size and list(data.voxel_size),
            "prior": {"positions": data.prior, "batches": data.batch_prior},
        }
        self.shift = prior_shift(data.prior, data.batch_prior)

    def forward(self, image_bcyx: Tensor) -> Tensor:
        """Scores of the network; see its own docstring."""
        logits_bcyx: Tensor = self.network(image_bcyx)
        return logits_bcyx

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of blocks."""
        image_bcyx = batch["image_bcyx"].contiguous(memory_format=torch.channels_last)
        logits_bc = self(image_bcyx).flatten(1)
        loss: Tensor = self.loss(logits_bc, batch["label_b"])
        with torch.no_grad():
            self.train_metrics.update(logits_bc.float().softmax(1)[:, 1], batch["label_b"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the pooled block scores of the epoch."""
        self.log_dict(self.train_metrics)

    def validation_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Count one whole slice; returns its raw log-odds (Y, X)."""
        image_bcyx = batch["image_cyx"][None].contiguous(memory_format=torch.channels_last)
        log_odds_yx = slice_log_odds(self.method, self.network, image_bcyx)[0]
        self.slice_counts.update(log_odds_yx, batch["label_yx"])
        return log_odds_yx

    def on_validation_epoch_end(self) -> None:
        """Calibrate, choose the threshold, and log the pooled scores of the slices (counted over all ranks)."""
        counts = self.slice_counts.compute().cpu().numpy()
        self.slice_counts.reset()
        decision = choose_decision(counts, self.shift)
        self.calibration, self.threshold = decision.calibration, decision.threshold
        self.curve = decision.curve
        picked = scores(decision.counts)
        names = ("jaccard_foreground", "jaccard_background", "jaccard_mean", "precision", "recall")
        values = {name: picked[name] for name in names}
        values["threshold"] = self.threshold
        values["average_precision"] = average_precision(self.curve)
        values["calibration_error"] = expected_calibration_error(counts, self.calibration)
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule from the factories."""
        optimizer = self.optimizer_factory(self.network)
        if self.scheduler_factory is None:
            return optimizer
        schedule = self.scheduler_factory(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that prediction needs, as plain data."""
        chosen = {"calibration": asdict(self.calibration), "threshold": self.threshold}
        checkpoint["mitoseg"] = self.record | chosen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take back the calibration and threshold of the last validation."""
        record = checkpoint["mitoseg"]
        self.calibration, self.threshold = Calibration(**record["calibration"]), float(record["threshold"])
