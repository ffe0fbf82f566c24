"""A training run of seconds, and a way to call commands within the test's process."""

import os
import sys

from mitoseg.cli.launch import main

TINY = [
    "data=phantom",
    "data.root=phantom",
    "data.train_shape=[10,96,128]",
    "data.test_shape=[3,96,128]",
    "data.positions=any",
    "data.label_rule=center",
    "data.balance=subsample",
    "data.epoch_blocks=400",
    "data.validation_stride=2",
    "epochs=1",
    "save_overlays=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
]


def command(monkeypatch, *words):
    """Run one command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mitoseg"])
    before = dict(os.environ)
    try:
        return main(list(map(str, words)))
    except SystemExit as leaving:
        return leaving.code
    finally:
        os.environ.clear()
        os.environ.update(before)
