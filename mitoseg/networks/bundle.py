"""Weights as safetensors, which hold numbers and text and nothing that could run; and the models that come along.

    model.safetensors    the network's weights by name; kernels in half precision
      metadata           ``mitoseg``: the entry of a checkpoint that prediction reads, as JSON
                         ``names``: for each name of a tensor, that under which it is written

A model that comes along lies in ``mitoseg/models/<name>/``, with its card beside it.
"""

from __future__ import annotations

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
    save_file(small, os.fspath(path), metadata={"mitoseg": json.dumps(record), "names": json.dumps(names)})


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], Any]:
    """What `write_weights` wrote, in full precision again.

    Raises:
        UserError: It is no such file.
    """
    remedy = "give a file that `mitoseg export` wrote"
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            record, names = (json.loads(metadata.get(key, "null")) for key in ("mitoseg", "names"))
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        weights = {name: kept[source] for name, source in (names or dict(zip(kept, kept, strict=True))).items()}
    except (SafetensorError, OSError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise UserError("not a file of weights that can be read", str(path), remedy) from error
    return {n: w.float() if w.dtype == torch.float16 else w for n, w in weights.items()}, record
