"""Stored predictions of one volume, averaged: of networks that no checkpoint can join, as one on slices and one in 3D.

a.tif   0.9 0.2        log-odds   2.2 -1.4
b.tif   0.7 0.1                   0.8 -2.2      mean   1.5 -1.8   ->   0.82 0.14
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from scipy.special import expit

from mitoseg.cli.launch import run_dir
from mitoseg.errors import UserError
from mitoseg.evaluation import Decision, decide
from mitoseg.geometry import Box, slabs
from mitoseg.progress import progress
from mitoseg.provenance import collect
from mitoseg.storage import write_json
from mitoseg.volumes import Volume, check_volume_output, create_volume, open_volume

CERTAIN = 1e-7
"""How far from 0 and 1 a probability is kept: its log-odds would be infinite."""
_SLAB = 2**24  # voxels at a time


def average_predictions(cfg: DictConfig) -> None:
    """Write the mean of the predictions' log-odds as probabilities; its threshold is the mean of theirs.

    Args:
        cfg: The composed config: ``predictions``, ``output``, ``overwrite``.

    Raises:
        UserError: A volume or an option is no good, or the volumes do not lie voxel on voxel.
    """
    paths = [str(path) for path in cfg.predictions]
    check_volume_output(str(cfg.output), cfg.overwrite)
    volumes = [open_volume(path) for path in paths]
    decisions = check_predictions(volumes)
    first = volumes[0]
    threshold = float(np.mean([decision.threshold for decision in decisions]))
    metadata = {"kind": "probability", "threshold": threshold, "scale": 1}
    metadata |= {key: first.info.metadata[key] for key in ("padding",) if key in first.info.metadata}
    options = {"voxel_size": first.voxel_size, "metadata": metadata, "overwrite": cfg.overwrite}
    with (
        create_volume(str(cfg.output), first.shape, np.float32, **options) as writer,
        progress("averaging", first.box.size, unit="voxels") as task,
    ):
        for slab in slabs(first.box, max(1, _SLAB // (first.shape[1] * first.shape[2]))):
            writer.write(slab, _mean(volumes, decisions, slab))
            task.advance(slab.size)
    write_json(run_dir() / "provenance.json", collect(predictions=paths, output=str(cfg.output), threshold=threshold))
    Console().print(f"mean of {len(paths)} predictions in {cfg.output}", soft_wrap=True, markup=False)


def check_predictions(volumes: Sequence[Volume]) -> list[Decision]:
    """What the values of each prediction mean.

    Raises:
        UserError: There are fewer than two, shapes differ, or one holds no probabilities.
    """
    places = [Path(volume.path).resolve() for volume in volumes]
    if len(set(places)) < max(2, len(places)):
        remedy = "give two or more, each once: predictions=[A,B]"
        raise UserError("a mean needs predictions that differ", [volume.path for volume in volumes], remedy)
    shapes = {volume.path: volume.shape for volume in volumes}
    if len(set(shapes.values())) > 1:
        raise UserError("the predictions differ in shape", shapes, "give predictions of one volume")
    decisions = [decide(volume) for volume in volumes]
    for volume, decision in zip(volumes, decisions, strict=True):
        if decision.kind != "probability":
            remedy = "predict it again with save=probability"
            raise UserError(f"a mean needs probabilities, this is a {decision.kind}", volume.path, remedy)
    return decisions


def _mean(volumes: Sequence[Volume], decisions: Sequence[Decision], box: Box) -> np.ndarray:
    """Probabilities of a box, by the mean of the log-odds."""
    total = np.zeros(box.shape, np.float32)
    for volume, decision in zip(volumes, decisions, strict=True):
        values = volume.read(box)
        decision.foreground(values)  # refuses what is no probability
        if values.dtype.kind == "f":
            edge = np.float32(CERTAIN * decision.scale)
            values = np.clip(values.astype(np.float32), edge, np.float32(decision.scale) - edge)
        total += decision.log_odds(values).astype(np.float32)
    mean: np.ndarray = expit(total / len(volumes))
    return mean
