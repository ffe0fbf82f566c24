"""Read checkpoints and bundled models as data, and build their networks without running a stranger's code.

A checkpoint is a Lightning checkpoint that loads with ``weights_only=True`` and has one more entry, `KEY`, a plain
dict with all that prediction needs. Its network config names a class; a hostile file could name ``os.system`` there.
So a name must resolve inside `ALLOWED` and be an ``nn.Module`` subclass defined there, and its arguments must be
plain data: no nested targets, no ``_args_``, no interpolations, no paths, no numbers far above what its weights need.
It is built within `mitoseg.networks.bounds`. ``trust=True`` lifts these rules but those on what is plain data.

Bundled and exported models are safetensors, their kernels in half precision, with three texts as metadata:
``mitoseg`` (the entry `KEY` as JSON), ``names`` (for each tensor, the name under which it is written) and ``sha256``
of all of this, since the format has no checksum of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mitoseg.errors import UserError, as_path
from mitoseg.networks.bounds import REMEDY, Bounds, within

KEY = "mitoseg"  # the entry of a checkpoint that prediction reads
FORMAT = 2
"""Version of that entry. 2 names the prediction method, the cost of lower precision and the version of mitoseg."""
ALLOWED = ("mitoseg.networks", "monai.networks.nets")
_NOT_READABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError, zipfile.BadZipFile),
    *(TypeError, AttributeError, AssertionError, struct.error),  # torch's unpickler meets bytes that are no pickle
)
"""What loading a file raises that is no checkpoint."""
_NOT_BUILT = (
    *(LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
    *(ImportError, OSError, MemoryError),
)
"""What building a network raises whose arguments are wrong."""
_DEEPEST, _MOST_ITEMS = 20, 10**5  # of an entry `KEY`
_LEAST = 1e-30  # no number of a checkpoint is closer to zero where it divides, and none is further than its inverse
_PLAUSIBLE = 2**14  # no argument of a network is larger, unless one of its weights is as long


@dataclass(frozen=True)
class Model:
    """A network in eval mode, on the CPU, and all that prediction needs to use it."""

    network: nn.Module
    config: Mapping[str, Any]  # ``_target_`` and plain keyword arguments of the network
    normalization: Mapping[str, float]  # ``mean`` and ``std`` of the training voxels
    channels: str  # how slices become input channels
    voxel_size: tuple[float, float, float] | None  # (z, y, x) in nm of the training volume
    calibration: Mapping[str, float]  # ``prior_shift``, ``temperature`` and ``bias`` of the log-odds
    threshold: float  # probability that maximises the foreground JAC on the validation slabs
    record: Mapping[str, Any]  # the whole entry `KEY`


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint file with ``weights_only=True``, or weights from safetensors."""
    path = Path(path)
    remedy = "give a best.ckpt or last.ckpt written by `train`"
    if not path.is_file():
        known = f", or one of the bundled models: {', '.join(bundled())}" if bundled() else ""
        raise UserError("no such checkpoint", str(path), remedy + known)
    best = path.with_name("best.ckpt")
    if path.name != best.name and best.is_file():
        remedy = f"use the best one instead: {best}"
    if path.suffix == SUFFIX:
        weights, record = read_weights(path)
        if not isinstance(record, dict):
            raise UserError("the weights were not written by mitoseg", str(path), "give a file of `mitoseg export`")
        found = {KEY: record, "state_dict": {f"network.{name}": w for name, w in weights.items()}}
    else:
        try:
            if not _is_whole(path):
                raise UserError("the checkpoint is damaged, its checksum is wrong", str(path), remedy)
            with warnings.catch_warnings(action="ignore"):  # torch's advice on odd pickles
                found = torch.load(path, map_location="cpu", weights_only=True)
        except _NOT_READABLE as error:
            raise UserError("not a checkpoint that is safe to load", str(path), remedy) from error
    if not isinstance(found, dict) or not isinstance(found.get(KEY), dict):
        raise UserError("the checkpoint was not written by mitoseg", str(path), remedy)
    if not _is_plain(found[KEY], [_MOST_ITEMS]) or not _are_weights(found.get("state_dict")):
        raise UserError("the checkpoint contains more than weights and plain data", str(path), remedy)
    return {**found, KEY: migrate(found[KEY])}


