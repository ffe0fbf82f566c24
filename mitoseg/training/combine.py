"""Several trained checkpoints as one checkpoint of an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mitoseg
from mitoseg.errors import UserError
from mitoseg.inference import choose_method
from mitoseg.inference.protocol import dimensions, input_channels
from mitoseg.metrics import Calibration
from mitoseg.networks import Ensemble
from mitoseg.networks.checkpoint import FORMAT, KEY, Model

log = logging.getLogger(__name__)


def combine(models: Mapping[str, Model]) -> dict[str, Any]:
    """The checkpoint of an ensemble; `mitoseg.networks.Ensemble` says what it answers.

    Its threshold is the mean of the members' and its own calibration changes nothing, until
    `mitoseg.training.finish.finish_checkpoint` chooses both on validation slabs.

    Args:
        models: The members, by the name of their file.

    Returns:
        What ``torch.save`` takes: ``state_dict``, and the entry `KEY` in today's format.

    Raises:
        UserError: There are fewer than two, one is an ensemble itself, or they do not fit together.
    """
    if len(models) < 2:
        raise UserError("an ensemble needs two checkpoints or more", list(models), "give checkpoints=[A,B,C]")
    for name, model in models.items():
        if isinstance(model.network, Ensemble):
            raise UserError("a checkpoint is an ensemble already", name, "give the checkpoints of its members")
    channels = {name: model.channels for name, model in models.items()}
    if len(set(channels.values())) > 1:
        raise UserError("the checkpoints differ in channels", channels, "combine networks of one kind")
    first = next(iter(models.values()))
    members = [_member(model) for model in models.values()]
    network = Ensemble(members, first.normalization, trust=True)  # `load_model` has judged their classes
    dimensions(network), input_channels(network), choose_method("auto", network)  # or they do not fit together
    weights: dict[str, Any] = {}
    for i, model in enumerate(models.values()):
        weights |= {f"network.members.{i}.network.{k}": v for k, v in model.network.state_dict().items()}
    config = {"_target_": "mitoseg.networks.Ensemble", "members": members, "normalization": dict(first.normalization)}
    record = {
        "format": FORMAT,
        "version": mitoseg.__version__,
        "network": config,
        "normalization": dict(first.normalization),
        "channels": first.channels,
        "voxel_size": _voxel_size(models),
        "calibration": asdict(Calibration()),
        "threshold": sum(model.threshold for model in models.values()) / len(models),
        "method": "auto",
        "precision": {},
        "members": [_origin(name, model) for name, model in models.items()],
    }
    return {"state_dict": weights, KEY: record}


def _member(model: Model) -> dict[str, Any]:
    """One member as `mitoseg.networks.Ensemble` takes it."""
    member = {
        "name": str(model.config["_target_"]),
        "arguments": {key: value for key, value in model.config.items() if key != "_target_"},
        "normalization": dict(model.normalization),
        "calibration": dict(model.calibration),
    }
    tile = getattr(model.network, "tile", None)
    return member if tile is None else member | {"tile": list(tile)}


def _origin(name: str, model: Model) -> dict[str, Any]:
    """What the checkpoint of an ensemble says of where a member came from."""
    return {"file": Path(name).name, "version": model.record.get("version"), "threshold": model.threshold}


def _voxel_size(models: Mapping[str, Model]) -> list[float] | None:
    """The first voxel size that is known; where another one is known, with a warning."""
    known = [model.voxel_size for model in models.values() if model.voxel_size]
    if len(set(known)) > 1:
        log.warning("the members were trained on voxels of different sizes: %s nm", sorted(set(known)))
    return list(known[0]) if known else None
