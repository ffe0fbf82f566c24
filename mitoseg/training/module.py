"""The LightningModule: blocks or tiles in, validation slices scored, a checkpoint for prediction out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, distributed, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import mitoseg
from mitoseg.datasets.base import Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Prediction, choose_method, log_odds_in_memory, predict_volume
from mitoseg.inference.precision import has_bf16
from mitoseg.metrics.calibration import Calibration, choose_decision, evened, prior_shift, reliability_bins
from mitoseg.metrics.counts import scores
from mitoseg.metrics.histogram import BINS, average_precision, curve, logit_histogram
from mitoseg.metrics.torch_metrics import BlockCounts, LogitHistogram, as_counts, block_scores
from mitoseg.networks import DenseForm, Ensemble
from mitoseg.networks.checkpoint import FORMAT, KEY, Model, build_network, migrate
from mitoseg.networks.fine_tuning import hold_frozen
from mitoseg.networks.kinds import BlockNetwork, dimensions, input_channels
from mitoseg.storage import atomic_output
from mitoseg.training.checkpointing import capture_ranks, check_restored, restore
from mitoseg.training.optimizers import adamw
from mitoseg.volumes import CHANNEL_OFFSETS, Normalization

log = logging.getLogger(__name__)
STATE = "mitoseg_training"  # entry of a checkpoint with what a run needs to resume and prediction does not
OptimizerFactory = Callable[[nn.Module], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


class SegmentationModule(LightningModule):
    """Train a network and score it on whole slices of the validation slabs.

    A block network is trained on blocks, or, as its dense form, on tiles; any other network on tiles. After each
    validation the log-odds are corrected for the prior of the batches and calibrated, and the threshold is chosen that
    maximises the foreground JAC; all of it goes into the checkpoint.

    It works with any datamodule whose batches are dicts of

    - training: ``image`` float32 (B, C, Y, X) or (B, C, Z, Y, X), normalised; ``label`` int64 of 0, 1 and 255
      (ignored), (B,) for blocks, else (B, Y, X) or (B, Z, Y, X); optionally ``weight``, a factor of the loss;
    - validation, one item at a time: ``image_cyx`` and ``label_yx``, or, for a network on volumes, ``image_czyx``,
      ``label_zyx`` and ``first``, the slice of the image at which the labels start;

    and which has, once it is set up, an attribute ``normalization``, a `mitoseg.volumes.Normalization`. Optional
    attributes are ``channels`` (how slices become input channels), ``voxel_size`` ((z, y, x) in nm),
    ``grey_quantiles``, ``normalize`` (how volumes to be predicted are normalised), ``validation_domains`` (of each
    region: the score is then the mean over domains), and the share of mitochondria among all that may be drawn,
    ``prior``, and in the batches, ``batch_prior``.

    The ``network`` maps an image to scores (B, 2, ...), in training also of several levels, (B, levels, 2, ...);
    ``network_config``, ``_target_`` (a class of mitoseg or MONAI) and arguments, rebuilds it from a checkpoint, and
    builds it where none is given. The optimizer is made from the network, the schedule, stepped every batch, from the
    optimizer and the number of steps; the loss takes scores (B, 2, ...) and labels (B, ...) of 0, 1 and 255 (ignored).
    ``method`` is how whole slices are predicted in validation (``auto``: strided, the fast one, for block networks),
    ``extended`` the epochs of each time that the finished run was extended, over which the schedule restarts, and
    ``compile`` may be a mode of ``torch.compile``.

    Raises:
        UserError: There is no config, or it names no network; in ``setup``, the datamodule lacks an attribute.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        network_config: Mapping[str, Any] | None = None,
        optimizer: OptimizerFactory = adamw,
        scheduler: SchedulerFactory | None = None,
        loss: nn.Module | None = None,
        method: str = "auto",
        extended: Sequence[int] = (),
        channels_last: bool = True,
        compile: bool | str = False,
        tiles: bool = False,
    ) -> None:
        super().__init__()
        if network_config is None:
            remedy = "give network_config={'_target_': 'mitoseg.networks.UNet', ...}"
            raise UserError("the network is not specified", network_config, remedy)
        network = build_network(network_config) if network is None else network
        self.network_config = dict(network_config)
        self.save_hyperparameters("network_config", "method", "channels_last", "tiles", logger=False)
        self.ndim = dimensions(network)
        last = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
        self.layout = last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer_factory, self.scheduler_factory = optimizer, scheduler
        self.loss = loss or nn.CrossEntropyLoss(ignore_index=255)
        fast = "strided" if method == "auto" and isinstance(network, BlockNetwork) else method
        self.method = choose_method(fast, network)
        self.extended = list(extended)
        self.block_counts, self.slice_counts = BlockCounts(), LogitHistogram()
        self.region_domains: list[str] = []
        self.calibration, self.threshold = Calibration(), 0.5
        self.record: dict[str, Any] = {}
        self.last_loss: Tensor | None = None
        self._resumed: dict[str, Any] = {}
        self.begun = False
        answering = DenseForm(network) if tiles and isinstance(network, BlockNetwork) else network
        self._step: Callable[[Tensor], Tensor] = answering.__call__  # a method, so that it is not registered twice
        if compile:
            self._step = torch.compile(answering.forward, mode=compile if isinstance(compile, str) else None)

    def setup(self, stage: str) -> None:
        """Take from the datamodule what a checkpoint records."""
        data = getattr(self.trainer, "datamodule", None)
        normalization, channels = getattr(data, "normalization", None), getattr(data, "channels", None)
        if not isinstance(normalization, Normalization):
            remedy = "give it an attribute normalization=mitoseg.volumes.Normalization(mean, std), of grey values"
            raise UserError("the datamodule does not say how images are normalised", type(data).__name__, remedy)
        if channels is None and input_channels(self.network) > 1:
            remedy = f"give it an attribute channels, one of {', '.join(CHANNEL_OFFSETS)}"
            raise UserError("the datamodule does not say how channels are made", type(data).__name__, remedy)
        voxel_size, prior = getattr(data, "voxel_size", None), getattr(data, "prior", 0.5)
        batch_prior = getattr(data, "batch_prior", prior)
        self.record = {
            "format": FORMAT,
            "version": mitoseg.__version__,
            "network": self.network_config,
            "normalization": {"mean": normalization.mean, "std": normalization.std},
            "grey_quantiles": getattr(data, "grey_quantiles", None),
            "channels": channels or "single",
            "voxel_size": voxel_size and list(voxel_size),
            "prior": {"positions": prior, "batches": batch_prior},
            "method": "auto",
            "precision": {},
        }
        if normalize := getattr(data, "normalize", None):
            self.record["normalize"] = normalize
        self.shift = prior_shift(prior, batch_prior)
        self.region_domains = list(getattr(data, "validation_domains", []))
        self.slice_counts = LogitHistogram(max(1, len(self.domains)))

    @property
    def domains(self) -> list[str]:
        """Those that are scored apart; none where the datamodule knows of no domains."""
        return sorted(set(self.region_domains))

    def forward(self, image_bcyx: Tensor) -> Tensor:
        """Scores of the network."""
        return self._step(image_bcyx)

    def on_train_start(self) -> None:
        """In a resumed run, restore the random generators of this rank; at the start of an extension, the rates."""
        if self._resumed:
            check_restored(self.trainer)
        states = self._resumed.pop("random", [])
        if self.global_rank < len(states):
            restore(states[self.global_rank])
        if self._resumed.pop("new_schedule", False):
            schedule = self.lr_schedulers()
            for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):  # type: ignore[union-attr]
                group["lr"] = rate
        self.begun = True

    def training_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Loss of one batch of blocks or tiles."""
        label = batch["label"]
        answers = self(batch["image"].contiguous(memory_format=self.layout))
        if label.ndim == 1:
            answers = answers.flatten(1)
        loss: Tensor = self.loss(answers, label)
        finest = answers if answers.ndim == label.ndim + 1 else answers[:, 0]
        self.block_counts.update(finest.detach(), label)
        self.last_loss = loss.detach()
        return loss * batch.get("weight", 1.0)

    def on_train_epoch_start(self) -> None:
        """Keep frozen layers as they are."""
        hold_frozen(self.network)

    def on_train_epoch_end(self) -> None:
        """Log the pooled block scores of the epoch."""
        found = block_scores(as_counts(self.block_counts.compute()))
        self.block_counts.reset()
        self.log_dict({f"train/{name}": value for name, value in found.items()}, sync_dist=True)

    def validation_step(self, batch: Mapping[str, Tensor], batch_index: int) -> Tensor:
        """Count one whole slice or slab; returns its raw log-odds (Y, X) or (Z, Y, X)."""
        deep = self.ndim == 3
        label, image = (batch["label_zyx"], batch["image_czyx"]) if deep else (batch["label_yx"], batch["image_cyx"])
        image = image[None].contiguous(memory_format=self.layout)
        log_odds, first = log_odds_in_memory(self.method, self.network, image), int(batch.get("first", 0))
        log_odds = log_odds[first : first + len(label)] if deep else log_odds[0]
        domain = self.domains.index(self.region_domains[int(batch["region"])]) if self.domains else 0
        self.slice_counts.update(log_odds, label, domain)
        return log_odds

    def on_validation_epoch_end(self) -> None:
        """Calibrate, choose the threshold, and log the pooled scores of the slices (counted over all ranks)."""
        counts = self.slice_counts.compute().cpu().numpy()
        self.slice_counts.reset()
        decision = choose_decision(counts, self.shift)
        self.calibration, self.threshold = decision.calibration, decision.threshold
        each = counts.reshape(-1, 2, BINS)
        counts = evened(each)
        self.curve, self.histogram = decision.curve, counts
        picked = scores(decision.counts)
        names = ("jaccard_foreground", "jaccard_background", "jaccard_mean", "precision", "recall")
        values = {name: picked[name] for name in names}
        if self.domains:
            found = [scores(curve(part).at(decision.raw_threshold))["jaccard_foreground"] for part in each]
            values |= {f"jaccard_{name}": value for name, value in zip(self.domains, found, strict=True)}
            values["jaccard_foreground"] = sum(found) / len(found)
        values["threshold"] = self.threshold
        values["average_precision"] = average_precision(self.curve)
        values["calibration_error"] = reliability_bins(counts, self.calibration).error
        self.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and its schedule from the factories."""
        optimizer = self.optimizer_factory(self.network)
        if self.scheduler_factory is None:
            return optimizer
        steps, epochs = self.trainer.estimated_stepping_batches, self.trainer.max_epochs
        if self.extended and epochs:  # the schedule runs over the last extension
            steps = math.ceil(steps / epochs) * self.extended[-1]
        schedule = self.scheduler_factory(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that prediction and a resumed run need, as plain data; every rank takes part."""
        chosen = {"calibration": asdict(self.calibration), "threshold": self.threshold}
        total = self.block_counts.counts.clone()
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(total)
        checkpoint[KEY] = self.record | chosen
        checkpoint[STATE] = {"extended": self.extended, "random": capture_ranks(), "block_counts": total.tolist()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the calibration and threshold of the last validation, and the state of a run that is resumed."""
        record = migrate(checkpoint[KEY])
        self.calibration, self.threshold = Calibration(**record["calibration"]), float(record["threshold"])
        if self._trainer is None:  # load_from_checkpoint: nothing is resumed
            return
        state = checkpoint.get(STATE, {})
        self._resumed["random"] = state.get("random", [])
        self.block_counts.load(state.get("block_counts", [0] * 4) if self.global_rank == 0 else [0] * 4)
        if len(state.get("extended", [])) < len(self.extended):
            self._resumed["new_schedule"] = True
            checkpoint["lr_schedulers"] = []
            kept = checkpoint["callbacks"].items()
            checkpoint["callbacks"] = {name: value for name, value in kept if not name.startswith("EarlyStopping")}


def count_log_odds(prediction: Prediction, regions: Sequence[Region]) -> npt.NDArray[np.int64]:
    """Raw log-odds of all regions, counted by class (2, bins); of several domains apart, (domains, 2, bins)."""
    domains: dict[str, npt.NDArray[np.int64]] = {}

    @dataclass
    class Counter:
        region: Region

        def write(self, box: Box, log_odds_zyx: npt.NDArray[Any], /) -> None:
            label_zyx = self.region.label.read(box.shift(self.region.box.start))
            total = domains.setdefault(self.region.domain, np.zeros((2, BINS), np.int64))
            total += logit_histogram(log_odds_zyx, label_zyx)

    for region in regions:
        predict_volume(replace(prediction, save="log_odds"), region.image, Counter(region), box=region.box)
    return (
        np.stack(list(domains.values())) if len(domains) > 1 else sum(domains.values(), np.zeros((2, BINS), np.int64))
    )


def finish_checkpoint(path: Path, prediction: Prediction, validation: Sequence[Region]) -> dict[str, Any]:
    """Choose calibration and threshold for a method and measure the cost of bfloat16, on the validation slabs.

    The prediction is calibrated with the prior shift of training; the checkpoint's new entries are returned.
    """
    hist = count_log_odds(replace(prediction, precision="fp32"), validation)
    decision = choose_decision(hist, prediction.calibration.prior_shift)
    precision: dict[str, Any] = {}
    device = next(prediction.network.parameters()).device
    if has_bf16(device):
        counted = count_log_odds(replace(prediction, precision="bf16"), validation)
        halved = curve(evened(counted.reshape(-1, 2, BINS)))
        counts = (decision.counts, halved.at(decision.raw_threshold))
        full, half = (scores(c)["jaccard_foreground"] for c in counts)
        precision["bf16"] = {"jaccard_drop": full - half, "jaccard_fp32": full, "device": device.type}
        log.info("bfloat16 costs %.5f of the JAC on validation (%.4f in float32)", full - half, full)
    entries = {
        "calibration": asdict(decision.calibration),
        "threshold": decision.threshold,
        "method": choose_method(prediction.method, prediction.network),
        "precision": precision,
    }
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint["mitoseg"] |= entries
    with atomic_output(path, overwrite=True) as temporary:
        torch.save(checkpoint, temporary)
    return entries


def combine(models: Mapping[str, Model]) -> dict[str, Any]:
    """The checkpoint of an ensemble from its members, by file; `finish_checkpoint` may choose a better threshold."""
    if len(models) < 2:
        raise UserError("an ensemble needs two checkpoints or more", list(models), "give checkpoints=[A,B,C]")
    for name, model in models.items():
        if isinstance(model.network, Ensemble):
            raise UserError("a checkpoint is already an ensemble", name, "give the checkpoints of its members")
    channels = {name: model.channels for name, model in models.items()}
    if len(set(channels.values())) > 1:
        raise UserError("the checkpoints differ in channels", channels, "combine networks of one kind")
    first = next(iter(models.values()))
    sizes = [model.voxel_size for model in models.values() if model.voxel_size]
    if len(set(sizes)) > 1:
        log.warning("the members were trained on voxels of different sizes: %s nm", sorted(set(sizes)))
    ways = {str(model.record.get("normalize", "checkpoint")) for model in models.values()}
    if len(ways) > 1:
        remedy = "combine networks of one kind"
        raise UserError("the checkpoints differ in how volumes are normalised", sorted(ways), remedy)
    members = []
    for model in models.values():
        member: dict[str, Any] = {
            "name": str(model.config["_target_"]),
            "arguments": {key: value for key, value in model.config.items() if key != "_target_"},
            "normalization": dict(model.normalization),
            "calibration": dict(model.calibration),
        }
        tile = getattr(model.network, "tile", None)
        members.append(member if tile is None else member | {"tile": list(tile)})
    arguments: dict[str, Any] = {"members": members, "normalization": dict(first.normalization)}
    network = Ensemble(**arguments, trust=True)  # `load_model` has judged their classes
    dimensions(network), input_channels(network), choose_method("auto", network)  # or they do not fit together
    weights: dict[str, Any] = {}
    for i, model in enumerate(models.values()):
        weights |= {f"network.members.{i}.network.{k}": v for k, v in model.network.state_dict().items()}
    record = {
        "format": FORMAT,
        "version": mitoseg.__version__,
        "network": {"_target_": "mitoseg.networks.Ensemble", **arguments},
        "normalization": dict(first.normalization),
        "channels": first.channels,
        "voxel_size": list(sizes[0]) if sizes else None,
        "calibration": asdict(Calibration()),
        "threshold": sum(model.threshold for model in models.values()) / len(models),
        "method": "auto",
        "precision": {},
        "normalize": ways.pop(),
        "members": [
            {"file": Path(name).name, "version": model.record.get("version"), "threshold": model.threshold}
            for name, model in models.items()
        ],
    }
    return {"state_dict": weights, KEY: record}
