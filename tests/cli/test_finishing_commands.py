"""What comes after prediction: ``postprocess=``, ``save=instances`` and their scores; by workers to the byte alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import OneConvolution, prepare, run_command, save_checkpoint, tif
from scipy.ndimage import gaussian_filter

from mitoseg.evaluation.instances import prediction_instances
from mitoseg.geometry import Box
from mitoseg.segmentation import Labelling, Postprocess, label_array
from mitoseg.volumes import create_volume, open_volume

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
GREY = np.random.default_rng(0).integers(0, 255, (6, 40, 48), np.uint8)
SIZE = (5.0, 5.0, 5.0)
REPORT = ["report=true", "compile=false", "voxel_size=[20,10,10]", "resample=none", "hydra.run.dir=run"]
STEPS = ["postprocess=clean", "postprocess.min_volume=2000", "postprocess.z_median=3", "postprocess.smooth=3"]
SAME = Postprocess(smooth=3, min_volume=2000, z_median=3, fill_holes=True)
FIELD = gaussian_filter(np.random.default_rng(0).standard_normal((6, 40, 48)), 2)
SMOOTH = np.rint(255 * (FIELD - FIELD.min()) / np.ptp(FIELD)).astype(np.uint8)
ENGINES = (["workers=2"], ["engine=dask", "workers=2"])
CLEAN = ["postprocess=clean", "postprocess.smooth=4", "postprocess.min_volume=2000", "postprocess.z_median=3"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in a folder with a checkpoint, a volume and its labels; exit code, and all that it says."""
    prepare(tmp_path, monkeypatch, GREY, (GREY > 128).astype(np.uint8))

    def call(command, *words):
        if command == "predict":
            words = ("checkpoint=a.ckpt", "input=in.tif", "trust=true", "accelerator=cpu", "expect=false", *words)
        code = run_command(monkeypatch, command, "progress=false", *words)
        told = capsys.readouterr()
        return code, " ".join((told.err + told.out).split())

    return call


@pytest.fixture
def succeed(run, monkeypatch):
    """The same with small blocks and a smooth volume; it must succeed."""
    for module in ("segmentation.labelling", "workflows.session", "workflows.predict"):
        monkeypatch.setattr(f"mitoseg.{module}.BLOCK", (2, 16, 20))
    tif("in.tif", SMOOTH)
    tif("truth.tif", (SMOOTH > 128).astype(np.uint8))

    def call(command, *words):
        if command == "predict":
            words = ("precision=fp32", "compile=false", "tile=[2,16,16]", "hydra.run.dir=run", *words)
        code, told = run(command, *words)
        assert not code, told

    return call


def metrics(name):
    return json.loads(Path(name, "metrics.json").read_text())


@pytest.mark.parametrize("output", ["mask.tif", "mask.zarr", "mask.h5"])
def test_a_clean_mask_is_the_steps_applied_to_the_probability(run, output):
    code, told = run("predict", f"output={output}", "save=mask", "tile=[2,16,16]", *STEPS)
    assert not code, told
    assert not run("predict", "output=p.tif")[0]
    probability = open_volume("p.tif")
    expected = SAME(probability.read(), probability.info.metadata["threshold"], SIZE)
    mask = open_volume(output)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask.read(), expected)
    assert mask.info.metadata["kind"] == "mask"
    assert mask.info.metadata["postprocess"]["z_median"] == 3
    assert not list(Path().glob(".*unfinished"))


def test_evaluate_applies_the_same_steps(run):
    assert not run("predict", "output=p.tif")[0]
    assert not run("predict", "output=m.tif", "save=mask", *STEPS)[0]
    for name, words in {"a": ["p.tif", *STEPS], "b": ["m.tif"], "c": ["p.tif"]}.items():
        given = [f"prediction={words[0]}", "truth=truth.tif", f"hydra.run.dir={name}", *words[1:]]
        assert not run("evaluate", *given)[0]
    a, b, c = map(metrics, "abc")
    assert a["jaccard_foreground"] == b["jaccard_foreground"]
    assert a["postprocess"]["min_volume"] == 2000
    assert b["postprocess"] is None
    assert c["counts"] != a["counts"]


def test_a_voxel_size_is_asked_for(run):
    tif("p.tif", np.random.default_rng(0).random((6, 20, 20)).astype(np.float32))
    tif("t.tif", np.ones((6, 20, 20), np.uint8))
    words = ["prediction=p.tif", "truth=t.tif", "postprocess=clean"]
    code, told = run("evaluate", *words)
    assert code == 1
    assert "smooth is in nm, and the volume has no voxel size; give voxel_size=[z,y,x]" in told
    assert not run("evaluate", *words, "voxel_size=[5,5,5]")[0]


