"""``ensemble``: combine checkpoints into one that predicts the mean of its members, or average stored predictions.

Stored predictions are averaged, by their log-odds, of networks that no checkpoint can join, as on slices and in 3D.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from scipy.special import expit

from mitoseg.errors import UserError
from mitoseg.evaluation import Decision, decide
from mitoseg.geometry import Box, slabs
from mitoseg.networks.checkpoint import KEY, find_weights, load_model
from mitoseg.progress import Tell, progress
from mitoseg.provenance import collect
from mitoseg.storage import atomic_output, check_output, write_json
from mitoseg.training.module import combine
from mitoseg.volumes import Volume, check_volume_output, create_volume, open_volume
from mitoseg.workflows.options import EnsembleOptions
from mitoseg.workflows.scoring import score_checkpoint

log = logging.getLogger(__name__)

CERTAIN = 1e-7
"""Probabilities are clipped this far from 0 and 1, where log-odds are infinite."""

_SLAB = 2**24  # voxels at a time


def run(options: EnsembleOptions, folder: Path, tell: Tell) -> float | None:
    """Combine checkpoints; given a data set, choose calibration and threshold on its validation slabs, and score.

    Returns:
        The foreground JAC on the validation slabs; None without a data set.

    Raises:
        UserError: A checkpoint or an option is invalid, or the checkpoints do not fit together.
    """
    members = [str(find_weights(name)) for name in options.checkpoints or []]
    paths, output = members or options.predictions or [], Path(options.output)
    places = [Path(path).resolve() for path in paths]
    if len(set(places)) < len(places):
        raise UserError("a file is given twice", paths, "give each file once")
    if output.resolve() in places:
        raise UserError("the output is one of the inputs", options.output, "choose another name")
    check_output(output, options.overwrite)
    if options.predictions is not None:
        average_predictions(paths, str(output), folder, overwrite=options.overwrite)
        tell(f"mean of {len(paths)} predictions in {output}")
        return None
    checkpoint = combine({path: load_model(path, trust=options.trust) for path in paths})
    threshold = checkpoint[KEY]["threshold"]
    path = folder / "checkpoints" / "best.ckpt"
    with atomic_output(path, overwrite=True) as temporary:
        torch.save(checkpoint, temporary)
    sums = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    about: dict[str, Any] = {"members": sums, "output": options.output}
    score = None
    if options.data.get("recipe"):
        recipe = instantiate(options.data, window=32, tile=None).recipe
        recipe.prepare()
        splits = recipe.splits()
        about["data"] = dict(splits.provenance)
        given: dict[str, Any] = {"accelerator": options.accelerator, "trust": options.trust}
        scores = score_checkpoint(path, folder, splits, options, tell, **given)
        score = float(scores["validation"]["jaccard_foreground"])
    else:
        log.warning("without data= no threshold can be chosen: using the mean of the members', %.3f", threshold)
    with atomic_output(output, overwrite=options.overwrite) as temporary:
        shutil.copyfile(path, temporary)
    write_json(folder / "provenance.json", collect(**about))
    tell(f"{len(paths)} networks in {output}")
    return score


def average_predictions(paths: Sequence[str], output: str, folder: Path, *, overwrite: bool) -> None:
    """Average the predictions' log-odds and write probabilities; the threshold is the mean of theirs."""
    check_volume_output(output, overwrite)
    volumes = [open_volume(path) for path in paths]
    if len(volumes) < 2:
        raise UserError("a mean needs different predictions", list(paths), "give two or more: predictions=[A,B]")
    shapes = {volume.path: volume.shape for volume in volumes}
    if len(set(shapes.values())) > 1:
        raise UserError("the predictions differ in shape", shapes, "give predictions of one volume")
    first, decisions = volumes[0], [decide(volume) for volume in volumes]
    for volume, decision in zip(volumes, decisions, strict=True):
        if decision.kind != "probability":
            remedy = "predict it again with save=probability"
            raise UserError(f"a mean needs probabilities, this is a {decision.kind}", volume.path, remedy)
    threshold = float(np.mean([decision.threshold for decision in decisions]))
    metadata = {"kind": "probability", "threshold": threshold, "scale": 1}
    metadata |= {key: first.info.metadata[key] for key in ("padding",) if key in first.info.metadata}
    about: dict[str, Any] = {"voxel_size": first.voxel_size, "metadata": metadata}
    with (
        create_volume(output, first.shape, np.float32, overwrite=overwrite, **about) as writer,
        progress("averaging", first.box.size, unit="voxels") as task,
    ):
        for slab in slabs(first.box, max(1, _SLAB // (first.shape[1] * first.shape[2]))):
            writer.write(slab, _mean(volumes, decisions, slab))
            task.advance(slab.size)
    write_json(folder / "provenance.json", collect(predictions=paths, output=output, threshold=threshold))


def _mean(volumes: Sequence[Volume], decisions: Sequence[Decision], box: Box) -> np.ndarray:
    """The probabilities of a box, averaged as log-odds."""
    total = np.zeros(box.shape, np.float32)
    for volume, decision in zip(volumes, decisions, strict=True):
        values = volume.read(box)
        decision.foreground(values)  # refuses values outside [0, 1]
        if values.dtype.kind == "f":
            edge = np.float32(CERTAIN * decision.scale)
            values = np.clip(values.astype(np.float32), edge, np.float32(decision.scale) - edge)
        total += decision.log_odds(values).astype(np.float32)
    mean: np.ndarray = expit(total / len(volumes))
    return mean
