"""What a training run keeps and shows: checkpoints, loggers, the progress bar."""

from __future__ import annotations

from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, Timer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

from mitoseg.errors import UserError
from mitoseg.evaluation.figures import overlay_figure
from mitoseg.progress import on_terminal
from mitoseg.training.callbacks import SlicePictures
from mitoseg.training.checkpointing import SCORE, BestCheckpoint, LastCheckpoint
from mitoseg.training.guards import FiniteLoss
from mitoseg.training.progress import Progress, ProgressLines, Throughput
from mitoseg.training.shallow import ShallowConvolutions


def make_callbacks(cfg: DictConfig, folder: Path) -> list[Callback]:
    """Checkpoints, guards, pictures, speed and progress, as the config says."""
    kept, throughput = folder / "checkpoints", Throughput()
    callbacks = [FiniteLoss(), ShallowConvolutions(), SlicePictures(overlay_figure), throughput]
    if cfg.patience is not None:
        if cfg.patience < 1:
            raise UserError("patience is not positive", cfg.patience, "give validations without gain, or null")
        callbacks.append(EarlyStopping(SCORE, mode="max", patience=cfg.patience, check_on_train_epoch_end=False))
    if cfg.ema is not None:
        if not isinstance(cfg.ema, float) or not 0 < cfg.ema < 1:
            raise UserError("ema is no decay", cfg.ema, "give a number between 0 and 1, such as 0.995, or null")
        callbacks.append(EMAWeightAveraging(decay=cfg.ema))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress(throughput) if on_terminal() else ProgressLines())
    callbacks.append(Timer(cfg.trainer.max_time))  # the Trainer would add its own only where there is a limit
    return [*callbacks, BestCheckpoint(kept), LastCheckpoint(kept, cfg.checkpoint_minutes)]


def make_loggers(cfg: DictConfig, folder: Path) -> list[Logger]:
    """TensorBoard and CSV always, and those of the config group ``logger``.

    Raises:
        UserError: The package of a chosen logger is not installed.
    """
    loggers: list[Logger] = [TensorBoardLogger(folder, name="", version="tensorboard"), CSVLogger(folder, name="csv")]
    for name, config in (cfg.get("logger") or {}).items():
        try:
            loggers.append(instantiate(config))
        except InstantiationException as error:
            if isinstance(error.__cause__, ImportError):
                raise UserError(f"logger={name} needs a package", str(name), f"run: pip install {name}") from error
            raise
    return loggers
