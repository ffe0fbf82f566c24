"""A network of a benchmark: its checkpoint predicts the regions that are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mitoseg.benchmark import Method
from mitoseg.benchmark.data import scored_regions
from mitoseg.benchmark.measure import Cost, stage
from mitoseg.benchmark.networks import checkpoint_of, describe_run
from mitoseg.benchmark.records import prediction_path
from mitoseg.cli.scoring import predict_region
from mitoseg.datasets import Splits
from mitoseg.inference.prepare import make_prediction
from mitoseg.networks.checkpoint import load_model
from mitoseg.provenance import peak_memory


def predict_regions(
    method: Method,
    splits: Splits,
    folder: Path,
    *,
    part: str,
    prediction_method: str,
    accelerator: str,
    trust: bool,
    show: bool,
) -> dict[str, Any]:
    """Write the probabilities of the scored regions.

    Args:
        method: With a checkpoint, or trained in its folder.
        splits: Of the benchmark.
        folder: The method's.
        part: Of the data that is scored.
        prediction_method: How volumes are predicted.
        accelerator: Where.
        trust: As `load_model`.
        show: Progress on the terminal.

    Returns:
        Costs, of training as its run tells them, and a note on the protocol.

    Raises:
        UserError: There is no checkpoint, or it cannot be used.
    """
    path = checkpoint_of(method, folder)
    record = describe_run(method, path, splits.provenance)
    prediction = make_prediction(load_model(path, trust=trust), method=prediction_method, accelerator=accelerator)
    total = Cost()
    for i, region in enumerate(scored_regions(splits, part)):
        where = prediction_path(folder, part, i)
        with stage(f"predicting {part}_{i}", show=False) as cost:
            predict_region(where, region, prediction, f"{part}_{i}", show=show)
        total += cost
    here = {"process": peak_memory(), "device": _device_memory()}
    before = record["peak_memory"]
    memory = {key: max(before.get(key) or 0, value or 0) or None for key, value in here.items()}
    return {**record, **total.record("prediction"), "peak_memory": memory}


def _device_memory() -> int | None:
    """The most that torch has allocated on a GPU; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