@pytest.mark.parametrize("output", ["i.tif", "i.zarr", "i.h5"])
def test_instances_are_those_of_the_mask(run, output, monkeypatch):
    monkeypatch.setattr("mitoseg.segmentation.labelling.BLOCK", (2, 16, 20))
    words = ["tile=[2,16,16]", "labelling.min_volume=1000", "labelling.connectivity=18", "threshold=0.99"]
    code, told = run("predict", f"output={output}", "save=instances", *words)
    assert not code, told
    assert not run("predict", "output=m.tif", "save=mask", "threshold=0.99")[0]
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
    assert not run("predict", "output=i.tif", "save=instances", *steps)[0]
    assert not run("predict", "output=m.tif", "save=mask", *steps)[0]
    np.testing.assert_array_equal(open_volume("i.tif").read(), label_array(open_volume("m.tif").read()))
    assert open_volume("i.tif").info.metadata["postprocess"]["min_volume"] == 2000


def test_a_stored_probability_is_numbered_alike(run):
    assert not run("predict", "output=i.tif", "save=instances", "labelling=split")[0]
    assert not run("predict", "output=p.tif")[0]
    probability = open_volume("p.tif")
    found = prediction_instances(probability, Labelling(split=True))
    np.testing.assert_array_equal(found.read(), open_volume("i.tif").read())
    assert len(found) == found.read().max()
    assert found.info.metadata["threshold"] == probability.info.metadata["threshold"]


def test_evaluate_scores_instances(run):
    assert not run("predict", "output=i.tif", "save=instances")[0]
    assert not run("predict", "output=p.tif")[0]
    words = ["truth=truth.tif", "small_objects=4", "bootstrap=20", "figures=false", "bands=[]"]
    code, told = run("evaluate", "prediction=i.tif", "hydra.run.dir=a", *words)
    assert not code
    assert "adapted Rand error" in told
    assert not run("evaluate", "prediction=p.tif", "instances=true", "hydra.run.dir=b", *words)[0]
    assert not run("evaluate", "prediction=p.tif", "hydra.run.dir=c", *words)[0]
    assert not run("evaluate", "prediction=i.tif", "instances=false", "hydra.run.dir=d", *words)[0]
    assert not run("evaluate", "prediction=i.tif", "hydra.run.dir=e", "crop=[0:6,0:40,8:40]", *words)[0]
    a, b, c, d, e = (metrics(name).get("instances") for name in "abcde")
    assert c is d is None
    assert b["labelling"]["connectivity"] == 6
    assert a["labelling"] is None
    assert a["truth_labelled"]
    assert {k: v for k, v in a.items() if k != "labelling"} == {k: v for k, v in b.items() if k != "labelling"}
    truth = label_array(GREY > 128)
    assert a["all"]["truth"] == (np.bincount(truth.ravel())[1:] >= 4).sum()
    assert e["all"]["volume_truth"] < a["all"]["volume_truth"]


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        ("predict", ["postprocess=clean"], "postprocess makes masks"),
        ("predict", ["save=mask", "postprocess=clean", "postprocess.z_median=4"], "z_median is not odd"),
        ("evaluate", ["postprocess=clean"], "postprocess needs probabilities"),
        ("evaluate", ["prediction=p.tif", "postprocess.min_mean=7"], "min_mean is not a probability"),
        ("predict", ["save=instances", "dtype=uint8"], "cannot save instances as that type"),
        ("predict", ["save=instances", "labelling.connectivity=8"], "not a neighbourhood"),
        ("predict", ["save=nonsense"], "uncertainty, instances"),
        ("evaluate", ["instances=perhaps"], "the option takes other values: instances=perhaps; give true or false"),
        ("evaluate", ["small_objects=-1"], "small_objects is too small: -1"),
        ("evaluate", ["instances=true", "labelling=split"], "the volume has no voxel size"),
    ],
)
def test_mistakes_get_one_line(run, command, words, line):
    if "prediction=p.tif" in words:
        assert not run("predict", "output=p.tif")[0]
    given = {"predict": ["output=x.tif"], "evaluate": ["prediction=truth.tif", "truth=truth.tif"]}[command]
    given = [word for word in given if word.split("=")[0] not in {word.split("=")[0] for word in words}]
    code, told = run(command, *given, *words)
    assert code == 1
    assert line in told
    assert not Path("x.tif").exists()
    assert not list(Path().glob(".*unfinished"))


@pytest.mark.parametrize("save", ["probability", "mask", "instances"])
def test_a_report_of_one_volume(run, save):
    tif("in.tif", SMOOTH)
    words = [*REPORT, "output=out.h5", f"save={save}", f"expect={save == 'mask'}"]
    code, told = run("predict", *words)
    assert not code, told
    text = Path("run/report.html").read_text(encoding="utf-8")
    assert "Prediction of in.tif" in text
    assert text.count('id="slices"') == text.count('id="scene-part"') == 1
    assert 'id="errors"' not in text  # there is no truth
    assert ("JAC to expect, without labels" in text) == (save == "mask")
    for word in ("20 \N{MULTIPLICATION SIGN} 10 \N{MULTIPLICATION SIGN} 10 nm", "a.ckpt", "out.h5"):
        assert word in text
    assert "report in" in told


