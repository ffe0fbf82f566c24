"""Where a run cannot write, it says so in one line, with what to do."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from mitoseg.cli.console import user_message
from mitoseg.cli.launch import COMMANDS, main

WORDS = {"predict": ["input=a.tif", "output=b.tif"], "evaluate": ["prediction=a.tif", "truth=b.tif"]}
WORDS |= {"ensemble": ["output=a.ckpt"]}


@pytest.fixture
def said(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder; the line that it ends with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mitoseg"])

    def call(*words):
        with pytest.raises(SystemExit) as left:
            main([words[0], *WORDS.get(words[0], []), *words[1:]])
        assert left.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    return call


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "view"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_a_folder_that_cannot_be_made(said, monkeypatch, name, number):
    make = Path.mkdir

    def refuse(self, *args, **options):
        if "outputs" in self.parts:
            raise OSError(number, os.strerror(number), str(self))
        make(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    line = said(name)
    assert line.startswith(f"error: the run's folder cannot be made ({os.strerror(number)})")
    assert "hydra.run.dir=FOLDER" in line


def test_outputs_is_a_file(said, tmp_path):
    (tmp_path / "outputs").touch()
    assert "hydra.run.dir=FOLDER" in said("train")
    assert "outputs" in said("train", "-m", "seed=1,2")


def test_a_working_folder_that_was_deleted(said, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["train"], ["train", "-m", "seed=1,2"], ["predict"], ["measure"]):
        assert said(*words) == "error: the current folder is gone; change to one that exists"


def test_a_full_disk_is_no_bug():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/tensorboard/events")
    assert user_message(error).startswith("the disk is full")
    assert user_message(OSError(errno.EIO, "Input/output error")) is None


def test_a_full_memory_is_no_bug():
    with pytest.raises(MemoryError) as caught:
        np.empty(10**18)
    assert user_message(caught.value).startswith("there is not enough memory (Unable to allocate")
    assert user_message(MemoryError()) == "there is not enough memory; give smaller volumes or batches"
