"""``mitoseg view``: what it says, what it serves, what it refuses, and how it ends."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from made_volumes import make_run, places, save

import mitoseg
from mitoseg.cli.launch import main

ROOT = Path(mitoseg.__file__).parents[1]


def run_view(monkeypatch, *words):
    """Run the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["mitoseg"])
    try:
        return main(["view", *words])
    except SystemExit as leaving:
        return leaving.code


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A predict run in a folder with an odd name, and volumes beside it."""
    folder = tmp_path / "my runs, [1] = ü"
    folder.mkdir()
    monkeypatch.chdir(folder)
    save("image.tif", places((4, 5, 6)))
    save("mask.tif", (places((4, 5, 6)) % 2).astype(np.uint8), kind="mask")
    save("bare.tif", places((4, 5, 6)), voxel_size=None)
    make_run(folder / "run 1=a", input="image.tif", output="mask.tif")
    make_run(folder / "empty", seed=1)
    return folder


@pytest.fixture
def view(monkeypatch, capsys):
    """Runs the command; its exit code, what it printed, what it told, and the page it served."""
    pytest.importorskip("neuroglancer", reason="neuroglancer is not installed")
    pages = []

    def look():
        link = re.search(r"http://\S+", capsys.readouterr().out)[0]
        with urllib.request.urlopen(link, timeout=30) as answer:
            pages.append(answer.read().decode())
        raise KeyboardInterrupt

    def call(*words):
        class Never:
            def wait(self, seconds):
                look()

        monkeypatch.setattr("mitoseg.viewers.view.Event", Never)
        code = run_view(monkeypatch, *words)
        return code, capsys.readouterr().err, pages

    return call


@pytest.mark.parametrize(
    "words",
    [
        ["run 1=a"],
        ["run=run 1=a"],
        ["image.tif", "mask=mask.tif", "voxel_size=[30,4,4]", "surfaces=false"],
        ["image=bare.tif", "instances=image.tif"],
    ],
)
def test_it_serves_and_writes_nothing(here, view, words):
    before = sorted(here.rglob("*"))
    code, told, pages = view(*words)
    assert code == 0, told
    assert told == ""
    assert "<script" in pages[0]
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["empty"], "the folder names no volumes"),
        (["image.tif", "port=70000"], "port is not a port number: 70000"),
        (["image.tif", "open=often"], "open is neither true nor false"),
        (["image.tif", "voxel_size=[1,2]"], "cannot read the voxel size"),
        (["image.tif", "colour=red"], "no such option: 'colour'"),
        (["image.tif", "mask.tif"], "mask.tif"),
    ],
)
def test_mistakes_get_one_line(here, view, words, line):
    code, told, _ = view(*words)
    assert code == 1
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert line in told


def test_without_the_library_a_line_says_what_to_install(here, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "neuroglancer", None)
    assert run_view(monkeypatch, "image.tif") == 1
    assert 'run pip install "mitoseg[viewers]"' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C cannot be sent to one process there")
def test_the_module_serves_until_interrupted(here, interruptible):
    pytest.importorskip("neuroglancer", reason="neuroglancer is not installed")
    command = [sys.executable, "-m", "mitoseg.viewers.neuroglancer", "run 1=a"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes) as child:
        said = []
        for line in child.stdout:
            if line.startswith("Ctrl+C"):
                break
            said.append(line.strip())
        assert [line.split()[0] for line in said[:2]] == ["image", "mask"]
        with urllib.request.urlopen(said[-1], timeout=60) as answer:
            assert answer.status == 200
        child.send_signal(signal.SIGINT)
        rest, told = child.communicate(timeout=60)
    told = [line for line in told.splitlines() if not line.startswith("loading ")]  # said where that takes long
    assert (child.returncode, rest, told) == (0, "", [])
