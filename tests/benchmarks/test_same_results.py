"""Results are those of an older commit, and a record tells which are not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = "3154e383c68b670109d1683987561b742e3fdb03"
"""The commit whose results the working tree must give."""


def test_a_record_tells_what_differs(scripts, tmp_path, capsys):
    same_results = scripts("same_results")
    arrays = [np.arange(3), np.arange(3).astype(float), np.arange(3)[:, None], np.array([0, 1, 3])]
    assert len({same_results.digest(array) for array in arrays}) == 4
    for name, values in {"a": {"x": "1", "y": "2"}, "b": {"x": "1", "y": "3", "z": "4"}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(values))
    same_results.main([f"before={tmp_path / 'a.json'}", f"after={tmp_path / 'a.json'}"])
    assert "2 results are the same" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2 of 2"):
        same_results.main([f"before={tmp_path / 'a.json'}", f"after={tmp_path / 'b.json'}"])
    assert capsys.readouterr().out.splitlines() == ["z", "  missing", "  4", "y", "  2", "  3"]


@pytest.mark.slow
def test_results_are_those_of_the_reference(tmp_path):
    git = shutil.which("git")
    known = git and subprocess.run([git, "cat-file", "-e", REFERENCE], cwd=ROOT, capture_output=True, check=False)
    if not known or known.returncode:
        pytest.skip("the history does not hold the reference")
    reference = tmp_path / "reference"
    subprocess.run([git, "worktree", "add", "--detach", str(reference), REFERENCE], cwd=ROOT, check=True)
    try:
        for name, root in (("before", reference), ("after", ROOT)):
            environment = {**os.environ, "PYTHONPATH": str(root)}
            script = [sys.executable, str(ROOT / "benchmarks" / "same_results.py"), f"out={tmp_path / name}.json"]
            subprocess.run(script, env=environment, cwd=tmp_path, check=True)
    finally:
        subprocess.run([git, "worktree", "remove", "--force", str(reference)], cwd=ROOT, check=True)
    words = [f"before={tmp_path / 'before'}.json", f"after={tmp_path / 'after'}.json"]
    assert subprocess.run([*script[:2], *words], check=False).returncode == 0