def _is_whole(path: Path) -> bool:
    """Whether all that ``torch.load`` would use is as ``torch.save`` wrote it, by checksums and sizes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        claimed = sum(entry.file_size for entry in entries)
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        return stored and claimed <= path.stat().st_size and archive.testzip() is None


def _is_plain(value: object, left: list[int], depth: int = 0) -> bool:
    """Whether data are what JSON can say, not too deep, and not more items than there are ``left``."""
    left[0] -= 1
    if left[0] < 0 or depth > _DEEPEST:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item, left, depth + 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(item, left, depth + 1) for item in value)
    return isinstance(value, str | int | float | bool | None)


def _are_weights(found: object) -> bool:
    """Whether these are tensors by name, each with all of its numbers in memory."""
    return isinstance(found, dict) and all(
        isinstance(name, str)
        and isinstance(weight, Tensor)
        and weight.layout == torch.strided
        and weight.device.type == "cpu"
        and weight.numel() * weight.element_size() <= weight.untyped_storage().nbytes()
        for name, weight in found.items()
    )


def migrate(record: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `KEY` of a checkpoint in the current format, converted from an older one if need be."""
    found = record.get("format")
    if found not in range(1, FORMAT + 1):
        newer = isinstance(found, int) and found > FORMAT
        remedy = "upgrade mitoseg, a newer version wrote it" if newer else "train again, or use another checkpoint"
        raise UserError(f"the checkpoint's format is not one of 1 to {FORMAT}", found, remedy)
    defaults: dict[str, Any] = {"version": None, "method": "auto", "precision": {}} if found == 1 else {}
    return {**defaults, **record, "format": FORMAT}


def load_model(path: str | Path, *, trust: bool = False) -> Model:
    """Read a checkpoint and build its network with the trained weights.

    ``trust`` allows network classes from outside mitoseg and MONAI: only for files from people you trust.
    """
    checkpoint = read_checkpoint(path)
    record, prefix = checkpoint[KEY], "network."
    weights = {k[len(prefix) :]: v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        network = build_network(record["network"], trust=trust, weights=weights)
        own = network.state_dict()
        sound = all(w.is_floating_point() == own[k].is_floating_point() for k, w in weights.items() if k in own)
        if sound:
            network.load_state_dict(weights)
        model = Model(
            network=network.eval(),
            config=record["network"],
            normalization=record["normalization"],
            channels=record["channels"],
            voxel_size=record["voxel_size"] and tuple(float(v) for v in record["voxel_size"]),
            calibration=record["calibration"],
            threshold=float(record["threshold"]),
            record=record,
        )
        sound = sound and _is_sound(model)
    except _NOT_BUILT as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        what = f"the checkpoint is incomplete ({reason})"
        raise UserError(what, str(path), "train again, or use another") from error
    if not sound:
        raise UserError("the checkpoint contains invalid values", str(path), "train again, or use another")
    return model


def _is_sound(model: Model) -> bool:
    """Whether the numbers that scores go through are finite as float32, and positive or rising where they must be."""
    greys = model.record.get("grey_quantiles") or [0.0]
    voxel_size, scale = model.voxel_size or (1.0, 1.0, 1.0), model.calibration["temperature"]
    numbers = [*model.normalization.values(), *model.calibration.values(), *voxel_size, *greys]
    positive = min(model.normalization["std"], scale, *voxel_size) > _LEAST
    fitting = len(voxel_size) == 3 and isinstance(model.channels, str) and greys == sorted(greys)
    finite = all(abs(n) < 1 / _LEAST and not isinstance(n, bool) for n in numbers)
    return finite and positive and fitting and 0 <= model.threshold <= 1


def build_network(
    config: Mapping[str, Any], *, trust: bool = False, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a network from a config that came with a file, treating the config as data.

    ``trust`` allows ``nn.Module`` subclasses from outside `ALLOWED`. What building the network takes must be in
    proportion to its ``weights``.

    >>> build_network({"_target_": "os.system", "command": "echo"})
    Traceback (most recent call last):
    mitoseg.errors.UserError: the checkpoint names a network outside mitoseg.networks, ...
    """
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    largest = max([_PLAUSIBLE, *(n for w in (weights or {}).values() for n in w.shape)])
    _refuse_code(arguments, None if trust else largest)
    target = _resolve(str(config.get("_target_")), trust)
    if getattr(target, "nested", False):  # it builds networks itself, under the same rule, whatever the file says
        arguments["trust"] = trust
    with nullcontext() if trust else within(Bounds(None if weights is None else weights.values())):
        network = target(**arguments)
    if not isinstance(network, nn.Module):
        raise UserError("the checkpoint's network is not a torch module", config.get("_target_"), "do not use it")
    return network


def _resolve(name: str, trust: bool) -> type[nn.Module]:
    module_name, _, class_name = name.rpartition(".")
    outside = UserError(f"the checkpoint names a network outside {', '.join(ALLOWED)}", name, REMEDY)
    if not (trust or _inside(module_name)):
        raise outside
    try:
        target = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        if trust:
            what = f"the checkpoint's network cannot be imported ({type(error).__name__}: {error})"
            remedy = "add its folder: --config-dir mine, in Python sys.path.append('mine')"
            raise UserError(what, name, remedy) from error
        raise UserError("the checkpoint names a network that does not exist", name, REMEDY) from error
    if not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise UserError("the checkpoint's network is not a torch module", name, "do not use this file")
    if not (trust or _inside(target.__module__)):
        raise outside
    return target


def _inside(module_name: str) -> bool:
    return any(module_name == allowed or module_name.startswith(allowed + ".") for allowed in ALLOWED)


def _refuse_code(value: object, largest: int | None, where: str = "network") -> None:
    """Raise unless a config value is plain data; with ``largest`` also for paths, and for numbers above it."""
    remedy = "do not use this file"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str) or key.startswith("_"):
                raise UserError(f"the checkpoint's config has a forbidden key in {where}", key, remedy)
            _refuse_code(item, largest, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_code(item, largest, f"{where}[{index}]")
    elif isinstance(value, str) and ("${" in value or "hydra." in value):
        raise UserError(f"the checkpoint's config has an interpolation in {where}", value, remedy)
    elif isinstance(value, str) and largest is not None and ("/" in value or "\\" in value):
        raise UserError(f"the checkpoint's config has a path in {where}", value, REMEDY)
    elif isinstance(value, int | float) and largest is not None and not abs(value) <= largest:
        raise UserError(f"the checkpoint's config has a number in {where} above {largest}", value, REMEDY)
    elif not isinstance(value, str | int | float | bool | None):
        raise UserError(f"the checkpoint's config is not plain data in {where}", type(value).__name__, remedy)


SUFFIX = ".safetensors"
FOLDER = Path(__file__).parents[1] / "models"
DEFAULT = "epfl-unet25d"  # where no model is named, and there is no volume to choose one by
AUTO = "auto"  # the bundled model that suits the volume, see `mitoseg.workflows.suitable`


def bundled() -> list[str]:
    """Names of the bundled models."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/model{SUFFIX}"))


