"""``predict``: a volume and a checkpoint in, a probability, a mask or instances of the same size out."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg import __version__
from mitoseg.cli.cleaning import chosen_steps
from mitoseg.cli.finishing import finish_instances, finish_mask
from mitoseg.cli.greys import adapt_greys
from mitoseg.cli.labelling import chosen_labelling
from mitoseg.cli.launch import run_dir
from mitoseg.cli.prediction import INSTANCES, make_prediction, predict_with_progress, progress_bar, staged_kind
from mitoseg.errors import UserError
from mitoseg.inference import Predictor, choose_method
from mitoseg.inference.memory import budget_bytes
from mitoseg.inference.precision import choose_compile
from mitoseg.networks.bundle import DEFAULT, find_weights
from mitoseg.networks.checkpoint import load_model
from mitoseg.provenance import collect
from mitoseg.storage import write_json
from mitoseg.volumes import Volume, VolumeInfo, open_volume
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.staging import StagedVolume
from mitoseg.volumes.writing import place

log = logging.getLogger(__name__)

IDENTITY = (
    *("input", "save", "dtype", "threshold", "method", "tta", "consensus"),
    *("overlap", "window_stride", "axes", "normalize"),
)
"""Options that make one command another than the next; a killed run is taken up by the same one alone."""
VOLATILE = ("input_state", "checkpoint_sha256", "mitoseg", "torch")
"""What may change between two runs of one command; then what was computed is out of date."""


def run(cfg: DictConfig) -> None:
    """Predict one volume; an unfinished prediction by the same command is taken up.

    Raises:
        UserError: The checkpoint, the volume, an option or the output is no good.
    """
    check_options(cfg)
    steps = chosen_steps(cfg)
    labelling = chosen_labelling(cfg)
    if steps is not None and cfg.save not in ("mask", INSTANCES):
        remedy = "give save=mask or save=instances, or postprocess=none"
        raise UserError("postprocess makes masks", f"save={cfg.save}", remedy)
    checkpoint = find_weights(cfg.checkpoint)
    if cfg.checkpoint is None:
        log.info("no checkpoint= is given: predicting with %s, see %s", DEFAULT, checkpoint.with_name("CARD.md"))
    model = load_model(checkpoint, trust=cfg.trust)
    volume, normalization = adapt_greys(cfg.normalize, open_input(cfg), model)
    prediction = make_prediction(
        model,
        **{key: cfg[key] for key in ("method", "overlap", "window_stride", "tta", "consensus")},
        **{key: cfg[key] for key in ("accelerator", "precision", "dtype", "threshold")},
        save=staged_kind(cfg.save, cfg.dtype, cleaned=steps is not None),
        tile=OmegaConf.to_container(cfg.tile) if OmegaConf.is_config(cfg.tile) else cfg.tile,
        normalization=normalization,
    )
    if cfg.save == INSTANCES:
        labelling.spacing(volume.voxel_size or prediction.voxel_size)
    predictor = Predictor(prediction, volume)
    stage = StagedVolume(cfg.output, identity(cfg, volume, predictor), volatile=VOLATILE, overwrite=cfg.overwrite)
    with stage:
        if not stage.moved:
            predict_staged(cfg, predictor, stage)
        if cfg.save == INSTANCES and not stage.moved:
            finish_instances(steps, labelling, predictor, stage)
        elif steps is not None and not stage.moved:
            finish_mask(steps, predictor, stage)
        else:
            with progress_bar("writing", volume.box.size, show=cfg.progress and stage.converts) as advance:
                stage.finish(advance)
    folder = run_dir()
    chosen = {"precision": prediction.precision, "device": str(predictor.device), **stage.decisions}
    write_json(
        folder / "provenance.json",
        collect(input=cfg.input, checkpoint=cfg.checkpoint, output=cfg.output, chosen=chosen),
    )
    console = Console()
    console.print(f"{cfg.save} of {volume.shape} voxels written to {cfg.output}", soft_wrap=True)
    console.print(f"threshold {prediction.threshold:.3f}; record of this run in {folder}", soft_wrap=True)


def check_options(cfg: DictConfig) -> None:
    """Refuse what would be taken for something else, and an output that would change the input.

    Raises:
        UserError: A path has no value, a switch is neither true nor false, or the output lies at or in the input.
    """
    for key in ("input", "output"):
        if not cfg[key]:
            raise UserError(f"{key} has no value", None, f"add {key}=... to the command")
    for key in ("overwrite", "trust", "progress"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    output, source = (Path(os.path.realpath(path)) for path in (place(cfg.output)[0], stored_in(cfg.input)))
    if output == source or source in output.parents or output in source.parents:
        where = "is the input itself" if output == source else "lies inside the input or around it"
        raise UserError(f"the output {where}", cfg.output, "choose another name")


def open_input(cfg: DictConfig) -> Volume:
    """The volume to predict.

    Raises:
        UserError: It cannot be read, or chunks of it are missing.
    """
    if cfg.missing_chunks not in ("error", "fill"):
        raise UserError("no such way to treat missing chunks", cfg.missing_chunks, "choose error or fill")
    volume = open_volume(cfg.input, axes=cfg.axes, voxel_size=cfg.voxel_size)
    if cfg.missing_chunks == "error":
        volume.check_complete()
    return volume


def predict_staged(cfg: DictConfig, predictor: Predictor, stage: StagedVolume) -> None:
    """Predict every tile that the stage does not hold yet."""
    volume = predictor.volume
    decisions = stage.decisions or decide(cfg, predictor)
    tile = tuple(decisions["tile"])
    log.info(
        "%s on %s, %s%s, tiles of %s voxels",
        decisions["method"],
        predictor.device,
        predictor.prediction.precision,
        ", compiled" if decisions["compile"] else "",
        " x ".join(map(str, tile)),
    )
    voxel_size = volume.voxel_size or predictor.prediction.voxel_size
    if volume.voxel_size is None and voxel_size is not None:
        log.warning("%s has no voxel size: taking the checkpoint's, %s nm; or give voxel_size=", cfg.input, voxel_size)
    metadata = {**predictor.prediction.metadata, "checkpoint": Path(cfg.checkpoint or DEFAULT).name}
    info = VolumeInfo(cfg.output, volume.shape, predictor.prediction.dtype, voxel_size, metadata)
    stage.start(info, tile, decisions)
    if stage.done:
        log.info("going on: %d of %d tiles are done", len(stage.done), stage.count)
    if decisions["compile"]:
        predictor.compile(tile)
    try:
        predict_with_progress(
            predictor,
            volume,
            stage,
            tile=tile,
            done=frozenset(stage.done),
            done_voxels=sum(part.size for part in stage.done),
            title=Path(cfg.input).name,
            show=cfg.progress,
        )
    except BaseException:
        if stage.done:
            log.warning("%d of %d tiles are kept: the same command goes on from there", len(stage.done), stage.count)
        raise


def decide(cfg: DictConfig, predictor: Predictor) -> dict[str, Any]:
    """Tile and compilation, chosen once for a volume and kept for when the command is run again."""
    predictor.operations((1, 1, 1))  # torch loads its compiler for this, which the budget must know of
    tile = predictor.choose_tile(budget_bytes(cfg.memory))
    method = choose_method(cfg.method, predictor.prediction.network)
    compiled = choose_compile(cfg.compile, predictor.device, predictor.operations(tile))
    return {"tile": list(tile), "compile": compiled, "method": method}


def identity(cfg: DictConfig, volume: Volume, predictor: Predictor) -> Mapping[str, Any]:
    """What makes this prediction another one than the next."""
    source = stored_in(cfg.input)
    state = source.stat() if source.exists() else None
    return {
        **{key: cfg[key] for key in IDENTITY},
        "input": os.path.abspath(cfg.input),
        "input_state": [list(volume.shape), str(volume.dtype), state and state.st_size, state and state.st_mtime_ns],
        "precision": predictor.prediction.precision,
        "device": predictor.device.type,
        "tile": predictor.prediction.options.tile,
        "voxel_size": None if cfg.voxel_size is None else list(cfg.voxel_size),
        "checkpoint_sha256": hashlib.sha256(find_weights(cfg.checkpoint).read_bytes()).hexdigest(),
        "mitoseg": __version__,
        "torch": torch.__version__,
    }
