"""Where there is no terminal, training tells its state in plain lines."""

import logging
import re
import time

import disc_training
from pytorch_lightning import Callback

from mitoseg import progress
from mitoseg.training.callbacks import ProgressLines


class Patience(Callback):
    """Makes an epoch longer than a few lines take."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.current_epoch == 1:
            time.sleep(0.01)


def test_a_line_tells_step_loss_score_and_the_time_left(tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.02)
    caplog.set_level(logging.INFO, logger="mitoseg.progress")
    callbacks = [ProgressLines(), Patience(), *disc_training.checkpoints(tmp_path)]
    trainer = disc_training.trainer(tmp_path, callbacks=callbacks, enable_progress_bar=True)
    trainer.fit(disc_training.module(), datamodule=disc_training.datamodule(epoch_blocks=400))
    form = r"step \d+, epoch 2 of 2, loss \d\.\d{4}, validation JAC \d\.\d{3}, 0:00:\d\d left(, validating)?"
    assert any(re.fullmatch(form, line) for line in caplog.messages), caplog.messages
    assert all(line.startswith("step ") for line in caplog.messages if "left" in line)
    told = len(caplog.messages)
    time.sleep(0.06)
    assert len(caplog.messages) == told, "it goes on after training"
    assert "\r" not in "".join(capsys.readouterr())
