"""A loss that is no number ends the run in one line; without a terminal, training logs its state in plain lines."""

import logging
import re
import time

import pytest
import pytorch_lightning as pl
import torch
from disc_training import checkpoints, datamodule, module, trainer

from mitoseg import progress
from mitoseg.errors import UserError
from mitoseg.training.callbacks import FiniteLoss, ProgressLines
from mitoseg.training.checkpointing import LastCheckpoint


class Spoil(pl.Callback):
    """Makes a weight infinite before a batch."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, run, module, batch, batch_idx):
        if batch_idx == self.batch and run.current_epoch == 1:
            with torch.no_grad():
                module.network.layers.fc.bias.fill_(float("nan"))


def fit(folder, *callbacks):
    data = datamodule(epoch_blocks=210)
    run = trainer(folder, callbacks=[*callbacks, LastCheckpoint(folder)], log_every_n_steps=4)
    with pytest.raises(UserError) as caught:
        run.fit(module(), datamodule=data)
    return str(caught.value), data


def test_the_line_names_step_batch_and_blocks(tmp_path):
    line, data = fit(tmp_path, Spoil(3), FiniteLoss())
    place = ",".join(map(str, data.batch_positions(1, 3)[0, 1:]))
    assert "the loss is not finite at step 9, epoch 1, batch 3" in line
    assert f"0:[{place}]" in line
    assert "and 37 more" in line
    assert "lower optimizer.lr" in line
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values())


class Device(FiniteLoss):
    """Takes the way of a GPU, where the host does not look at each loss."""

    def on_before_backward(self, trainer, pl_module, loss):
        self.note(loss, (trainer.global_step, trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx))


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_on_a_gpu_it_is_found_a_little_later_but_before_anything_is_saved(batch, tmp_path):
    line, _ = fit(tmp_path, Spoil(batch), Device())
    assert f"epoch 1, batch {batch}" in line
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 6


class Patience(pl.Callback):
    """Makes an epoch longer than a few lines take."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            time.sleep(0.01)


def test_a_line_tells_step_loss_score_and_the_time_left(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    caplog.set_level(logging.INFO, logger="mitoseg.progress")
    callbacks = [ProgressLines(), Patience(), *checkpoints(tmp_path)]
    run = trainer(tmp_path, callbacks=callbacks, enable_progress_bar=True)
    run.fit(module(), datamodule=datamodule(epoch_blocks=400))
    form = r"step \d+, epoch 2 of 2, loss \d\.\d{4}, validation JAC \d\.\d{3}, 0:00:\d\d left(, validating)?"
    assert any(re.fullmatch(form, line) for line in caplog.messages), caplog.messages
    assert all(line.startswith("step ") for line in caplog.messages if "left" in line)
    told = len(caplog.messages)
    time.sleep(0.06)
    assert len(caplog.messages) == told, "it goes on after training"
    assert "\r" not in "".join(capsys.readouterr())
