"""The options of ``predict``: what is refused, the volume that is meant, and what tells one command from the next."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mitoseg import __version__
from mitoseg.cli.cleaning import chosen_steps
from mitoseg.cli.labelling import chosen_labelling
from mitoseg.cli.session import Session
from mitoseg.errors import UserError
from mitoseg.inference.prepare import INSTANCES
from mitoseg.volumes import Volume, open_volume
from mitoseg.volumes.images import SliceFolder
from mitoseg.volumes.opening import stored_in, warn_of_gaps
from mitoseg.volumes.padding import with_padding
from mitoseg.volumes.writing import place
from mitoseg.volumes.zarrs import ZarrVolume

NEUTRAL = (
    *("checkpoint", "trust", "accelerator", "precision"),  # the file's checksum counts, and what was chosen
    *("output", "suffix", "overwrite", "report", "progress"),
    *("engine", "devices", "workers", "memory"),
    *("missing_chunks", "missing_slices"),  # which refuse a volume or read it
)
"""Options that change no voxel. Every other one makes a command another than the next: a killed run is taken up by the
same command alone."""
VOLATILE = ("input_files", "checkpoint_sha256", "mitoseg", "torch")
"""What may change between two runs of one command; then what was computed is out of date."""
FINISHING = ("save", "postprocess", "labelling")
"""Options of what is made of the network's tiles, which are kept when nothing else changes."""


def check_options(cfg: DictConfig) -> None:
    """Refuse what would be taken for something else.

    Raises:
        UserError: A path has no value, a switch is neither true nor false, or post-processing is to make no mask.
    """
    for key in ("input", "output"):
        if not cfg[key]:
            raise UserError(f"{key} has no value", None, f"add {key}=... to the command")
    for key in ("overwrite", "trust", "progress", "report"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    chosen_labelling(cfg)
    if chosen_steps(cfg) is not None and cfg.save not in ("mask", INSTANCES):
        remedy = "give save=mask or save=instances, or postprocess=none"
        raise UserError("postprocess makes masks", f"save={cfg.save}", remedy)
    if cfg.report and cfg.save == "uncertainty":
        raise UserError("the report shows mitochondria", "save=uncertainty", "leave report= or save= away")


def check_places(source: str, output: str) -> None:
    """Refuse an output that would change its input.

    Raises:
        UserError: It lies at or in the input.
    """
    ours, theirs = (Path(os.path.realpath(path)) for path in (place(output)[0], stored_in(source)))
    if ours == theirs or theirs in ours.parents or ours in theirs.parents:
        where = "is the input itself" if ours == theirs else "lies inside the input or around it"
        raise UserError(f"the output {where}", output, "choose another name")


def open_input(cfg: DictConfig) -> Volume:
    """The volume to predict.

    Raises:
        UserError: It cannot be read, chunks or slices of it are missing, or it does not state what it must.
    """
    if cfg.missing_chunks not in ("error", "fill"):
        raise UserError("no such way to treat missing chunks", cfg.missing_chunks, "choose error or fill")
    if cfg.missing_slices not in ("error", "ignore"):
        raise UserError("no such way to treat missing slices", cfg.missing_slices, "choose error or ignore")
    volume = open_volume(cfg.input, axes=cfg.axes, voxel_size=cfg.voxel_size)
    if isinstance(volume, ZarrVolume):
        volume.check_scale()
    if (cfg.missing_slices if isinstance(volume, SliceFolder) else cfg.missing_chunks) == "error":
        volume.check_complete()
    else:
        warn_of_gaps(volume)
    return with_padding(volume, cfg.padding)


def identity(cfg: DictConfig, session: Session, volume: Volume) -> Mapping[str, Any]:
    """What makes this prediction another one than the next; not who computes it."""
    return {
        **{str(key): _plain(cfg[key]) for key in cfg if key not in NEUTRAL},
        "input": os.path.abspath(cfg.input),
        "input_files": [volume.shape, str(volume.dtype), volume.voxel_size, volume.state()],
        "precision": session.precision,
        "device": session.device,
        "checkpoint_sha256": session.sha256,
        "mitoseg": __version__,
        "torch": torch.__version__,
    }


def _plain(value: object) -> object:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
