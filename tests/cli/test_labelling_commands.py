"""What comes after prediction, by worker processes and by Dask: to the byte what one process writes."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from made_checkpoints import OneConvolution, run_command, save_checkpoint
from scipy.ndimage import gaussian_filter

from mitoseg.volumes import open_volume

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
FIELD = gaussian_filter(np.random.default_rng(0).standard_normal((6, 40, 48)), 2)
GREY = np.rint(255 * (FIELD - FIELD.min()) / np.ptp(FIELD)).astype(np.uint8)
ENGINES = (["workers=2"], ["engine=dask", "workers=2"])
CLEAN = ["postprocess=clean", "postprocess.smooth=4", "postprocess.min_volume=2000", "postprocess.z_median=3"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in a folder with a checkpoint, a volume and its labels, blocks being small; it must succeed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mitoseg.segmentation.labelling.BLOCK", (2, 16, 20))
    monkeypatch.setattr("mitoseg.workflows.session.BLOCK", (2, 16, 20))
    monkeypatch.setattr("mitoseg.workflows.predict.BLOCK", (2, 16, 20))
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1})
    tifffile.imwrite("in.tif", GREY, photometric="minisblack")
    tifffile.imwrite("truth.tif", (GREY > 128).astype(np.uint8), photometric="minisblack")

    def call(*words):
        assert run_command(monkeypatch, *words, "progress=false") == 0

    return call


def predict(run, *words):
    fixed = ("checkpoint=a.ckpt", "input=in.tif", "trust=true", "accelerator=cpu", "precision=fp32", "compile=false")
    run("predict", *fixed, "tile=[2,16,16]", "hydra.run.dir=run", *words)


def files(folder):
    folder = Path(folder)
    if folder.is_file():
        return folder.read_bytes()
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_same(one, other):
    assert files(one) == files(other)
    assert not [p for p in Path().rglob(".*") if "unfinished" in p.name or "cleaning" in p.name]


@pytest.mark.parametrize("engine", ENGINES)
def test_instances(run, engine):
    if "engine=dask" in engine:
        pytest.importorskip("distributed")
    words = ["save=instances", "labelling=split", "labelling.fragment=1000", "labelling.min_volume=1000"]
    predict(run, *words, "output=one.zarr")
    predict(run, *words, "output=two.zarr", *engine)
    check_same("one.zarr", "two.zarr")


def test_tiles_without_a_mitochondrion(run):
    """Their chunks hold zeros alone, and must be there all the same."""
    for name, engine in (("one", []), ("two", ENGINES[0])):
        predict(run, "save=mask", "threshold=1", f"output={name}.zarr", *engine)
    check_same("one.zarr", "two.zarr")
    assert not open_volume("one.zarr").read().all()


@pytest.mark.parametrize("save", ["instances", "mask"])
def test_post_processing(run, save):
    for name, engine in (("one", []), ("two", ENGINES[0])):
        predict(run, f"save={save}", *CLEAN, f"output={name}.tif", *engine)
    check_same("one.tif", "two.tif")


def test_resampled_instances(run):
    for name, engine in (("one", []), ("two", ENGINES[0])):
        words = ["save=instances", "voxel_size=[10,5,5]", "resample=[5,5,5]"]
        predict(run, *words, f"output={name}.zarr", *engine)
    check_same("one.zarr", "two.zarr")


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_of_instances(run, engine):
    if "engine=dask" in engine:
        pytest.importorskip("distributed")
    predict(run, "output=p.tif")
    words = ["prediction=p.tif", "truth=truth.tif", "instances=true", "small_objects=4", "figures=false", *CLEAN]
    run("evaluate", *words, "hydra.run.dir=one")
    run("evaluate", *words, "hydra.run.dir=two", *engine)
    check_same("one/metrics.json", "two/metrics.json")


def test_measures_and_the_instances_they_speak_of(run):
    predict(run, "output=p.tif")
    for name, engine in (("one", []), ("two", ENGINES[0])):
        words = ["input=p.tif", f"output={name}.csv", f"save_instances={name}.zarr", "labelling=split"]
        run("measure", *words, "labelling.fragment=1000", "hydra.run.dir=run", *engine)
    check_same("one.csv", "two.csv")
    check_same("one.zarr", "two.zarr")