def find_weights(name: str | os.PathLike[str] | None) -> Path:
    """Find the file that ``checkpoint=`` means: a path, an exported folder, a bundled model, or the default.

    >>> find_weights("run/best.ckpt").name
    'best.ckpt'
    """
    chosen = DEFAULT if name is None else as_path(name)
    if chosen in bundled():
        return FOLDER / chosen / f"model{SUFFIX}"
    inside = Path(chosen) / f"model{SUFFIX}"
    return inside if inside.is_file() else Path(chosen)


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write a network's weights as safetensors, with a checkpoint's entry `KEY` as ``record``."""
    first: dict[int, str] = {}  # a tensor that goes by several names is written once
    names = {name: first.setdefault(w.data_ptr(), name) if w.numel() else name for name, w in weights.items()}
    kept = {name: weights[name] for name in dict.fromkeys(names.values())}
    small = {name: (w.half() if w.is_floating_point() and w.ndim > 1 else w).contiguous() for name, w in kept.items()}
    metadata = {"mitoseg": json.dumps(record), "names": json.dumps(names)}
    save_file(small, os.fspath(path), metadata=metadata | {"sha256": _digest(metadata, small)})


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """Read weights, in full precision again, and the record that `write_weights` wrote."""
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        stored = metadata.pop("sha256", None)  # files of earlier versions have none, but the bundled ones do
        if (stored or FOLDER.resolve() in Path(path).resolve().parents) and stored != _digest(metadata, kept):
            what = "the weights are damaged, their checksum is wrong"
            raise UserError(what, str(path), "export or fetch them again")
        record, names = (json.loads(metadata.get(key, "null")) for key in ("mitoseg", "names"))
        full = {name: w.float() if w.dtype == torch.float16 else w for name, w in kept.items()}
        weights = {name: full[source] for name, source in (names or dict(zip(full, full, strict=True))).items()}
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        remedy = "give a file written by `mitoseg export`"
        raise UserError("not a file of weights that can be read", str(path), remedy) from error
    return weights, record


def _digest(metadata: Mapping[str, str], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights with their names, types and shapes, and of their metadata."""
    found = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, weight in sorted(weights.items()):
        found.update(json.dumps([name, str(weight.dtype), list(weight.shape)]).encode())
        found.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
