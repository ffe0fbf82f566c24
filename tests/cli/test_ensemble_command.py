"""``ensemble``: one checkpoint of several, with and without a data set to choose by; and what it refuses."""

import json

import numpy as np
import pytest
from made_checkpoints import predict, run_command, save_checkpoint, write_volume
from scipy.special import expit, logit
from tiny_training import TINY, command

from mitoseg.networks.checkpoint import load_model
from mitoseg.volumes import open_volume

NAMES = ("a.ckpt", "b.ckpt")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two members of equal weights and unlike calibrations, and a volume."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.ckpt", threshold=0.4)
    save_checkpoint("b.ckpt", threshold=0.6, calibration={"prior_shift": -1.0, "temperature": 2.0, "bias": 0.3})
    grey = np.random.default_rng(1).integers(0, 256, (3, 40, 44), np.uint8)
    write_volume("grey.tif", grey, (5, 5, 5))
    return tmp_path


def test_it_predicts_the_mean_of_its_members(folder, monkeypatch):
    assert not run_command(monkeypatch, "ensemble", f"checkpoints=[{','.join(NAMES)}]", "output=both.ckpt")
    assert load_model("both.ckpt").threshold == pytest.approx(0.5)
    for name in (*NAMES, "both.ckpt"):
        assert not predict(monkeypatch, f"checkpoint={name}", "input=grey.tif", f"output={name}.tif", "precision=fp32")
    a, b, both = (open_volume(f"{name}.tif").read().astype(float) for name in (*NAMES, "both.ckpt"))
    np.testing.assert_allclose(both, expit((logit(a) + logit(b)) / 2), atol=1e-4)


def test_uncertainty_is_the_deviation_between_members(folder, monkeypatch):
    run_command(monkeypatch, "ensemble", f"checkpoints=[{','.join(NAMES)}]", "output=both.ckpt")
    words = ["input=grey.tif", "precision=fp32"]
    for name in NAMES:
        predict(monkeypatch, f"checkpoint={name}", f"output={name}.tif", *words)
    assert not predict(monkeypatch, "checkpoint=both.ckpt", "output=unsure.tif", "save=uncertainty", *words)
    both = np.stack([open_volume(f"{name}.tif").read() for name in NAMES])
    np.testing.assert_allclose(open_volume("unsure.tif").read(), both.std(axis=0), atol=1e-4)


def test_with_data_it_chooses_calibration_and_threshold(work, monkeypatch):
    """Two runs that differ in their seed alone; scores of validation and test, provenance of both members."""
    again = [word for word in TINY if not word.startswith(("seed=", "hydra.run.dir="))]
    assert not command(monkeypatch, "train", *again, "seed=2", "hydra.run.dir=run2", "test=false")
    members = [f"{run}/checkpoints/best.ckpt" for run in ("run", "run2")]
    data = [word for word in TINY if word.startswith("data")]
    words = [f"checkpoints=[{','.join(members)}]", "output=two.ckpt", "hydra.run.dir=two", "method=strided", *data]
    assert not command(monkeypatch, "ensemble", *words)
    metrics = json.loads((work / "two" / "metrics.json").read_text())
    model = load_model("two.ckpt")
    assert model.threshold == metrics["validation"]["threshold"] == metrics["test"]["threshold"]
    assert model.calibration["temperature"] != 1
    alone = [json.loads((work / run / "metrics.json").read_text())["validation"] for run in ("run", "run2")]
    assert metrics["validation"]["jaccard_foreground"] > min(each["jaccard_foreground"] for each in alone) - 0.02
    provenance = json.loads((work / "two" / "provenance.json").read_text())
    assert set(provenance["members"]) == set(members)
    assert (work / "two" / "figures").is_dir()


def save_probability(name, values, threshold=0.5, **metadata):
    write_volume(name, values, threshold=threshold, **metadata)


def test_stored_predictions_are_averaged_by_their_log_odds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    values[0, 0, :2] = [0, 1]
    bytes_zyx = np.rint(values[::-1] * 255).astype(np.uint8)
    save_probability("a.tif", values, 0.3, kind="probability")
    save_probability("b.tif", bytes_zyx, 0.5, kind="probability", scale=255)
    monkeypatch.setattr("mitoseg.workflows.ensemble._SLAB", 84)
    assert not run_command(monkeypatch, "ensemble", "predictions=[a.tif,b.tif]", "output=mean.tif")
    found = open_volume("mean.tif")
    expected = expit((logit(values) + logit(np.clip(bytes_zyx / 255, 1 / 1020, 1 - 1 / 1020))) / 2)
    np.testing.assert_allclose(found.read()[1:], expected[1:], atol=1e-5)
    assert found.read()[0, 0, 0] < 0.01
    assert found.read()[0, 0, 1] > 0.9
    assert found.info.metadata == {"kind": "probability", "threshold": 0.4, "scale": 1}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("checkpoints=a.ckpt output=c.ckpt", "the option takes other values: checkpoints=a.ckpt; give a list"),
        ("checkpoints=[a.ckpt] output=c.ckpt", "an ensemble needs two checkpoints or more"),
        ("checkpoints=[a.ckpt,a.ckpt] output=c.ckpt", "a file is given twice"),
        ("checkpoints=[a.ckpt,b.ckpt] output=b.ckpt", "the output is one of the inputs"),
        ("checkpoints=[a.ckpt,b.ckpt] output=there.ckpt", "the output exists"),
        ("checkpoints=[epfl-unet25d,no.ckpt] output=c.ckpt", "no such checkpoint: 'no.ckpt'"),
        ("checkpoints=[a.ckpt,no.ckpt] output=c.ckpt", "no such checkpoint"),
        ("checkpoints=[a.ckpt,adjacent.ckpt] output=c.ckpt", "the checkpoints differ in channels"),
        ("checkpoints=[a.ckpt,b.ckpt] output=c.ckpt test=maybe", "the option takes other values: test=maybe"),
        ("predictions=[a.tif] output=c.tif", "a mean needs different predictions"),
        ("predictions=a.tif output=c.tif", "the option takes other values: predictions=a.tif; give a list"),
        ("predictions=[a.tif,b.tif] checkpoints=[c,d] output=c.tif", "both checkpoints= and predictions= are given"),
        ("predictions=[a.tif,b.tif] output=c.tif", "the predictions differ in shape"),
        ("predictions=[a.tif,mask.tif] output=c.tif", "a mean needs probabilities, this is a mask"),
        ("predictions=[a.tif,wild.tif] output=c.tif", "the prediction holds no probabilities"),
    ],
)
def test_mistakes_get_one_line(folder, monkeypatch, capsys, words, line):
    save_checkpoint("adjacent.ckpt", arguments={"in_channels": 1}, channels="adjacent")
    for name, shape, value in (("a", (2, 3, 4), 0.5), ("b", (2, 3, 5), 0.5), ("wild", (2, 3, 4), 7)):
        save_probability(f"{name}.tif", np.full(shape, value, np.float32), kind="probability")
    save_probability("mask.tif", np.ones((2, 3, 4), np.uint8), kind="mask")
    (folder / "there.ckpt").write_bytes(b"x")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert run_command(monkeypatch, "ensemble", "hydra.run.dir=run", *words.split()) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert f"error: {line}" in told
    assert "Traceback" not in told
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
