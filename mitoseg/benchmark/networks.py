"""A trained network of a benchmark: what its run says of it, and whether it has learnt from the same voxels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mitoseg.benchmark.fitting import GIVEN_NOTE, OWN_NOTE
from mitoseg.benchmark.methods import Method
from mitoseg.benchmark.records import TRAIN
from mitoseg.errors import UserError
from mitoseg.storage import read_json

SAME_NOTE = "given, not trained here; its run learnt from the same regions of the same files"


def checkpoint_of(method: Method, folder: Path) -> Path:
    """The checkpoint that is scored: the given one, or that of the method's own training.

    Raises:
        UserError: There is none.
    """
    path = Path(method.checkpoint) if method.checkpoint is not None else folder / TRAIN / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UserError("no such checkpoint", str(path), "name a best.ckpt that train wrote")
    return path


def describe_run(method: Method, checkpoint: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """What ``provenance.json`` beside a checkpoint tells of its training.

    Args:
        method: Whose checkpoint it is.
        checkpoint: In ``checkpoints/`` of a run's folder, or anywhere.
        data: Provenance of the benchmark's own data.

    Returns:
        ``training_seconds`` and ``peak_memory`` where they are known, ``parameters``, ``trained_by`` and a note on the
        protocol.

    Raises:
        UserError: A method that was trained here has learnt from other regions.
    """
    found = read_json(checkpoint.resolve().parents[1] / "provenance.json")
    same = bool(found.get("data")) and training_data(found["data"]) == training_data(data)
    if method.checkpoint is None and not same:
        remedy = f"leave data.* out of methods.{method.name}.train; the benchmark sets them"
        raise UserError("the method was trained on another split than the benchmark's", method.name, remedy)
    note = OWN_NOTE if method.checkpoint is None else SAME_NOTE if same else GIVEN_NOTE
    return {
        "training_seconds": found.get("training_seconds"),
        "peak_memory": found.get("peak_memory") or {},
        "parameters": found.get("parameters"),
        "trained_by": {"commit": found.get("commit"), "arguments": found.get("arguments")},
        "protocol": note,
    }


def training_data(provenance: Mapping[str, Any]) -> tuple[object, object, object]:
    """What tells whether two runs have learnt from the same voxels, and chosen by the same."""
    regions = provenance.get("regions") or {}
    sums = sorted(file["sha256"] for file in provenance.get("files") or () if file["role"].startswith("train"))
    return regions.get("train"), regions.get("validation"), sums
