"""A run that is stopped at any step and taken up again ends with the very weights of one that was not."""

import signal
from contextlib import nullcontext

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from disc_training import datamodule, module, trainer

from mitoseg.errors import UserError
from mitoseg.networks import PatchCNN
from mitoseg.training import checkpointing, sgd_paper
from mitoseg.training.checkpointing import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
    capture,
    requeue,
    restore,
)
from mitoseg.training.module import STATE

BLOCKS = 210  # 40 to a batch: five steps and a sixth of ten blocks
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Dropout(PatchCNN):
    """A network that draws from torch's own generator at every step."""

    def forward(self, image_bcyx):
        return self.layers[-1](torch.dropout(self.layers[:-1](image_bcyx), 0.5, self.training))


def dropout():
    torch.manual_seed(0)
    return Dropout()


class StopAt(pl.Callback):
    """Sends this process a signal after some steps."""

    def __init__(self, step, number=signal.SIGTERM):
        self.step, self.number = step, number

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
        if run.global_step == self.step:
            signal.raise_signal(self.number)


def fit(folder, model, *more, data=None, **options):
    given = {"max_epochs": 3, "log_every_n_steps": 1} | options
    path = given.pop("ckpt_path", None)
    callbacks = [*more, BestCheckpoint(folder), LastCheckpoint(folder)]
    run = trainer(folder, callbacks=callbacks, plugins=[AtomicCheckpointIO()], **given)
    run.fit(model, datamodule=data or datamodule(epoch_blocks=BLOCKS), ckpt_path=path, weights_only=True)
    return run


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = module(network=dropout(), schedule=True)
    run = fit(tmp_path_factory.mktemp("whole"), model)
    return model, dict(run.callback_metrics)


@pytest.mark.parametrize("step", [1, 4, 5, 6, 7, 11, 12, 17])
def test_stopped_anywhere_and_resumed_is_as_if_never_stopped(step, whole, tmp_path):
    """Steps 6, 12 and 18 end an epoch; weights, scores of the epoch's blocks, best score and calibration agree."""
    with pytest.raises(SystemExit):
        fit(tmp_path, module(network=dropout(), schedule=True), StopAt(step))
    torch.manual_seed(99)
    np.random.seed(99)
    again = module(network=dropout(), schedule=True)
    run = fit(tmp_path, again, ckpt_path=tmp_path / "last.ckpt")
    model, metrics = whole
    assert torch.equal(weights(model), weights(again))
    assert (model.calibration, model.threshold) == (again.calibration, again.threshold)
    assert run.callback_metrics == metrics
    assert run.global_step == 18


def test_the_last_checkpoint_is_written_by_the_clock_between_accumulated_parts(tmp_path):
    """Never in the middle of a step, whose gradients are in no checkpoint."""
    saved = []

    class Often(LastCheckpoint):
        def _save(self, run):
            saved.append((run.global_step, run.fit_loop.epoch_loop.batch_idx + 1))

    run = trainer(tmp_path, callbacks=[Often(tmp_path, minutes=0)], max_epochs=1, accumulate_grad_batches=4)
    run.fit(module(), datamodule=datamodule(epoch_blocks=BLOCKS))
    assert saved == [(step, 4 * step) for step in (1, 2, 3, 4, 5)] + [(6, 24)]  # the last one by the validation


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    models = []
    for parts in (1, 3):
        models.append(module(lr=0.5, optimizer=sgd_paper))
        fit(tmp_path / str(parts), models[-1], max_epochs=1, accumulate_grad_batches=parts)
    assert torch.allclose(weights(models[0]), weights(models[1]), atol=1e-6)
    assert not torch.allclose(weights(models[0]), weights(module()), atol=1e-3)


def test_an_extended_run_runs_the_schedule_once_more(tmp_path):
    """One epoch, then two more: the rates of the extension are those of a run of two epochs, momentum goes on."""
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, run, module, batch, batch_idx):
            rates.append(run.optimizers[0].param_groups[0]["lr"])

    fit(tmp_path, module(schedule=True), Rates(), max_epochs=1)
    first, rates[:] = list(rates), []
    fit(tmp_path / "two", module(schedule=True), Rates(), max_epochs=2)
    second, rates[:] = list(rates), []
    last = tmp_path / "last.ckpt"
    extended = fit(tmp_path, module(schedule=True, extended=[2]), Rates(), max_epochs=3, ckpt_path=last)
    assert len(first) == 6
    assert rates == pytest.approx(second)
    assert extended.global_step == 18
    assert torch.load(last, weights_only=True)[STATE]["extended"] == [2]
    assert int(next(iter(extended.optimizers[0].state.values()))["step"]) == 18
    with pytest.raises(SystemExit):  # an extension that is stopped goes on as it was
        fit(tmp_path, module(schedule=True, extended=[2, 1]), StopAt(21), max_epochs=4, ckpt_path=last)
    rates[:] = []
    fit(tmp_path, module(schedule=True, extended=[2, 1]), Rates(), max_epochs=4, ckpt_path=last)
    assert rates == pytest.approx(first[3:])


def test_generators_go_on_where_they_were():
    before = capture()
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist()
    np.random.seed(5)
    torch.manual_seed(5)
    restore(before)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist()) == drawn


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    fit(tmp_path, module(), max_epochs=1)
    good = (tmp_path / "last.ckpt").read_bytes()

    def full(checkpoint, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpointing.torch, "save", full)
    with pytest.raises(UserError, match="the disk is full"):
        fit(tmp_path, module(), max_epochs=1)
    assert (tmp_path / "last.ckpt").read_bytes() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.usefixtures("interruptible")
def test_signals_are_heeded_once_and_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    for first in (signal.SIGTERM, signal.SIGINT):
        last = LastCheckpoint(tmp_path)
        last.on_train_start(None, None)
        signal.raise_signal(first)
        with pytest.raises(KeyboardInterrupt) if first == signal.SIGINT else nullcontext():
            signal.raise_signal(signal.SIGINT)
        assert last.number == first
        last.teardown(None, None, "fit")
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_job_whose_time_is_up_goes_back_into_the_queue(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name in ("SLURM_JOB_ID", "SLURM_PROCID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with pytest.raises(SystemExit):
        fit(tmp_path, module(), StopAt(2, signal.SIGUSR1))
    assert (tmp_path / "said").read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not requeue()
