"""Damaged files end in one line, or are read: no traceback, no hang, no memory blow-up, no half output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="needs limits of memory")
SCRIPT = Path(__file__).with_name("malformed_files.py")
COUNT, SECONDS, QUICK = 200, 10, 40
_PATIENCE = 300


def run(folder, first, stop):
    """Read some damaged files in a process of their own; what it says of each."""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    words = [sys.executable, str(SCRIPT), str(folder), str(first), str(stop)]
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=_PATIENCE, check=False)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, f"died at {lines[-1:]}: {ran.stderr[-2000:]}"
    assert ran.stderr == ""
    assert len(lines) == 2 * (stop - first)
    return [what | result for what, result in zip(lines[::2], lines[1::2], strict=True)]


def check(results):
    for found in results:
        assert found["kind"] in ("read", "read in part", "refused"), found
        assert "\n" not in found["text"], found
        assert found["seconds"] < SECONDS, found
        assert found["left"] == (["out.h5"] if found["kind"] == "read" else []), found
    refused = [found for found in results if found["kind"] == "refused"]
    assert len(refused) > len(results) / 2
    assert all(len(found["text"]) < 500 for found in refused)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_some_damaged_files(tmp_path):
    check(run(tmp_path, 0, QUICK))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_all_damaged_files(tmp_path):
    results = run(tmp_path, 0, COUNT)
    check(results)
    assert len({found["what"].split(":")[0] for found in results}) > 15
