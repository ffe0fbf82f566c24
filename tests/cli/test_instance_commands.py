"""``save=instances`` in predict, and the scores of instances in evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from made_checkpoints import OneConvolution, run_command, save_checkpoint

from mitoseg.evaluation.instances import prediction_instances
from mitoseg.geometry import Box
from mitoseg.segmentation import Labelling, label_array
from mitoseg.volumes import create_volume, open_volume

GREY = np.random.default_rng(0).integers(0, 255, (6, 40, 48), np.uint8)
SIZE = (5.0, 5.0, 5.0)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1})
    tifffile.imwrite("in.tif", GREY, photometric="minisblack")
    tifffile.imwrite("truth.tif", (GREY > 128).astype(np.uint8), photometric="minisblack")

    def call(command, *words):
        code = run_command(monkeypatch, command, "progress=false", *words)
        told = capsys.readouterr()
        return code, " ".join((told.err + told.out).split())

    return call


def predict(run, *words):
    return run("predict", "checkpoint=a.ckpt", "input=in.tif", "trust=true", "accelerator=cpu", *words)


@pytest.mark.parametrize("output", ["i.tif", "i.zarr", "i.h5"])
def test_instances_are_those_of_the_mask(run, output, monkeypatch):
    monkeypatch.setattr("mitoseg.segmentation.labelling.BLOCK", (2, 16, 20))
    words = ["tile=[2,16,16]", "labelling.min_volume=1000", "labelling.connectivity=18", "threshold=0.99"]
    code, told = predict(run, f"output={output}", "save=instances", *words)
    assert not code, told
    assert not predict(run, "output=m.tif", "save=mask", "threshold=0.99")[0]
    mask, found = open_volume("m.tif"), open_volume(output)
    expected = label_array(mask.read(), Labelling(18, min_volume=1000.0), voxel_size=SIZE)
    np.testing.assert_array_equal(found.read(), expected)
    assert expected.max() > 3
    assert found.dtype == np.uint32
    assert found.voxel_size == SIZE
    about = found.info.metadata
    assert (about["kind"], about["threshold"]) == ("instances", mask.info.metadata["threshold"])
    assert about["labelling"] == {**about["labelling"], "connectivity": 18, "split": False, "min_volume": 1000}
    assert not list(Path().glob(".*unfinished"))


def test_steps_come_before_numbers(run):
    steps = ["postprocess=clean", "postprocess.min_volume=2000", "postprocess.smooth=3"]
    assert not predict(run, "output=i.tif", "save=instances", *steps)[0]
    assert not predict(run, "output=m.tif", "save=mask", *steps)[0]
    np.testing.assert_array_equal(open_volume("i.tif").read(), label_array(open_volume("m.tif").read()))
    assert open_volume("i.tif").info.metadata["postprocess"]["min_volume"] == 2000


def test_a_stored_probability_is_numbered_alike(run):
    assert not predict(run, "output=i.tif", "save=instances", "labelling=split")[0]
    assert not predict(run, "output=p.tif")[0]
    probability = open_volume("p.tif")
    found = prediction_instances(probability, Labelling(split=True))
    np.testing.assert_array_equal(found.read(), open_volume("i.tif").read())
    assert len(found) == found.read().max()
    assert found.info.metadata["threshold"] == probability.info.metadata["threshold"]


def test_evaluate_scores_them(run, tmp_path):
    assert not predict(run, "output=i.tif", "save=instances")[0]
    assert not predict(run, "output=p.tif")[0]
    words = ["truth=truth.tif", "small_objects=4", "bootstrap=20", "figures=false", "bands=[]"]
    code, told = run("evaluate", "prediction=i.tif", "hydra.run.dir=a", *words)
    assert not code
    assert "adapted Rand error" in told
    assert not run("evaluate", "prediction=p.tif", "instances=true", "hydra.run.dir=b", *words)[0]
    assert not run("evaluate", "prediction=p.tif", "hydra.run.dir=c", *words)[0]
    assert not run("evaluate", "prediction=i.tif", "instances=false", "hydra.run.dir=d", *words)[0]
    a, b, c, d = (json.loads((tmp_path / n / "metrics.json").read_text()).get("instances") for n in "abcd")
    assert c is d is None
    assert b["labelling"]["connectivity"] == 6
    assert a["labelling"] is None
    assert a["truth_labelled"]
    assert {k: v for k, v in a.items() if k != "labelling"} == {k: v for k, v in b.items() if k != "labelling"}
    truth = label_array(GREY > 128)
    assert a["all"]["truth"] == (np.bincount(truth.ravel())[1:] >= 4).sum()
    assert not run("evaluate", "prediction=i.tif", "hydra.run.dir=e", "crop=[0:6,0:40,8:40]", *words)[0]
    e = json.loads((tmp_path / "e" / "metrics.json").read_text())["instances"]
    assert e["all"]["volume_truth"] < a["all"]["volume_truth"]


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("predict", ["dtype=uint8"], "cannot save instances as that type"),
        ("predict", ["labelling.connectivity=8"], "no neighbourhood"),
        ("predict", ["save=nonsense"], "uncertainty, instances"),
        ("evaluate", ["instances=perhaps"], "the option takes other values: instances=perhaps; give true or false"),
        ("evaluate", ["small_objects=-1"], "small_objects is too small: -1"),
        ("evaluate", ["instances=true", "labelling=split"], "the volume has no voxel size"),
    ],
)
def test_mistakes_get_one_line(run, command, words, line, tmp_path):
    if command == "predict":
        code, told = predict(run, "output=x.tif", "save=instances", *words)
    else:
        code, told = run("evaluate", "prediction=truth.tif", "truth=truth.tif", *words)
    assert code == 1
    assert line in told
    assert not (tmp_path / "x.tif").exists()
    assert not list(Path().glob(".*unfinished"))


def test_an_unknown_voxel_size_is_told_before_predicting(run, monkeypatch):
    save_checkpoint("b.ckpt", OneConvolution(), arguments={"in_channels": 1}, voxel_size=None)
    monkeypatch.setattr("mitoseg.workflows.predict.predict_staged", lambda *_: pytest.fail("predicted all the same"))
    words = ["checkpoint=b.ckpt", "input=in.tif", "trust=true", "accelerator=cpu", "output=x.tif"]
    code, told = run("predict", *words, "save=instances", "labelling=split")
    assert code == 1
    assert "the volume has no voxel size" in told


def test_files_that_do_not_lie_on_each_other(run):
    for name, size in (("five.tif", 5), ("eight.tif", 8)):
        with create_volume(name, (4, 9, 9), np.uint8, voxel_size=[size] * 3, metadata={"kind": "mask"}) as writer:
            writer.write(Box((1, 1, 1), (3, 5, 5)), np.ones((2, 4, 4), np.uint8))
    for words in (["evaluate", "prediction=eight.tif", "truth=five.tif", "figures=false"],
                  ["measure", "input=eight.tif", "image=five.tif", "output=a.csv", "overwrite=true"]):  # fmt: skip
        code, told = run(*words)
        assert (code, "the files state other voxel sizes" in told) == (0, True), told
        assert "voxel sizes" not in run(*words, "voxel_size=[5,5,5]")[1]
    assert "the prediction is compared with itself" in run("evaluate", "prediction=five.tif", "truth=five.tif")[1]
