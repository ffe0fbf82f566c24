"""What all volumes of one run share: the model, who computes, and with how many digits.

The progress bar of a prediction, and what a network has to give for it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mitoseg.engines import Engine, LocalEngine
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Prediction, Predictor, predict_volume
from mitoseg.inference.precision import choose_precision
from mitoseg.inference.predictor import BoxWriter
from mitoseg.inference.prepare import (
    CUDA_SLICES,
    INSTANCES,
    Restored,
    adapt_greys,
    choose_device,
    make_prediction,
    resample_input,
    restoring,
)
from mitoseg.networks.checkpoint import DEFAULT, Model, find_weights, load_model
from mitoseg.progress import progress, waiting
from mitoseg.volumes import Normalization, Volume, VoxelSize
from mitoseg.volumes.padding import Padding
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


@dataclass(frozen=True)
class Prepared:
    """One volume, ready to be predicted, and the way of the result back to its grid.

    Attributes:
        source: The input, its padding known if it is to be.
        predictor: Of the volume that the network sees.
        kind: What the tiles hold: ``probability``, ``mask`` or ``uncertainty``.
        restored: Makes of the tiles a volume on the input's grid; None where they lie on it.
    """

    source: Volume
    predictor: Predictor
    kind: str
    restored: Restored | None

    @property
    def image(self) -> Volume:
        """The grey values on the result's grid, as the network sees them where it is its grid, too."""
        return self.predictor.volume if self.restored is None else self.source

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm of the result: the input's, else the checkpoint's."""
        return self.source.voxel_size or self.predictor.prediction.voxel_size

    def restore(self, tiles: Volume) -> Volume:
        """The finished tiles as a lazy volume on the input's grid."""
        return tiles if self.restored is None else self.restored(tiles)

    @property
    def padding(self) -> int:
        """How many voxels of the input were left out as padding."""
        with waiting("counting the voxels of padding"):
            return self.source.padding.count() if isinstance(self.source.padding, Padding) else 0


def prepare(
    model: Model,
    source: Volume,
    make: Callable[[Normalization | None, str], Prediction],
    *,
    normalize: str,
    resample: object,
    kind: str,
) -> Prepared:
    """Adapt a volume to what a model was trained on.

    Args:
        model: What predicts.
        source: The input.
        make: Makes the prediction of the volume's own normalisation, if it has one, and of what the tiles hold.
        normalize: See `adapt_greys`.
        resample: See `resample_input`.
        kind: What the tiles are to hold; a mask of a resampled volume is made of whole probabilities.

    Raises:
        UserError: An option is no good, or does not fit volume and model.
    """
    seen = resample_input(resample, source, model)
    with waiting("looking at the grey values"):
        volume, normalization = adapt_greys(normalize, seen, model)
    restored = restoring(seen, source, kind)
    if restored is not None and restored.mask:
        kind = "probability"
    return Prepared(source, Predictor(make(normalization, kind), volume), kind, restored)


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
