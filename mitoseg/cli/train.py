"""``train``: compose, build, fit, score."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from mitoseg.blocks import BlockDataModule
from mitoseg.cli.launch import run_dir
from mitoseg.cli.scoring import score_run
from mitoseg.errors import UserError
from mitoseg.evaluation.figures import overlay_figure
from mitoseg.provenance import collect
from mitoseg.storage import write_json, write_text
from mitoseg.training import BlockClassifier
from mitoseg.training.callbacks import Progress, SaveOnException, SlicePictures, checkpoints
from mitoseg.volumes import CHANNEL_OFFSETS

log = logging.getLogger(__name__)


def run(cfg: DictConfig) -> None:
    """Train one network and, on the first rank, score it.

    Raises:
        UserError: Something in the config or the data is wrong.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` is written first.
    """
    folder = run_dir()
    seed_everything(cfg.seed, workers=True, verbose=False)
    match_channels(cfg)
    network = instantiate(cfg.network)
    data: BlockDataModule = instantiate(cfg.data, window=network.window, seed=cfg.seed)
    module = BlockClassifier(
        network,
        OmegaConf.to_container(cfg.network, resolve=True),  # type: ignore[arg-type]
        optimizer=instantiate(cfg.optimizer),
        scheduler=instantiate(cfg.scheduler),
        method=cfg.validation_method,
    )
    trainer = build_trainer(cfg, folder)
    if trainer.is_global_zero:
        write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    checkpoint = resume_checkpoint(cfg.resume)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # a resumed run's own
    rank_zero_only(log.info)("training on %s", describe_devices(trainer))
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        provenance = collect(seed=cfg.seed, data=dict(data.splits.provenance), blocks=data.summary)
        write_json(folder / "provenance.json", provenance)
        score_run(folder, data.splits, cfg)


def match_channels(cfg: DictConfig) -> None:
    """Give the network as many input channels as ``data.channels`` makes."""
    if cfg.data.channels not in CHANNEL_OFFSETS:
        raise UserError(
            "no such way to make channels", cfg.data.channels, f"choose one of {', '.join(CHANNEL_OFFSETS)}"
        )
    count = len(CHANNEL_OFFSETS[cfg.data.channels])
    if "in_channels" in cfg.network and cfg.network.in_channels != count:
        log.info("network.in_channels set to %d, as data.channels=%s makes", count, cfg.data.channels)
        with open_dict(cfg):
            cfg.network.in_channels = count


def build_trainer(cfg: DictConfig, folder: Path) -> Trainer:
    """The Trainer with its loggers and callbacks; everything it writes lies in the run's folder."""
    kept = folder / "checkpoints"
    callbacks: list[Any] = [*checkpoints(kept), SaveOnException(kept), SlicePictures(overlay_figure)]
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress(leave=False))
    loggers = [TensorBoardLogger(folder, name="", version="tensorboard"), CSVLogger(folder, name="csv")]
    trainer: Trainer = instantiate(cfg.trainer, logger=loggers, callbacks=callbacks, default_root_dir=folder)
    return trainer


def resume_checkpoint(resume: str | None) -> Path | None:
    """The checkpoint that ``resume=`` names: a file, or the last one of a run folder.

    Raises:
        UserError: There is none.
    """
    if resume is None:
        return None
    path = Path(resume)
    path = path if path.is_file() else path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError("nothing to resume from", str(resume), "name a run folder that has checkpoints/last.ckpt")
    return path


def describe_devices(trainer: Trainer) -> str:
    """For the log: how many devices of which kind, and threads where it is the CPU."""
    kind = trainer.strategy.root_device.type
    threads = f", {torch.get_num_threads()} threads" if kind == "cpu" else ""
    return f"{trainer.world_size} {kind} device(s){threads}"
