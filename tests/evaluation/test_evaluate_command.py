"""The command's work: files in, a folder with numbers and figures out; mistakes in one line."""

import hashlib
import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import pytest
import tifffile
import zarr
from omegaconf import OmegaConf, ValidationError
from rich.console import Console

from mitoseg.cli.console import user_message
from mitoseg.errors import UserError
from mitoseg.evaluation.instances import prediction_instances
from mitoseg.storage import plain
from mitoseg.workflows.evaluate import run
from mitoseg.workflows.options import typed

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 24, 32), np.uint8)
    truth[1:5, 4:16, 6:20] = 255
    probability = np.clip(truth / 255 * 0.6 + 0.2 + rng.normal(0, 0.15, truth.shape), 0, 1).astype(np.float32)
    image = rng.integers(0, 255, truth.shape).astype(np.uint8)
    arrays = {"truth": truth, "prediction": probability, "image": image}
    for name, array in arrays.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", array, photometric="minisblack")
    return {name: str(tmp_path / f"{name}.tif") for name in arrays}


def config(files, *overrides, image=False, **values):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("evaluate", overrides=["progress=false", "figures=false", *overrides])
    paths = {name: path for name, path in files.items() if image or name != "image"}
    return typed(OmegaConf.merge(cfg, paths, values))


