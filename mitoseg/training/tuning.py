"""Lightning's searches for a learning rate and a batch size, on copies: the run itself is not changed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.tuner.tuning import Tuner

from mitoseg.errors import UserError

log = logging.getLogger(__name__)
MakeTrainer = Callable[..., Trainer]  # makes a Trainer like the run's, given keyword arguments that replace its own


def find_learning_rate(
    make_trainer: MakeTrainer, module: LightningModule, data: LightningDataModule, *, figure: Path | None = None
) -> float:
    """The rate at which the loss falls fastest while the rate rises exponentially over 100 steps (Smith, 2017).

    The module's optimizer must have one rate for all layers; ``figure`` is where loss over rate is drawn.
    """
    trial = deepcopy(module)
    rates = {group["lr"] for group in trial.optimizer_factory(trial.network).param_groups}  # type: ignore[operator]
    if len(rates) > 1:
        what = "tune_lr: this optimizer has a separate rate for each kind of layer"
        raise UserError(what, None, "choose optimizer=adamw, or leave out tune_lr")
    with TemporaryDirectory() as folder:
        trainer = _quiet(make_trainer, folder)
        finder = Tuner(trainer).lr_find(trial, datamodule=data, update_attr=False)
    rate = finder.suggestion() if finder is not None else None
    if finder is None or rate is None:
        raise UserError("tune_lr: no learning rate stands out", None, "set optimizer.lr by hand")
    if figure is not None:
        import matplotlib.pyplot as plt

        figure.parent.mkdir(parents=True, exist_ok=True)
        drawn = finder.plot(suggest=True)
        if drawn is not None:
            drawn.savefig(figure)
            plt.close(drawn)  # Lightning draws with pyplot, which keeps what is not closed
    return float(rate)


def find_batch_size(make_trainer: MakeTrainer, module: LightningModule, data: LightningDataModule) -> int:
    """The largest batch, doubling from the present one, that fits into the device's memory; 8192 or an epoch at most.

    ``data.batch_size`` is left at the result.
    """
    with TemporaryDirectory() as folder:
        trainer = _quiet(make_trainer, folder)
        size = Tuner(trainer).scale_batch_size(deepcopy(module), datamodule=data, init_val=data.batch_size)  # type: ignore[attr-defined]
    data.batch_size = min(int(size or data.batch_size), len(data.draws))  # type: ignore[attr-defined]
    return data.batch_size  # type: ignore[attr-defined, no-any-return]


def _quiet(make_trainer: MakeTrainer, folder: str) -> Trainer:
    """A Trainer that shows and keeps nothing, with more epochs than a search can need."""
    silent: dict[str, Any] = {"logger": False, "callbacks": [], "enable_checkpointing": False}
    epochs = {"max_epochs": 1000, "check_val_every_n_epoch": 1000}
    return make_trainer(**silent, **epochs, enable_progress_bar=False, default_root_dir=folder)
