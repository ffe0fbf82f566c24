"""``ensemble``: one checkpoint of several, with and without a data set to choose by; and what it refuses."""

import json

import numpy as np
import pytest
from made_checkpoints import predict, run_command, save_checkpoint
from scipy.special import expit, logit
from tiny_training import TINY, command

from mitoseg.geometry import Box
from mitoseg.networks.checkpoint import load_model
from mitoseg.volumes import create_volume, open_volume

NAMES = ("a.ckpt", "b.ckpt")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two members of equal weights and unlike calibrations, and a volume."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.ckpt", threshold=0.4)
    save_checkpoint("b.ckpt", threshold=0.6, calibration={"prior_shift": -1.0, "temperature": 2.0, "bias": 0.3})
    grey = np.random.default_rng(1).integers(0, 256, (3, 40, 44), np.uint8)
    with create_volume("grey.tif", grey.shape, grey.dtype, voxel_size=(5, 5, 5)) as writer:
        writer.write(Box.of_shape(grey.shape), grey)
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


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["checkpoints=a.ckpt", "output=c.ckpt"], "an ensemble needs two checkpoints or more"),
        (["checkpoints=[a.ckpt]", "output=c.ckpt"], "an ensemble needs two checkpoints or more"),
        (["checkpoints=[a.ckpt,a.ckpt]", "output=c.ckpt"], "a checkpoint is given twice"),
        (["checkpoints=[a.ckpt,b.ckpt]", "output=b.ckpt"], "the output is one of the checkpoints"),
        (["checkpoints=[a.ckpt,b.ckpt]", "output=there.ckpt"], "exists"),
        (["checkpoints=[a.ckpt,no.ckpt]", "output=c.ckpt"], "no such checkpoint"),
        (["checkpoints=[a.ckpt,adjacent.ckpt]", "output=c.ckpt"], "the checkpoints differ in channels"),
        (["checkpoints=[a.ckpt,b.ckpt]", "output=c.ckpt", "test=maybe"], "test is neither true nor false"),
    ],
)
def test_mistakes_get_one_line(folder, monkeypatch, capsys, words, line):
    save_checkpoint("adjacent.ckpt", arguments={"in_channels": 1}, channels="adjacent")
    (folder / "there.ckpt").write_bytes(b"x")
    before = (folder / "b.ckpt").read_bytes()
    assert run_command(monkeypatch, "ensemble", *words) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert line in told
    assert told.startswith("error: ")
    assert not (folder / "c.ckpt").exists()
    assert (folder / "b.ckpt").read_bytes() == before