def score_files(options, folder, tell=lambda _: None):
    run(options, folder, tell)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def test_numbers_provenance_and_table(files, tmp_path):
    out = io.StringIO()
    words = ["crop=['0:6','0:','2:30']", "bands=[1,2]", "voxel_size=[5,5,5]", "slabs=3", "bootstrap=100", "seed=5"]
    cfg = config(files, *words, "figures=true")
    result = score_files(cfg, tmp_path / "run", Console(file=out, width=100).print)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    contract = "jaccard_foreground jaccard_background jaccard_mean dice precision recall voxels threshold"
    assert set(contract.split()) <= set(metrics)
    assert metrics["jaccard_foreground"] == result["jaccard_foreground"] > 0.8
    assert metrics["voxels"] == 6 * 24 * 28
    assert metrics["crop"] == "[0:6,0:24,2:30]"
    assert metrics["voxel_size"] == [5, 5, 5]
    assert len(metrics["boundary"]) == 4
    assert metrics["label_rule"]
    assert f"{metrics['dice']:.4f}" in out.getvalue()
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["truth"] == files["truth"]
    figures = ["boundary.png", "precision_recall.png", "reliability.png"]
    assert sorted(p.name for p in (tmp_path / "run" / "figures").iterdir()) == figures
    low, high = metrics["interval"]["jaccard_foreground"]
    assert low <= metrics["jaccard_foreground"] <= high
    assert len(metrics["slab_counts"]) == 3
    assert metrics["bootstrap"] == {"resamples": 100, "seed": 5, "level": 0.95}
    assert metrics["average_precision"] == result["average_precision"] > 0.9
    assert metrics["jaccard_foreground_oracle"] >= metrics["jaccard_foreground"]
    score_files(config(files, crop="[0:1,0:2,0:2]", threshold=0.99), tmp_path / "none")  # without a denominator
    text = (tmp_path / "none" / "metrics.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["jaccard_foreground"] is None
    mask = score_files(config(files, "bootstrap=0", "figures=true", kind="mask"), tmp_path / "mask")
    assert mask["interval"] == {}
    assert "average_precision" not in mask
    assert [p.name for p in (tmp_path / "mask" / "figures").iterdir()] == ["boundary.png"]


def test_figures_and_report_are_written_beside_the_numbers(files, tmp_path):
    out = io.StringIO()
    words = ["report=true", "small_objects=9", "crop=['1:6','0:','2:30']", "voxel_size=[5,5,5]", "save_overlays=2"]
    score_files(config(files, *words, image=True), tmp_path / "run", Console(file=out, width=200).print)
    assert [p.name for p in sorted((tmp_path / "run" / "figures").glob("z*"))] == ["z0002.png", "z0004.png"]
    assert "2 slices in" in out.getvalue()
    assert "report in" in out.getvalue()
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "5 \N{MULTIPLICATION SIGN} 24 \N{MULTIPLICATION SIGN} 28 voxels" in text
    assert "Evaluation of prediction.tif" in text
    assert text.count('id="errors"') == text.count('id="slices"') == text.count('id="scene-part"') == 1
    for name in ("truth", "prediction", "image"):  # with their checksums
        assert hashlib.sha256(Path(files[name]).read_bytes()).hexdigest() in text
    score_files(config(files), tmp_path / "other")
    assert not {"report.html", "figures"} & {p.name for p in (tmp_path / "other").iterdir()}


def test_chunks_that_are_missing_are_told(files, tmp_path, caplog):
    image = tifffile.imread(files["prediction"])
    array = zarr.create_array(store=tmp_path / "p.zarr", shape=image.shape, chunks=(2, 24, 32), dtype="f4")
    array[:4] = image[:4]
    with caplog.at_level(logging.WARNING):
        score_files(config(files | {"prediction": str(tmp_path / "p.zarr")}, kind="probability"), tmp_path / "run")
    assert [m for m in caplog.messages if "missing" in m] == [
        f"{tmp_path / 'p.zarr'}: 1 of 3 chunks are missing and would read as 0.0"
    ]


@pytest.mark.parametrize("words", [["instances=true"], ["report=true"], ["instances=true", "report=true"]])
def test_instances_are_numbered_once(files, tmp_path, monkeypatch, words):
    numbered = []

    def count(*args, **options):
        numbered.append(args)
        return prediction_instances(*args, **options)

    for module in ("mitoseg.workflows.evaluate", "mitoseg.evaluation.report.page"):
        monkeypatch.setattr(f"{module}.prediction_instances", count)
    result = score_files(config(files, *words, "small_objects=9", "voxel_size=[5,5,5]", image=True), tmp_path / "run")
    assert len(numbered) == 1
    assert ("instances" in result) == ("instances=true" in words)
    assert (tmp_path / "run" / "report.html").exists() == ("report=true" in words)


def test_axes_are_for_the_files_that_they_fit(files, tmp_path):
    rgb = np.stack([tifffile.imread(files["truth"])] * 3, axis=-1)
    plain = score_files(config(files), tmp_path / "plain")
    tifffile.imwrite(files["truth"], rgb, photometric="rgb")
    assert score_files(config(files, axes="zyxc"), tmp_path / "run") == plain
    with pytest.raises(UserError, match="axes"):
        score_files(config(files, axes="zqx"), tmp_path / "other")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"save_overlays": 3}, "add image="),
        ({"save_overlays": -1}, "save_overlays is too small"),
        ({"threshold": "high"}, "'high'.* could not be converted to Float"),
        ({"bands": [1, "x"]}, "'x'.* is incompatible with type hint"),
        ({"voxel_size": [5, 5]}, "voxel_size"),
        ({"kind": "maps"}, "choose one of"),
        ({"reference": 96.4}, "not a Jaccard index"),
        ({"label_rule_of_values": "other"}, "other"),
        ({"ignore_empty_slices": "some"}, "'some' is not a valid bool"),
        ({"truth": "nowhere.tif"}, "nowhere.tif"),
        ({"truth": ""}, "truth has no value"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(files, tmp_path, values, match):
    with pytest.raises((UserError, ValidationError), match=match) as caught:
        score_files(config(files, **values), tmp_path / "run")
    assert "\n" not in user_message(caught.value)
    assert not (tmp_path / "run").exists()


def test_classes_without_0(files, tmp_path):
    """Background 1 and mitochondria 2, as ilastik's Simple Segmentation has them, on either side."""
    plain_truth, right = tifffile.imread(files["truth"]) > 0, {"jaccard_foreground": 1.0}
    for side in ("prediction", "truth"):
        classes = str(tmp_path / f"{side}_classes.tif")
        tifffile.imwrite(classes, plain_truth.astype(np.uint8) + 1, photometric="minisblack")
        words = config({"prediction": files["truth"], "truth": files["truth"], side: classes})
        for kind in ("mask", None):
            with pytest.raises(UserError, match=r"foreground=|values of mitochondria"):
                score_files(replace(words, kind=kind), tmp_path / "run")
        key = {"prediction": "prediction_foreground", "truth": "foreground"}[side]
        found = score_files(replace(words, **{key: 2}, instances=True, small_objects=0), tmp_path / "run")
        assert right.items() <= found.items()
        assert found["instances"]["all"]["truth"] == 1
        with pytest.raises(UserError, match=r"they hold 1 \(.*2 \("):
            score_files(replace(words, **{key: 5}), tmp_path / "other")
        assert right.items() <= score_files(replace(words, foreground=2), tmp_path / "short").items()
    both = replace(words, prediction=words.truth, foreground=2)
    with pytest.raises(UserError, match="prediction_foreground="):
        score_files(both, tmp_path / "both")


def test_ids_of_64_bits(files, tmp_path):
    small = np.zeros((6, 24, 32), np.uint64)
    small[1:5, 4:16, 2:12], small[1:5, 4:16, 14:28] = 1, 2
    scores = []
    for name, factor in (("small", 1), ("wide", 2**62 + 1)):
        path = str(tmp_path / f"{name}.zarr")
        zarr.create_array(store=path, data=small * np.uint64(factor))
        cfg = config({"prediction": path, "truth": path}, "report=true", small_objects=0)
        scores.append(score_files(cfg, tmp_path / name)["instances"])
    assert plain(scores[0]) == plain(scores[1])
    assert scores[1]["all"]["truth"] == 2


@pytest.mark.parametrize("truth", ["all", "one voxel"])
@pytest.mark.parametrize("prediction", ["all", "one voxel", "none"])
def test_volumes_of_one_object_or_none(tmp_path, truth, prediction):
    arrays = {name: np.zeros((6, 24, 32), np.uint8) for name in ("all", "one voxel", "none")}
    arrays["all"][:], arrays["one voxel"][2, 3, 4] = 1, 1
    paths = {}
    for side, kind in {"truth": truth, "prediction": prediction}.items():
        paths[side] = str(tmp_path / f"{side}.tif")
        tifffile.imwrite(paths[side], arrays[kind], photometric="minisblack")
    both, either = (f(arrays[truth], arrays[prediction]).sum() for f in (np.logical_and, np.logical_or))
    cfg = config(paths, "instances=true", "report=true", small_objects=0, figures=True)
    found = score_files(cfg, tmp_path / "run")
    assert found["jaccard_foreground"] == both / either
    assert [found["instances"]["all"][side] for side in ("truth", "result")] == [1, prediction != "none"]


@pytest.mark.parametrize("engine", ["workers", pytest.param("dask", marks=pytest.mark.slow)])
def test_the_numbers_do_not_depend_on_who_counts(files, tmp_path, monkeypatch, engine):
    if engine == "dask":
        pytest.importorskip("distributed")
    monkeypatch.setattr("mitoseg.evaluation.score.BLOCK_VOXELS", 20_000)  # several blocks
    one = score_files(config(files), tmp_path / "one")
    two = score_files(config(files, "workers=2", *(["engine=dask"] if engine == "dask" else [])), tmp_path / "two")
    assert plain(two) == plain(one)
    assert (tmp_path / "two" / "metrics.json").read_bytes() == (tmp_path / "one" / "metrics.json").read_bytes()


def test_what_must_be_given_and_shapes_that_differ(files, tmp_path):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        assert OmegaConf.missing_keys(hydra.compose("evaluate")) == {"prediction", "truth"}
    with pytest.raises(Exception, match="not a number of workers: 0"):
        score_files(config(files, "workers=0"), tmp_path / "run")
    tifffile.imwrite(files["image"], np.zeros((5, 24, 32), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match=r"prediction and truth and image differ in shape.*\(5, 24, 32\)"):
        score_files(config(files, image=True), tmp_path / "with")
