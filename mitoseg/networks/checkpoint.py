"""Read a checkpoint as data, and build its network without running what a stranger wrote into it.

A checkpoint is a Lightning checkpoint that loads with ``weights_only=True`` and has one more entry, `KEY`, a plain
dict with all that prediction needs. Its network config names a class; a hostile file could name ``os.system`` there.
So a name must resolve inside `ALLOWED` and be an ``nn.Module`` subclass defined there, and its arguments must be
plain data: no nested targets, no ``_args_``, no interpolations. ``trust=True`` lifts the rule on where a class lives.
"""

from __future__ import annotations

import importlib
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mitoseg.errors import UserError
from mitoseg.networks.bundle import SUFFIX, bundled, read_weights

KEY = "mitoseg"
"""The entry of a checkpoint that prediction reads."""
FORMAT = 2
"""Version of that entry. 2 names the prediction method, the cost of lower precision and the version of mitoseg."""
ALLOWED = ("mitoseg.networks", "monai.networks.nets")
NOT_READABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError),
    *(TypeError, AttributeError, AssertionError, struct.error),  # torch's unpickler meets bytes that are no pickle
)
"""What loading a file raises that is no checkpoint."""


@dataclass(frozen=True)
class Model:
    """A network and all that prediction needs to use it.

    Attributes:
        network: In eval mode, on the CPU.
        config: The network's config: ``_target_`` and plain keyword arguments.
        normalization: ``mean`` and ``std`` of the training voxels.
        channels: How slices become input channels.
        voxel_size: (z, y, x) in nm of the training volume, or None.
        calibration: ``prior_shift``, ``temperature`` and ``bias`` of the log-odds.
        threshold: Probability that maximises the foreground JAC on the validation slabs.
        record: The whole entry as it stands in the file.
    """

    network: nn.Module
    config: Mapping[str, Any]
    normalization: Mapping[str, float]
    channels: str
    voxel_size: tuple[float, float, float] | None
    calibration: Mapping[str, float]
    threshold: float
    record: Mapping[str, Any]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint file with ``weights_only=True``, or weights from safetensors.

    Raises:
        UserError: There is no such file, it is no checkpoint, or it is not one of mitoseg's.
    """
    remedy = "give a best.ckpt or last.ckpt that `train` wrote"
    if not Path(path).is_file():
        known = f", or one of the models that come along: {', '.join(bundled())}" if bundled() else ""
        raise UserError("no such checkpoint", str(path), remedy + known)
    if Path(path).suffix == SUFFIX:
        weights, record = read_weights(path)
        if not isinstance(record, dict):
            raise UserError("the weights were not written by mitoseg", str(path), "give a file of `mitoseg export`")
        return {KEY: migrate(record), "state_dict": {f"network.{name}": w for name, w in weights.items()}}
    try:
        with warnings.catch_warnings(action="ignore"):  # torch's advice on odd pickles; the error below says enough
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except NOT_READABLE as error:
        raise UserError("not a checkpoint that is safe to load", str(path), remedy) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), dict):
        raise UserError("the checkpoint was not written by mitoseg", str(path), remedy)
    return checkpoint | {KEY: migrate(checkpoint[KEY])}


def migrate(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `KEY` of a checkpoint in today's format; one of an older format is brought up to it.

    Raises:
        UserError: The format is a newer one, or none that ever was.
    """
    found = record.get("format")
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        remedy = "upgrade mitoseg, a newer version wrote it" if newer else "train again, or use another checkpoint"
        raise UserError(f"the checkpoint's format is not one of 1 to {FORMAT}", found, remedy)
    defaults: dict[str, Any] = {"version": None, "method": "auto", "precision": {}} if found == 1 else {}
    return {**defaults, **record, "format": FORMAT}


def load_model(path: str | Path, *, trust: bool = False) -> Model:
    """Read a checkpoint and build its network with the trained weights.

    Args:
        path: A checkpoint file.
        trust: Allow network classes from outside mitoseg and MONAI. Only for files from people you trust.

    Raises:
        UserError: The file, its config or its weights cannot be used; see `read_checkpoint` and `build_network`.
    """
    checkpoint = read_checkpoint(path)
    record = checkpoint[KEY]
    try:
        network = build_network(record["network"], trust=trust)
        prefix = "network."
        weights = checkpoint["state_dict"].items()
        network.load_state_dict({k[len(prefix) :]: v for k, v in weights if k.startswith(prefix)})
        voxel_size = record["voxel_size"] and tuple(float(v) for v in record["voxel_size"])
        return Model(
            network=network.eval(),
            config=record["network"],
            normalization=record["normalization"],
            channels=record["channels"],
            voxel_size=voxel_size,
            calibration=record["calibration"],
            threshold=float(record["threshold"]),
            record=record,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(
            f"the checkpoint is incomplete ({reason})", str(path), "train again, or use another"
        ) from error


def build_network(config: Mapping[str, Any], *, trust: bool = False) -> nn.Module:
    """Build a network from a config that came with a file, treating the config as data.

    Args:
        config: ``_target_`` and plain keyword arguments.
        trust: Allow classes from outside `ALLOWED`; they must be ``nn.Module`` subclasses all the same.

    Raises:
        UserError: The config names anything but such a class, or holds more than plain data.

    >>> build_network({"_target_": "os.system", "command": "echo"})
    Traceback (most recent call last):
    mitoseg.errors.UserError: the checkpoint names a network outside mitoseg.networks, ...
    """
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    _refuse_code(arguments)
    target = _resolve(str(config.get("_target_")), trust)
    if getattr(target, "nested", False):  # it builds networks itself, under the same rule, whatever the file says
        arguments["trust"] = trust
    network = target(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError("the checkpoint's network is not a torch module", config.get("_target_"), "do not use it")
    return network


def _resolve(name: str, trust: bool) -> type[nn.Module]:
    module_name, _, class_name = name.rpartition(".")
    remedy = "do not use this file, or pass trust=true if you know who wrote it"
    if not (trust or _inside(module_name)):
        raise UserError(f"the checkpoint names a network outside {', '.join(ALLOWED)}", name, remedy)
    try:
        target = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError("the checkpoint names a network that does not exist", name, remedy) from error
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise UserError("the checkpoint's network is not a torch module", name, "do not use this file")
    if not (trust or _inside(target.__module__)):
        raise UserError(f"the checkpoint names a network outside {', '.join(ALLOWED)}", name, remedy)
    return target


def _inside(module_name: str) -> bool:
    return any(module_name == allowed or module_name.startswith(allowed + ".") for allowed in ALLOWED)


def _refuse_code(value: object, where: str = "network") -> None:
    """Raise unless a config value is plain data all the way down."""
    remedy = "do not use this file"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or key.startswith("_"):
                raise UserError(f"the checkpoint's config has a forbidden key in {where}", key, remedy)
            _refuse_code(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_code(item, f"{where}[{index}]")
    elif isinstance(value, str) and ("${" in value or "hydra." in value):
        raise UserError(f"the checkpoint's config has an interpolation in {where}", value, remedy)
    elif not isinstance(value, str | int | float | bool | None):
        raise UserError(f"the checkpoint's config is not plain data in {where}", type(value).__name__, remedy)
