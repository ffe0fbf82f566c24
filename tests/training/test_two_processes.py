"""Two real processes see together what one sees, and learn and count the same."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import two_processes


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the one process and both of the two wrote down."""
    folder = tmp_path_factory.mktemp("ranks")
    two_processes.train(folder)
    script = Path(two_processes.__file__)
    environment = {k: v for k, v in os.environ.items() if k not in {"LOCAL_RANK", "WORLD_SIZE"}}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = ("rank0_of_1", "rank0_of_2", "rank1_of_2")
    return [json.loads((folder / f"{name}.json").read_text()) for name in names]


def test_both_take_as_many_steps_as_one_would(told):
    assert [t["world"] for t in told] == [1, 2, 2]
    assert [t["steps"] for t in told] == [6, 6, 6]


def test_no_block_goes_to_both_and_together_they_are_the_one_device_epoch(told):
    one, *both = [t["batches"] for t in told]
    for step, batch in enumerate(one):
        parts = [b[step * two_processes.PARTS + part] for b in both for part in range(two_processes.PARTS)]
        assert sorted(chain(*parts)) == sorted(batch)
        assert sum(map(len, parts)) == len(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_three_slices_are_three(told):
    one, *both = [t["slices"] for t in told]
    assert sorted(one) == sorted(chain(*both)) == sorted(2 * [[0, z] for z in range(3)])
    assert [sum(map(sum, t["histograms"])) for t in told] == 3 * [2 * 3 * 96 * 128]


def test_the_same_predictions_give_the_same_counts(told):
    """Before training all have the same weights."""
    assert told[0]["first_histogram"] == told[1]["first_histogram"] == told[2]["first_histogram"]
    assert told[1]["metrics"] == told[2]["metrics"]
    assert set(told[0]["metrics"]) == set(told[1]["metrics"])


def test_they_learn_what_one_learns(told):
    one, *both = [np.array(t["weights"]) for t in told]
    np.testing.assert_array_equal(*both)
    np.testing.assert_allclose(one, both[0], atol=2e-6)
    accuracy = [t["metrics"]["train/block_accuracy"] for t in told]
    assert accuracy == pytest.approx([accuracy[0]] * 3, abs=0.01)
