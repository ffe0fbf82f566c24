"""``postprocess=`` in predict and evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from made_checkpoints import OneConvolution, run_command, save_checkpoint

from mitoseg.segmentation import Postprocess
from mitoseg.volumes import open_volume

GREY = np.random.default_rng(0).integers(0, 255, (6, 40, 48), np.uint8)
STEPS = ["postprocess=clean", "postprocess.min_volume=2000", "postprocess.z_median=3", "postprocess.smooth=3"]
SAME = Postprocess(smooth=3, min_volume=2000, z_median=3, fill_holes=True)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1})
    tifffile.imwrite("in.tif", GREY, photometric="minisblack")
    tifffile.imwrite("truth.tif", (GREY > 128).astype(np.uint8), photometric="minisblack")

    def call(command, *words):
        code = run_command(monkeypatch, command, "progress=false", *words)
        return code, " ".join(capsys.readouterr().err.split())

    return call


def predict(run, *words):
    return run("predict", "checkpoint=a.ckpt", "input=in.tif", "trust=true", "accelerator=cpu", *words)


@pytest.mark.parametrize("output", ["mask.tif", "mask.zarr", "mask.h5"])
def test_a_clean_mask_is_the_steps_applied_to_the_probability(run, output):
    code, told = predict(run, f"output={output}", "save=mask", "tile=[2,16,16]", *STEPS)
    assert not code, told
    assert not predict(run, "output=p.tif")[0]
    probability = open_volume("p.tif")
    expected = SAME(probability.read(), probability.info.metadata["threshold"], (5.0, 5.0, 5.0))
    mask = open_volume(output)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask.read(), expected)
    assert mask.info.metadata["kind"] == "mask"
    assert mask.info.metadata["postprocess"]["z_median"] == 3
    assert not list(Path().glob(".*unfinished"))


def test_evaluate_applies_the_same_steps(run, tmp_path):
    assert not predict(run, "output=p.tif")[0]
    assert not predict(run, "output=m.tif", "save=mask", *STEPS)[0]
    assert not run("evaluate", "prediction=p.tif", "truth=truth.tif", "hydra.run.dir=a", *STEPS)[0]
    assert not run("evaluate", "prediction=m.tif", "truth=truth.tif", "hydra.run.dir=b")[0]
    a, b = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in "ab")
    assert a["jaccard_foreground"] == b["jaccard_foreground"]
    assert a["postprocess"]["min_volume"] == 2000
    assert b["postprocess"] is None
    assert not run("evaluate", "prediction=p.tif", "truth=truth.tif", "hydra.run.dir=c")[0]
    assert json.loads((tmp_path / "c" / "metrics.json").read_text())["counts"] != a["counts"]


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("predict", [], "postprocess makes masks"),
        ("predict", ["save=mask", "postprocess.z_median=4"], "z_median is not odd"),
        ("evaluate", ["prediction=truth.tif"], "postprocess needs probabilities"),
        ("evaluate", ["prediction=p.tif", "postprocess.min_mean=7"], "min_mean is not a probability"),
    ],
)
def test_mistakes_get_one_line(run, command, words, line, tmp_path):
    assert not predict(run, "output=p.tif")[0]
    if command == "predict":
        code, told = predict(run, "output=x.tif", "postprocess=clean", *words)
    else:
        code, told = run("evaluate", "truth=truth.tif", "postprocess=clean", *words)
    assert code == 1
    assert line in told
    assert not (tmp_path / "x.tif").exists()


def test_a_voxel_size_is_asked_for(run):
    tifffile.imwrite(
        "p.tif", np.random.default_rng(0).random((6, 20, 20)).astype(np.float32), photometric="minisblack"
    )
    tifffile.imwrite("t.tif", np.ones((6, 20, 20), np.uint8), photometric="minisblack")
    code, told = run("evaluate", "prediction=p.tif", "truth=t.tif", "postprocess=clean")
    assert code == 1
    assert "smooth is in nm, and the volume has no voxel size; give voxel_size=[z,y,x]" in told
    assert not run("evaluate", "prediction=p.tif", "truth=t.tif", "postprocess=clean", "voxel_size=[5,5,5]")[0]
