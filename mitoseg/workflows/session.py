"""What all volumes of one run share: the model, who computes, and with how many digits.

The progress bar of a prediction, and what a network has to give for it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mitoseg.cli.console import waiting
from mitoseg.engines import Engine, LocalEngine
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Prediction, Predictor, predict_volume
from mitoseg.inference.precision import choose_precision
from mitoseg.inference.predictor import BoxWriter
from mitoseg.inference.prepare import CUDA_SLICES, INSTANCES, choose_device, make_prediction
from mitoseg.networks.checkpoint import DEFAULT, Model, find_weights, load_model
from mitoseg.progress import progress
from mitoseg.volumes import Normalization, Volume
from mitoseg.workflows.remote import Remote, Team, gather_team, look_around, make_remote

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """See the module.

    Attributes:
        engine: Started.
        team: Its workers; None where the process itself computes.
        model: Loaded once.
        checkpoint: Its file.
        sha256: Of that file.
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``fp32`` or ``bf16``.
        trust: Whether the checkpoint's network may come from anywhere.
    """

    engine: Engine
    team: Team | None
    model: Model
    checkpoint: Path
    sha256: str
    device: str
    precision: str
    trust: bool

    def prediction(self, cfg: DictConfig, normalization: Normalization | None, save: str) -> Prediction:
        """How one volume is predicted; with workers, the network stays on this process's CPU.

        Raises:
            UserError: An option is no good, or does not fit the checkpoint.
        """
        prediction = make_prediction(
            self.model,
            **{
                key: cfg[key]
                for key in ("method", "overlap", "window_stride", "tta", "consensus", "dtype", "threshold")
            },
            accelerator="cpu" if self.team else cfg.accelerator,
            precision=self.precision,
            save=save,
            tile=OmegaConf.to_container(cfg.tile) if OmegaConf.is_config(cfg.tile) else cfg.tile,
            normalization=normalization,
        )
        slices = CUDA_SLICES if self.device == "cuda" else 1
        return replace(prediction, options=replace(prediction.options, slices=slices))

    def remote(self, prediction: Prediction, volume: Volume) -> Remote:
        """The same for the workers."""
        assert self.team is not None
        about: Mapping[str, Any] = {"checkpoint": self.checkpoint, "sha256": self.sha256, "trust": self.trust}
        return make_remote(prediction, volume, device=self.device, threads=self.team.threads, **about)


def load(cfg: DictConfig) -> tuple[Model, Path]:
    """The model that ``checkpoint=`` means, and its file.

    Raises:
        UserError: It cannot be loaded.
    """
    checkpoint = find_weights(cfg.checkpoint)
    if cfg.checkpoint is None:
        log.info("no checkpoint= is given: predicting with %s, see %s", DEFAULT, checkpoint.with_name("CARD.md"))
    return load_model(checkpoint, trust=cfg.trust), checkpoint


def open_session(cfg: DictConfig, engine: Engine, model: Model, checkpoint: Path) -> Session:
    """Ask the workers of a started engine, and decide what is decided once.

    Raises:
        UserError: The workers do not fit together, or to what is asked of them.
    """
    with waiting("asking the workers"):
        team = None if engine.in_process else gather_team(engine.ask(look_around), cfg.accelerator)
    device = choose_device(cfg.accelerator).type if team is None else team.device
    if isinstance(engine, LocalEngine) and team is not None and device == "cuda":
        count = torch.cuda.device_count()
        if engine.workers > count:
            raise UserError(f"there are {count} devices here, not", engine.workers, f"give devices={count}")
    able = None if team is None else team.bf16
    precision = choose_precision(cfg.precision, torch.device(device), model.record, able=able)
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return Session(engine, team, model, checkpoint, sha256, device, precision, cfg.trust)


def staged_kind(save: str, dtype: str | None, *, cleaned: bool) -> str:
    """What the network has to give: `save` itself, or what the last step makes it of.

    Raises:
        UserError: Instances are wanted in another type than theirs.
    """
    if save == INSTANCES and dtype is not None:
        raise UserError("cannot save instances as that type", dtype, "leave dtype out: instances are uint32")
    if cleaned:
        return "probability"
    return "mask" if save == INSTANCES else save


def predict_with_progress(
    prediction: Prediction | Predictor,
    volume: Volume,
    writer: BoxWriter,
    *,
    box: Box | None = None,
    tile: tuple[int, int, int] | None = None,
    done: Container[Box] = (),
    done_voxels: int = 0,
    title: str = "",
    show: bool = True,
) -> None:
    """`predict_volume` with a progress bar over the voxels."""
    total = (box or volume.box).size
    with progress(f"predicting {title}", total, done=done_voxels, unit="voxels", show=show) as task:
        predict_volume(
            prediction, volume, writer, box=box, tile=tile, done=done, on_tile=lambda part: task.advance(part.size)
        )
