"""``predict``: a volume and a checkpoint in, a probability or a mask of the same size out."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mitoseg.cli.launch import run_dir
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import KINDS, Prediction, predict_volume
from mitoseg.inference.predict import BoxWriter
from mitoseg.metrics import Calibration
from mitoseg.networks.checkpoint import Model, load_model
from mitoseg.provenance import collect
from mitoseg.storage import write_json
from mitoseg.volumes import Normalization, Volume, check_volume_output, create_volume, open_volume

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Predict one volume.

    Raises:
        UserError: The checkpoint, the volume, an option or the output is no good.
    """
    if Path(cfg.output).resolve() == Path(cfg.input).resolve():
        raise UserError("the output is the input itself", cfg.output, "choose another name")
    check_volume_output(cfg.output, cfg.overwrite)
    model = load_model(cfg.checkpoint, trust=cfg.trust)
    volume = open_volume(cfg.input, axes=cfg.axes, voxel_size=cfg.voxel_size)
    prediction = make_prediction(
        model,
        method=cfg.method,
        accelerator=cfg.accelerator,
        save=cfg.save,
        dtype=cfg.dtype,
        threshold=cfg.threshold,
    )
    voxel_size = volume.voxel_size or model.voxel_size
    if volume.voxel_size is None and voxel_size is not None:
        log.warning("%s has no voxel size: taking the checkpoint's, %s nm; or give voxel_size=", cfg.input, voxel_size)
    with create_volume(
        cfg.output,
        volume.shape,
        prediction.dtype,
        voxel_size=voxel_size,
        metadata={**prediction.metadata, "checkpoint": Path(cfg.checkpoint).name},
        overwrite=cfg.overwrite,
    ) as writer:
        predict_with_progress(prediction, volume, writer, title=Path(cfg.input).name, show=cfg.progress)
    folder = run_dir()
    write_json(folder / "provenance.json", collect(input=cfg.input, checkpoint=cfg.checkpoint, output=cfg.output))
    console = Console()
    console.print(f"{cfg.save} of {volume.shape} voxels written to {cfg.output}", soft_wrap=True)
    console.print(f"threshold {prediction.threshold:.3f}; record of this run in {folder}", soft_wrap=True)


def make_prediction(
    model: Model,
    *,
    method: str = "auto",
    accelerator: str = "auto",
    save: str = "probability",
    dtype: str | None = None,
    threshold: float | None = None,
) -> Prediction:
    """A checkpoint's model on its device, with what is to be saved.

    Raises:
        UserError: No such thing to save, type, threshold or device.
    """
    if save not in KINDS:
        raise UserError("cannot save that", save, f"choose one of {', '.join(KINDS)}")
    kind = np.dtype(dtype) if dtype in ("uint8", "float32") else KINDS[save]
    if (dtype is not None and kind != dtype) or (save == "mask" and kind != np.uint8):
        raise UserError(
            f"cannot save a {save} as that type", dtype, "use dtype=float32 or dtype=uint8; masks are uint8"
        )
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError("the threshold is not a probability", threshold, "give a number from 0 to 1")
    return Prediction(
        network=model.network.to(choose_device(accelerator), memory_format=torch.channels_last),  # type: ignore[call-overload]
        normalization=Normalization(**model.normalization),
        channels=model.channels,
        calibration=Calibration(**model.calibration),
        threshold=model.threshold if threshold is None else threshold,
        method=method,
        save=save,
        dtype=kind,
    )


def choose_device(accelerator: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        UserError: The device is not known or not here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here["gpu"] = here["cuda"]
    if accelerator == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if here[name]))
    if not here.get(accelerator):
        usable = ", ".join(name for name, there in here.items() if there)
        raise UserError("no such accelerator here", accelerator, f"use auto or one of {usable}")
    return torch.device("cuda" if accelerator == "gpu" else accelerator)


def predict_with_progress(
    prediction: Prediction,
    volume: Volume,
    writer: BoxWriter,
    *,
    box: Box | None = None,
    title: str = "",
    show: bool = True,
) -> None:
    """`predict_volume` with a progress bar over the slices."""
    columns = (
        TextColumn("predicting {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("slices"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        task = bar.add_task(title, total=(box or volume.box).shape[0])
        predict_volume(
            prediction,
            volume,
            writer,
            box=box,
            on_slice=lambda done: bar.update(task, completed=done),
        )
