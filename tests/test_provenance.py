"""The record beside a result says what is true of this process."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from mitoseg.provenance import collect, devices, git_state, peak_memory


def git(folder, *words):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_record_is_json_and_true():
    record = json.loads(json.dumps(collect(data={"train": "123"})))
    assert record["libraries"]["torch"].startswith(torch.__version__.split("+")[0])
    assert record["libraries"]["numpy"] == np.__version__
    assert record["command"] == sys.orig_argv
    assert record["data"] == {"train": "123"}
    assert abs((datetime.now(UTC) - datetime.fromisoformat(record["time"])).total_seconds()) < 60
    assert record["devices"]


def test_commit_and_changes_of_a_clone_and_of_nothing_else(tmp_path, monkeypatch):
    clone = tmp_path / "ä b"
    clone.mkdir()
    (clone / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "one"]):
        git(clone, *words)
    commit = git(clone, "rev-parse", "HEAD")
    assert git_state(clone) == (commit, False)
    (clone / "file").write_text("2")
    assert git_state(clone) == (commit, True)
    (clone / "inside").mkdir()
    assert git_state(clone / "inside") == git_state(tmp_path) == (None, None)
    monkeypatch.setenv("PATH", "")
    assert git_state(clone) == (None, None)


def test_gpus_are_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert devices() == ["GPU 0", "GPU 1"]


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux counts")
def test_memory_is_that_of_this_process_alone():
    """This one holds torch; one that it starts does not."""
    code = "from mitoseg.provenance import peak_memory; print(peak_memory())"
    theirs = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    held = np.ones(10_000_000)
    assert theirs < 1e8 < held.nbytes + 1e8 < peak_memory()
