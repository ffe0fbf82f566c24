"""The dispatcher, and that it stays quick."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mitoseg
from mitoseg.cli.launch import COMMANDS, SPINS, _Command, main

ROOT = Path(mitoseg.__file__).parents[1]


def test_help_has_a_line_for_each_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(sum(line.split()[:1] == [name] for line in lines) == 1 for name in COMMANDS)


def test_no_command_prints_the_help(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "hint"), [("trian", "did you mean train?"), ("xyz", "choose one of train")])
def test_an_unknown_command_is_one_line(capsys, word, hint):
    assert main([word]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.startswith(f"error: no such command: '{word}'")
    assert hint in line


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"mitoseg {mitoseg.__version__}"


def test_choosing_a_command_imports_no_torch():
    code = "import sys, mitoseg.cli.launch, mitoseg.cli.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
def test_each_command_tells_its_options_in_every_way(name, tmp_path):
    starts = [["-m", "mitoseg", name], [str(ROOT / "mitoseg" / "__main__.py"), name], [str(ROOT / f"{name}.py")]]
    said = []
    for start in starts:
        command = [sys.executable, *start, "--help"]
        said.append(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert said[0] == said[1] == said[2]
    assert "== Config ==" in said[0]