def test_reports_of_several_volumes_and_of_none(run):
    tif("b.tif", SMOOTH)
    assert not run("predict", *REPORT, "input=[in.tif,b.tif]", "output=out")[0]
    assert sorted(p.name for p in Path("run").glob("*.html")) == ["report_b.zarr.html", "report_in.zarr.html"]
    assert "Prediction of b.tif" in Path("run/report_b.zarr.html").read_text(encoding="utf-8")
    assert not run("predict", "hydra.run.dir=none", "output=out.h5")[0]
    assert not list(Path("none").glob("*.html"))
    code, told = run("predict", *REPORT, "output=unsure.h5", "save=uncertainty", "tta=flips")
    assert code == 1
    assert "error: the report shows mitochondria: 'save=uncertainty'" in told
    assert not Path("unsure.h5").exists()


def test_an_unknown_voxel_size_is_told_before_predicting(run, monkeypatch):
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1}, voxel_size=None)
    monkeypatch.setattr("mitoseg.workflows.predict.predict_staged", lambda *_: pytest.fail("predicted all the same"))
    code, told = run("predict", "output=x.tif", "save=instances", "labelling=split")
    assert code == 1
    assert "the volume has no voxel size" in told


def test_files_that_do_not_lie_on_each_other(run):
    for name, size in (("five.tif", 5), ("eight.tif", 8)):
        with create_volume(name, (4, 9, 9), np.uint8, voxel_size=[size] * 3, metadata={"kind": "mask"}) as writer:
            writer.write(Box((1, 1, 1), (3, 5, 5)), np.ones((2, 4, 4), np.uint8))
    for words in (["evaluate", "prediction=eight.tif", "truth=five.tif", "figures=false"],
                  ["measure", "input=eight.tif", "image=five.tif", "output=a.csv", "overwrite=true"]):  # fmt: skip
        code, told = run(*words)
        assert (code, "the files state different voxel sizes" in told) == (0, True), told
        assert "voxel sizes" not in run(*words, "voxel_size=[5,5,5]")[1]
    assert "the prediction is compared with itself" in run("evaluate", "prediction=five.tif", "truth=five.tif")[1]


def files(folder):
    folder = Path(folder)
    if folder.is_file():
        return folder.read_bytes()
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_same(one, other):
    assert files(one) == files(other)
    assert not [p for p in Path().rglob(".*") if "unfinished" in p.name or "cleaning" in p.name]


SPLIT = ["save=instances", "labelling=split", "labelling.fragment=1000", "labelling.min_volume=1000"]
NOTHING = ["save=mask", "threshold=1"]  # chunks that hold zeros alone must be there all the same


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "suffix", "engine"),
    [
        *((SPLIT, ".zarr", engine) for engine in ENGINES),
        (NOTHING, ".zarr", ENGINES[0]),
        *(([f"save={save}", *CLEAN], ".tif", ENGINES[0]) for save in ("instances", "mask")),
        (["save=instances", "voxel_size=[10,5,5]", "resample=[5,5,5]"], ".zarr", ENGINES[0]),
    ],
)
def test_workers_write_the_same(succeed, words, suffix, engine):
    if "engine=dask" in engine:
        pytest.importorskip("distributed")
    succeed("predict", *words, f"output=one{suffix}")
    succeed("predict", *words, f"output=two{suffix}", *engine)
    check_same(f"one{suffix}", f"two{suffix}")
    assert words is not NOTHING or not open_volume("one.zarr").read().all()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_workers_score_instances_alike(succeed, engine):
    if "engine=dask" in engine:
        pytest.importorskip("distributed")
    succeed("predict", "output=p.tif")
    words = ["prediction=p.tif", "truth=truth.tif", "instances=true", "small_objects=4", "figures=false", *CLEAN]
    succeed("evaluate", *words, "hydra.run.dir=one")
    succeed("evaluate", *words, "hydra.run.dir=two", *engine)
    check_same("one/metrics.json", "two/metrics.json")


@pytest.mark.slow
def test_workers_measure_alike(succeed):
    succeed("predict", "output=p.tif")
    for name, engine in (("one", []), ("two", ENGINES[0])):
        words = ["input=p.tif", f"output={name}.csv", f"save_instances={name}.zarr", "labelling=split"]
        succeed("measure", *words, "labelling.fragment=1000", "hydra.run.dir=run", *engine)
    check_same("one.csv", "two.csv")
    check_same("one.zarr", "two.zarr")
