"""`import mitoseg`: what a notebook user calls gives what the commands write, and prints and writes nothing itself."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from made_checkpoints import OneConvolution, predict, run_command, save_checkpoint, write_volume
from omegaconf import OmegaConf
from scipy import ndimage

import mitoseg
from mitoseg.cli.launch import default_config_dir
from mitoseg.datasets.synthetic import generate_phantom
from mitoseg.storage import plain
from mitoseg.volumes import open_volume
from mitoseg.workflows.interface import DEFAULTS

ROOT = Path(__file__).parents[2]
SIZE = (5.0, 5.0, 5.0)
COARSE = (5.0, 10.0, 10.0)


def smooth_noise(shape=(6, 40, 48)):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), (1, 3, 3))
    return (120 + 500 * noise).clip(40, 254).astype(np.uint8)


IMAGE = smooth_noise()
LABELS = (IMAGE > 120).astype(np.uint32)
FEW = 0.9
"""A threshold above which there are several objects in it."""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small network with random weights, in a folder with nothing else but the image."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1})
    write_volume("in.tif", IMAGE, SIZE)
    return mitoseg.load("a.ckpt", accelerator="cpu", trust=True)


def command(monkeypatch, *words):
    """What the command writes for the same."""
    given = ("checkpoint=a.ckpt", "trust=true", "input=in.tif", "output=out.zarr", "overwrite=true")
    assert predict(monkeypatch, *given, "hydra.run.dir=run", *words) == 0
    return open_volume("out.zarr")


def test_importing_it_loads_no_libraries():
    names = "[name for name in ('torch', 'numpy', 'hydra') if name in sys.modules]"
    script = f"import mitoseg, sys; mitoseg.__version__; dir(mitoseg); print({names})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(mitoseg.__all__) <= set(dir(mitoseg))
    with pytest.raises(AttributeError, match="nothing"):
        mitoseg.nothing  # noqa: B018


@pytest.mark.parametrize("kind", ["numpy", "text", "path", "volume", "zarr", "dask"])
def test_every_source_gives_the_bytes_of_the_command(model, monkeypatch, kind):
    makers = {
        "numpy": lambda: IMAGE,
        "text": lambda: "in.tif",
        "path": lambda: Path("in.tif"),
        "volume": lambda: open_volume("in.tif"),
        "zarr": lambda: zarr.create_array({}, data=IMAGE, chunks=(2, 16, 16)),
        "dask": lambda: pytest.importorskip("dask.array").from_array(IMAGE, chunks=(3, 20, 20)),
    }
    size = None if kind in ("text", "path", "volume") else SIZE
    found_zyx = model.predict(makers[kind](), voxel_size=size)
    assert found_zyx.dtype == np.float32
    assert np.array_equal(found_zyx, command(monkeypatch).read())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"threshold": 0.7, "tta": "flips"}, ["threshold=0.7", "tta=flips"]),
        ({"postprocess": "clean", "normalize": "volume"}, ["postprocess=clean", "normalize=volume"]),
        ({"voxel_size": COARSE}, ["voxel_size=[5,10,10]"]),
        ({"voxel_size": COARSE, "postprocess": "clean"}, ["voxel_size=[5,10,10]", "postprocess=clean"]),
        ({"voxel_size": COARSE, "resample": "none"}, ["voxel_size=[5,10,10]", "resample=none"]),
        ({"tile": (2, 16, 16)}, ["tile=[2,16,16]"]),
    ],
    ids=lambda given: "-".join(map(str, given)) or "default",
)
def test_masks_are_those_of_the_command(model, monkeypatch, options, words):
    written = command(monkeypatch, "save=mask", *words)
    expected_zyx = written.read()
    mask_zyx = model.segment("in.tif", **options)
    assert mask_zyx.dtype == np.uint8
    assert np.array_equal(mask_zyx, expected_zyx)
    ours = model.segment("in.tif", output="ours.zarr", **options)
    assert np.array_equal(ours.read(), expected_zyx)
    assert (ours.dtype, ours.voxel_size) == (written.dtype, written.voxel_size)
    assert ours.info.metadata == written.info.metadata


def test_padding_counts_as_in_the_command(model, monkeypatch):
    padded_zyx = IMAGE.copy()
    padded_zyx[:, :, :12] = 0
    write_volume("padded.tif", padded_zyx, SIZE)
    written = command(monkeypatch, "input=padded.tif")
    ours = model.predict(padded_zyx, SIZE, output="ours.zarr")
    assert np.array_equal(ours.read(), written.read())
    assert ours.info.metadata == written.info.metadata
    assert ours.info.metadata["padding"] == 6 * 40 * 12
    assert not ours.read()[:, :, :12].any()


def test_the_defaults_are_those_of_the_command():
    conf = OmegaConf.load(default_config_dir() / "predict.yaml")
    assert {key: conf[key] for key in DEFAULTS if key != "progress"} | {"progress": None} == DEFAULTS


def test_from_an_image_to_scores_in_silence(model, capfd):
    before = set(Path().iterdir())
    shares = []
    mask_zyx = model.segment(IMAGE, SIZE, threshold=FEW, progress=shares.append)
    label_zyx = mitoseg.label(mask_zyx, SIZE, progress=shares.append)
    table = mitoseg.measure(label_zyx, SIZE, image=IMAGE, probability=model.predict(IMAGE, SIZE))
    scores = mitoseg.evaluate(mask_zyx, mask_zyx, SIZE, instances=True, bootstrap=10)
    assert shares.count(1.0) == 2
    expected_zyx, count = ndimage.label(mask_zyx)
    assert count > 1
    assert label_zyx.max() == count
    assert np.array_equal(label_zyx > 0, expected_zyx > 0)
    assert isinstance(table, pd.DataFrame)
    assert table["voxels"].tolist() == np.bincount(label_zyx.ravel())[1:].tolist()
    assert table["grey_mean"].notna().all()
    assert table["probability_mean"].between(FEW, 1).all()
    assert scores["jaccard_foreground"] == 1
    assert "instances" in scores
    assert set(Path().iterdir()) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("high", "dtype"), [(1, np.uint8), (255, np.uint8), (1, np.int64)])
def test_a_mask_to_be_measured_is_told(caplog, high, dtype):
    mask_zyx = np.zeros((4, 16, 16), dtype)
    mask_zyx[1:3, 2:7, 2:7] = high
    mitoseg.measure(mask_zyx, SIZE)
    assert not caplog.records
    mask_zyx[1:3, 9:14, 2:7] = high
    assert len(mitoseg.measure(mask_zyx, SIZE)) == 1
    assert "all 2 objects have one number, as in a mask; number the objects first" in caplog.text


def test_scores_are_those_of_the_command(model, monkeypatch):
    truth_zyx = (smooth_noise() > 120).astype(np.uint8)
    write_volume("truth.tif", truth_zyx, SIZE)
    command(monkeypatch)
    words = ["prediction=out.zarr", "truth=truth.tif", "instances=true", "bootstrap=50", "figures=false"]
    assert run_command(monkeypatch, "evaluate", *words, "progress=false", "hydra.run.dir=scores") == 0
    expected = json.loads(Path("scores/metrics.json").read_text())
    expected.pop("postprocess")
    found = mitoseg.evaluate("out.zarr", "truth.tif", instances=True, bootstrap=50)
    assert json.loads(json.dumps(plain(found))) == expected
    arrays = mitoseg.evaluate(open_volume("out.zarr").read(), truth_zyx, threshold=model.threshold, bootstrap=0)
    assert arrays["jaccard_foreground"] == expected["jaccard_foreground"]


def test_tables_are_those_of_the_command(model, monkeypatch):
    ours = mitoseg.label(model.segment("in.tif", threshold=FEW), SIZE, output="labels.tif")
    assert ours.info.metadata["kind"] == "instances"
    words = ["input=labels.tif", "output=table.csv", "image=in.tif", "progress=false", "hydra.run.dir=measured"]
    assert run_command(monkeypatch, "measure", *words) == 0
    table = mitoseg.measure("labels.tif", image="in.tif")
    pd.testing.assert_frame_equal(table, pd.read_csv("table.csv"), check_dtype=False)
    assert len(table) > 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.predict(IMAGE, method="other"), "method"),
        (lambda m: m.predict(IMAGE, tta="other"), "augmentation"),
        (lambda m: m.predict(IMAGE, normalize="other"), "normalise"),
        (lambda m: m.predict(IMAGE, resample="other"), "resample"),
        (lambda m: m.predict(IMAGE, padding="other"), "padding"),
        (lambda m: m.predict(IMAGE, precision="other"), "precision"),
        (lambda m: m.predict(IMAGE, memory="other"), "memory"),
        (lambda m: m.predict(IMAGE, tile=3), "tile"),
        (lambda m: m.predict(IMAGE, compile="other"), "compile"),
        (lambda m: m.predict(IMAGE, treshold=0.5), "option.*treshold"),
        (lambda m: m.segment(IMAGE, threshold=2), "threshold"),
        (lambda m: m.segment(IMAGE, postprocess="other"), "post-processing"),
        (lambda m: m.predict(IMAGE, (5, 5)), "voxel size"),
        (lambda m: m.predict(IMAGE[0]), "three axes"),
        (lambda m: m.predict(IMAGE.astype(complex)), "real numbers"),
        (lambda m: m.predict([[[1]]]), "array"),
        (lambda m: m.predict("none.tif"), "none.tif"),
        (lambda m: m.predict(IMAGE, output="in.tif"), "in.tif"),
        (lambda m: mitoseg.load("other"), "checkpoint"),
        (lambda m: mitoseg.load(""), "no such checkpoint"),
        (lambda m: m.predict(IMAGE, tta=[]), "no such test-time augmentation"),
        (lambda m: mitoseg.label(IMAGE > 120, labelling="split"), "no such labelling"),
        (lambda m: mitoseg.label(IMAGE / 255, threshold="high"), "not a probability"),
        (lambda m: mitoseg.evaluate(IMAGE > 120, IMAGE > 120, bands=3), "no width"),
        (lambda m: mitoseg.evaluate(IMAGE > 120, IMAGE > 120, bands=["a"]), "no width"),
        (lambda m: mitoseg.measure(LABELS, SIZE, reach="far"), "reach is not a distance"),
        (lambda m: mitoseg.measure(LABELS, SIZE, min_volume="small"), "min_volume is not above"),
        (lambda m: mitoseg.train(IMAGE, IMAGE > 120, SIZE, experiment=3), "experiment is not a name"),
        (lambda m: mitoseg.train(IMAGE, IMAGE > 120, SIZE, seeds=2), "several runs"),
        (lambda m: mitoseg.train(IMAGE, IMAGE > 120, SIZE, **{"data.batch_size": 1.5}), "^batch_size is not positive"),
        (lambda m: mitoseg.load("a.ckpt"), "trust"),
        (lambda m: mitoseg.label(IMAGE / 255), "threshold"),
        (lambda m: mitoseg.evaluate(IMAGE / 255, IMAGE > 120), "threshold"),
        (lambda m: mitoseg.evaluate(IMAGE > 120, IMAGE[1:] > 120), "shape"),
        (lambda m: mitoseg.measure(IMAGE > 120, SIZE), "mitoseg.label"),
        (lambda m: mitoseg.measure(IMAGE), "voxel_size"),
        (lambda m: mitoseg.measure(np.ndarray, SIZE), "neither a path nor an array"),
        (lambda m: mitoseg.measure(LABELS, SIZE, progress=3), "progress is not a function"),
        (lambda m: mitoseg.label(IMAGE > 120, progress=3), "progress is not a function"),
        (lambda m: mitoseg.label(IMAGE > 120, output=3), "not a path: 3"),
        (lambda m: m.predict(IMAGE, output=3), "not a path: 3"),
        (lambda m: m.predict(IMAGE, output=b"a.tif"), "not a path: b'a.tif'"),
        (lambda m: mitoseg.load(3), "not a path: 3"),
        (lambda m: mitoseg.load(trust="false"), "trust is neither"),
        (lambda m: mitoseg.train(IMAGE, IMAGE > 120, SIZE, folder=3), "not a path: 3"),
        (lambda m: mitoseg.finetune(IMAGE, IMAGE > 120, SIZE, folder=3), "not a path: 3"),
        (lambda m: mitoseg.finetune(IMAGE, IMAGE > 120, SIZE, output="mine"), "no such option: 'output'"),
        (lambda m: mitoseg.finetune(IMAGE, IMAGE > 120, SIZE, progress=3), "progress is not a function"),
        (lambda m: mitoseg.finetune(IMAGE, IMAGE > 120, SIZE, steps="many"), "steps is too small: 'many'"),
        (lambda m: mitoseg.finetune(IMAGE, IMAGE > 120, SIZE, rate="fast"), "rate is not a number above 0: 'fast'"),
        (lambda m: mitoseg.finetune(IMAGE, IMAGE > 120, SIZE, trust="false"), "trust is neither"),
        (lambda m: mitoseg.measure(LABELS, SIZE, image=IMAGE[1:]), "shape"),
        (lambda m: mitoseg.measure(IMAGE, SIZE), "not an image"),
        (lambda m: mitoseg.measure(IMAGE.astype(np.float32), SIZE), "not an image"),
        (lambda m: mitoseg.evaluate(IMAGE > 9, IMAGE > 9, instances="x"), "instances is neither"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(model, call, words):
    before = set(Path().iterdir())
    with pytest.raises(mitoseg.UserError, match=f"(?i){words}") as caught:
        call(model)
    assert "\n" not in str(caught.value)
    assert set(Path().iterdir()) == before


def test_training_gives_a_model_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, truth, _ = generate_phantom((10, 64, 96), seed=3)
    data = {"positions": "any", "label_rule": "center", "balance": "subsample", "epoch_blocks": 100, "batch_size": 50}
    options = {f"data.{key}": value for key, value in data.items()} | {"trainer.accelerator": "cpu"}
    options |= {"data.validation_stride": 8, "data.validation.share": 0.3, "trainer.log_every_n_steps": 1}
    model = mitoseg.train(image, truth, SIZE, epochs=1, **options)
    assert model.voxel_size == SIZE
    assert model.segment(image, SIZE).shape == image.shape
    for wrong, words in (
        ({"epoch": 1}, "no such option: 'epoch'"),
        ({"epochs": "many"}, "'many'"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(mitoseg.UserError, match=words):
            mitoseg.train(image, truth, SIZE, **options, **wrong)
    with pytest.raises(mitoseg.UserError, match="exists"):
        mitoseg.train(image, truth, SIZE, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_into_memory_is_told(model, monkeypatch):
    monkeypatch.setattr("mitoseg.workflows.interface.memory_available", lambda: 1000)
    with pytest.raises(mitoseg.UserError, match="output="):
        model.predict(IMAGE, SIZE)


def cells(path):
    """The code of a notebook."""
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            yield "".join(cell["source"])


def example(path):
    """The Python code of a page."""
    yield from re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "code"),
    [("docs/notebooks/first_steps.ipynb", cells), ("docs/PYTHON.md", example)],
    ids=["notebook", "page"],
)
def test_the_notebook_and_the_page_run(path, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    names = {}
    for part in code(ROOT / path):
        exec(compile(part, path, "exec"), names)
    assert names["scores"]["jaccard_foreground"] > 0.5
    assert len(names["table"]) > 1
