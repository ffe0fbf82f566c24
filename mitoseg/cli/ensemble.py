"""``ensemble``: several checkpoints in, one that predicts with the mean of them out; or the same for predictions."""

from __future__ import annotations

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from mitoseg.cli.averaging import average_predictions
from mitoseg.cli.cleaning import chosen_steps
from mitoseg.cli.launch import run_dir
from mitoseg.cli.scoring import score_checkpoint
from mitoseg.errors import UserError
from mitoseg.networks.checkpoint import KEY, load_model
from mitoseg.provenance import collect
from mitoseg.storage import atomic_output, check_output, write_json
from mitoseg.training.combine import combine

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> float | None:
    """Combine checkpoints; with a data set, choose calibration and threshold on its validation slabs, and score.

    Returns:
        The foreground JAC on the validation slabs, None without a data set.

    Raises:
        UserError: A checkpoint or an option is no good, or the checkpoints do not fit together.
    """
    paths = check_options(cfg)
    if cfg.predictions is not None:
        average_predictions(cfg)
        return None
    checkpoint = combine({path: load_model(path, trust=cfg.trust) for path in paths})
    threshold = checkpoint[KEY]["threshold"]
    folder = run_dir()
    path = folder / "checkpoints" / "best.ckpt"
    with atomic_output(path, overwrite=True) as temporary:
        torch.save(checkpoint, temporary)
    sums = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths}
    about: dict[str, Any] = {"members": sums, "output": cfg.output}
    validation = None
    if cfg.get("data"):
        recipe = instantiate(cfg.data, window=32, tile=None).recipe
        recipe.prepare()
        splits = recipe.splits()
        about["data"] = dict(splits.provenance)
        options = {key: cfg[key] for key in ("method", "accelerator", "test", "figures", "save_overlays", "trust")}
        validation = score_checkpoint(path, folder, splits, steps=chosen_steps(cfg), **options)["validation"]
    else:
        log.warning("no data= to choose by: the threshold is the mean of the members', %.3f", threshold)
    with atomic_output(cfg.output, overwrite=cfg.overwrite) as temporary:
        shutil.copyfile(path, temporary)
    write_json(folder / "provenance.json", collect(**about))
    Console().print(f"{len(paths)} networks in {cfg.output}", soft_wrap=True, markup=False)
    return None if validation is None else float(validation["jaccard_foreground"])  # type: ignore[arg-type]


def check_options(cfg: DictConfig) -> list[str]:
    """The paths of the checkpoints or predictions; refuse what cannot be, before anything is read.

    Raises:
        UserError: A path or a switch is no good, or the output exists or is one of the checkpoints.
    """
    given = cfg.checkpoints if cfg.predictions is None else cfg.predictions
    if cfg.checkpoints is not None and cfg.predictions is not None:
        raise UserError("both checkpoints= and predictions= are given", list(given), "give one of the two")
    if not given or isinstance(given, str):
        what = "checkpoints" if cfg.predictions is None else "predictions"
        raise UserError(f"an ensemble needs two {what} or more", given, f"give {what}=[A,B,C]")
    if not cfg.output:
        raise UserError("output has no value", None, "add output=... to the command")
    for key in ("overwrite", "trust", "test"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    paths = [str(path) for path in given]
    places = [Path(path).resolve() for path in paths]
    if len(set(places)) < len(places):
        raise UserError("a file is given twice", paths, "give each one once")
    if Path(cfg.output).resolve() in places:
        raise UserError("the output is one of the inputs", cfg.output, "choose another name")
    check_output(cfg.output, cfg.overwrite)
    return paths
