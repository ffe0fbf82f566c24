"""Sweeps of real training, on a small phantom."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_training import TINY

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")]


def start(folder, *words):
    command = [sys.executable, "-m", "mitoseg", "train", *TINY, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def rows(sweep):
    with (sweep / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_networks_and_seeds_on_two_devices_killed_and_taken_up(tmp_path):
    words = ["-m", "network=patch_cnn,context_cnn", "seed=1,2", "epochs=2", "name=s"]
    words += ["trainer.devices=2", "data.validation_stride=1"]
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    with start(tmp_path, *words) as process:
        deadline = time.monotonic() + 240
        while not (sweep / "network=patch_cnn,seed=2" / "checkpoints" / "last.ckpt").is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    with start(tmp_path, *words) as process:
        _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert "network=patch_cnn,seed=1: finished before" in told
    assert "network=patch_cnn,seed=2: goes on" in told
    found = rows(sweep)
    assert {(row["network"], row["seed"]) for row in found} == {
        (network, seed) for network in ("patch_cnn", "context_cnn") for seed in "12"
    }
    for row in found:
        metrics = json.loads((sweep / row["job"] / "metrics.json").read_text())
        assert float(row["objective"]) == metrics["validation"]["jaccard_foreground"]
        assert float(row["test_dice"]) == metrics["test"]["dice"]
    with (sweep / "summary.csv").open(newline="") as file:
        assert [row["n"] for row in csv.DictReader(file)] == ["2", "2"]


def test_a_search_on_the_phantom_never_looks_at_the_test_volume(tmp_path):
    words = ["-m", "hparams_search=phantom_lr", "hydra.sweeper.n_trials=2", "epochs=1", "data.epoch_blocks=400"]
    with start(tmp_path, *words) as process:
        _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert sweep.name.startswith("phantom_lr_")
    found = rows(sweep)
    assert len(found) == 2
    assert {"optimizer.lr", "optimizer.weight_decay", "data.batch_size"} < set(found[0])
    assert "test_dice" not in found[0]
    assert (sweep / "optimization_results.yaml").is_file()
