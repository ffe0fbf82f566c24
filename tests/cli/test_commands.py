"""The commands as a user types them, on a small phantom: train, predict, evaluate, resume; and what goes wrong."""

import json

import numpy as np
import pytest
import torch
from made_checkpoints import tif
from tiny_training import TINY, command

from mitoseg.networks.checkpoint import load_model
from mitoseg.volumes import open_volume


def test_train_leaves_what_is_promised(work):
    run = work / "run"
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.json", "provenance.json"):
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").glob("events*"))
    assert list((run / "figures").rglob("*.png"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics) == {"validation", "test"}
    for part in metrics.values():
        for key in ("jaccard_foreground", "jaccard_background", "jaccard_mean", "dice", "precision", "recall"):
            assert 0 <= part[key] <= 1
        assert {"voxels", "threshold", "boundary"} <= set(part)
    assert metrics["test"]["voxels"] == 3 * 96 * 128
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["seed"] == 1
    assert provenance["draws"]
    assert provenance["data"]
    assert provenance["training_seconds"] > 0
    assert provenance["parameters"] == 145_058
    assert provenance["peak_memory"]["process"] > 10**8
    assert {p.name for p in (run / "figures").glob("*.png")} == {
        *("boundary.png", "precision_recall.png", "reliability.png")
    }


def test_predict_and_evaluate_give_the_scores_of_training(work, monkeypatch, capsys):
    inputs = next((work / "phantom").glob("fibsem_3x*/image.tif"), None)
    labels = next((work / "phantom").glob("fibsem_3x*/label.tif"), None)
    assert inputs is not None
    assert labels is not None
    words = ["checkpoint=run/checkpoints/best.ckpt", f"input={inputs}", "progress=false"]
    assert command(monkeypatch, "predict", *words, "output=ä out, [1].zarr") == 0
    result = open_volume("ä out, [1].zarr")
    assert result.shape == open_volume(str(inputs)).shape
    assert result.voxel_size == open_volume(str(inputs)).voxel_size
    assert result.info.metadata["kind"] == "probability"
    code = command(monkeypatch, "evaluate", "prediction=ä out, [1].zarr", f"truth={labels}", "hydra.run.dir=scores")
    assert code == 0
    found = json.loads((work / "scores" / "metrics.json").read_text())
    trained = json.loads((work / "run" / "metrics.json").read_text())["test"]
    for key in ("jaccard_foreground", "jaccard_background", "dice", "threshold"):
        assert found[key] == pytest.approx(trained[key], rel=1e-6), key


def test_resume_goes_on_where_it_stopped(work, monkeypatch):
    assert command(monkeypatch, "train", *TINY, "hydra.run.dir=again", "test=false") == 0
    assert command(monkeypatch, "train", "resume=again", "epochs=2") == 0
    checkpoint = torch.load("again/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == 1
    assert checkpoint["global_step"] == 8


SLOW = pytest.param(["network=context_cnn"], marks=pytest.mark.slow)


@pytest.mark.parametrize("words", [SLOW, ["data.channels=single"], ["experiment=paper", "data=phantom"]])
def test_other_networks_channels_and_the_paper_train_too(work, monkeypatch, words, tmp_path):
    tiny = [
        w for w in TINY if not ("experiment=paper" in words and w.startswith(("data.epoch", "data.pos", "data.bal")))
    ]
    assert command(monkeypatch, "train", *words, *tiny, "test=false", f"hydra.run.dir={tmp_path}/run") == 0
    model = load_model(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert model.network.in_channels == (1 if "data.channels=single" in words else 3)
    assert model.network.window == (67 if "network=context_cnn" in words else 32)


RNG = np.random.default_rng(0)
GOOD = RNG.integers(0, 255, (6, 64, 64), np.uint8)
MASK = np.zeros((6, 64, 64), np.uint8)
MASK[:, 20:50, 20:50] = 255
NAN = GOOD.astype(np.float32)
NAN[3, 5, 5] = np.nan
LATE_NAN = GOOD.astype(np.float32)
LATE_NAN[5, 5, 5] = np.inf

BAD_TRAINING = {
    "missing file": (None, MASK, "none.tif"),
    "shapes differ": (GOOD, MASK[:, :32], "shape"),
    "NaN": (NAN, MASK, "NaN"),
    "infinite in the validation slab": (LATE_NAN, MASK, "infinite"),
    "complex": (GOOD.astype(np.complex64), MASK, "complex"),
    "constant": (np.full_like(GOOD, 7), MASK, "constant"),
    "no foreground": (GOOD, np.zeros_like(MASK), "foreground"),
    "smaller than a block": (GOOD[:, 20:40], MASK[:, 20:40], "32"),
}


@pytest.mark.parametrize("name", BAD_TRAINING)
def test_bad_volumes_end_training_in_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image, label, told = BAD_TRAINING[name]
    words = [f"data.train.image={tif('image.tif', image) if image is not None else 'none.tif'}"]
    words.append(f"data.train.label={tif('label.tif', label)}")
    code = command(monkeypatch, "train", "data=files", *words, *TINY[-2:], "epochs=1")
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 1
    assert len(errors) == 1
    assert told.lower() in errors[0].lower()
