"""Weights as safetensors, which hold numbers and text and nothing that could run; and the models that come along.

    model.safetensors    the network's weights by name; kernels in half precision
      metadata           ``mitoseg``: the entry of a checkpoint that prediction reads, as JSON
                         ``names``: for each name of a tensor, that under which it is written
                         ``sha256``: of all of this, since the format has no checksum of its own

A model that comes along lies in ``mitoseg/models/<name>/``, with its card beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mitoseg.errors import UserError

SUFFIX = ".safetensors"
FOLDER = Path(__file__).parents[1] / "models"
DEFAULT = "epfl-unet25d"
"""The model that predicts where no checkpoint is named."""


def bundled() -> list[str]:
    """Names of the models that come along."""
    return sorted(path.parent.name for path in FOLDER.glob(f"*/model{SUFFIX}"))


def find_weights(name: str | os.PathLike[str] | None) -> Path:
    """The file that ``checkpoint=`` means: a path, an exported folder, a model that comes along, the default.

    >>> find_weights("run/best.ckpt").name
    'best.ckpt'
    """
    chosen = DEFAULT if name is None else os.fspath(name)
    if chosen in bundled():
        return FOLDER / chosen / f"model{SUFFIX}"
    inside = Path(chosen) / f"model{SUFFIX}"
    return inside if inside.is_file() else Path(chosen)


def write_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write weights and all that prediction needs to know of them.

    Args:
        path: Where to; it is overwritten.
        weights: Of the network, by name.
        record: Plain data, a checkpoint's entry `mitoseg.networks.checkpoint.KEY`.
    """
    first: dict[int, str] = {}  # a tensor that goes by several names is written once
    names = {name: first.setdefault(w.data_ptr(), name) if w.numel() else name for name, w in weights.items()}
    kept = {name: weights[name] for name in dict.fromkeys(names.values())}
    small = {name: (w.half() if w.is_floating_point() and w.ndim > 1 else w).contiguous() for name, w in kept.items()}
    metadata = {"mitoseg": json.dumps(record), "names": json.dumps(names)}
    save_file(small, os.fspath(path), metadata=metadata | {"sha256": _digest(metadata, small)})


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """What `write_weights` wrote, in full precision again.

    Raises:
        UserError: It is no such file, or it is damaged.
    """
    remedy = "give a file that `mitoseg export` wrote"
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        told = metadata.pop("sha256", None)  # files of earlier versions have none, but those that come along do
        if (told or FOLDER.resolve() in Path(path).resolve().parents) and told != _digest(metadata, kept):
            raise UserError(
                "the weights are damaged, their checksum is wrong", str(path), "export or fetch them again"
            )
        record, names = (json.loads(metadata.get(key, "null")) for key in ("mitoseg", "names"))
        full = {name: w.float() if w.dtype == torch.float16 else w for name, w in kept.items()}
        weights = {name: full[source] for name, source in (names or dict(zip(full, full, strict=True))).items()}
    except (SafetensorError, OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise UserError("not a file of weights that can be read", str(path), remedy) from error
    return weights, record


def _digest(metadata: Mapping[str, str], weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of weights with their names, kinds and shapes, and of what is told of them."""
    found = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, weight in sorted(weights.items()):
        found.update(json.dumps([name, str(weight.dtype), list(weight.shape)]).encode())
        found.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
