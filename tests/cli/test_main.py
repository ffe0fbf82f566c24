"""The dispatcher, and that it stays quick."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_training import command

import mitoseg
from mitoseg.cli.launch import COMMANDS, SPINS, _Command, main

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
