"""The dispatcher, and that it stays quick; where a run cannot write, it says so in one line, with what to do."""

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_training import command

import mitoseg
from mitoseg.cli.console import user_message
from mitoseg.cli.launch import COMMANDS, SPINS, RunFolder, _Command, main

ROOT = Path(mitoseg.__file__).parents[1]


def test_help_and_version(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(sum(line.split()[:1] == [name] for line in lines) == 1 for name in COMMANDS)
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"mitoseg {mitoseg.__version__}"


@pytest.mark.parametrize(("word", "hint"), [("trian", "did you mean train?"), ("xyz", "choose one of train")])
def test_an_unknown_command_is_one_line(capsys, word, hint):
    assert main([word]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"error: no such command: '{word}'")
    assert hint in line


@pytest.mark.parametrize(("given", "spins"), [({}, SPINS), ({"OMP_WAIT_POLICY": "active"}, None)])
def test_threads_wait_briefly_and_are_no_more_than_the_usable_cores(given, spins, monkeypatch, caplog):
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.environ", {**os.environ, **given})
    monkeypatch.setattr("mitoseg.cli.launch.usable_cores", lambda: 1)
    monkeypatch.setattr("mitoseg.progress.SOON", 0.01)
    monkeypatch.setitem(sys.modules, "mitoseg.workflows.fake", SimpleNamespace(run=lambda cfg, *_: cfg))
    monkeypatch.setattr("mitoseg.cli.launch.import_module", lambda name: (time.sleep(0.1), sys.modules[name])[1])
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr("mitoseg.cli.launch.run_dir", Path)
    with caplog.at_level("INFO"):
        assert _Command("fake")(5) == 5
    assert (torch.get_num_threads(), os.environ.get("GOMP_SPINCOUNT")) == (1, spins)
    assert caplog.messages == ["loading torch and other libraries ..."]
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_lists_its_options(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert not command(monkeypatch, name, "--help")
    assert "== Config ==" in capsys.readouterr().out
    assert f'run_command("{name}")' in (ROOT / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "start", [["-m", "mitoseg", "view"], [str(ROOT / "mitoseg" / "__main__.py"), "view"], [str(ROOT / "view.py")]]
)
def test_commands_start_in_every_way_and_choosing_one_imports_no_torch(start, tmp_path):
    words = [sys.executable, "-X", "importtime", *start, "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "== Config ==" in done.stdout
    assert "| torch\n" not in done.stderr


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
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("loading torch")]
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


def test_a_refused_run_leaves_neither_folder_nor_log_and_touches_no_other(said, tmp_path, monkeypatch, capsys):
    said("evaluate")
    assert not list((tmp_path / "outputs").rglob("*.log"))
    logging.getLogger("mitoseg").warning("the process runs on, and its log is closed")
    assert "runs on" in capsys.readouterr().err
    before = tmp_path / "before"
    before.mkdir()
    monkeypatch.setattr(RunFolder, "made", before)
    said("evaluate", "hydra.run.dir=given")
    assert before.is_dir()
    monkeypatch.setattr(RunFolder, "made", tmp_path / "gone")
    assert said("view", "port=many").startswith("error: port")


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
    of_gpu = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"
    )
    line = (
        "there is not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB.); give smaller volumes or batches"
    )
    assert user_message(of_gpu) == line
