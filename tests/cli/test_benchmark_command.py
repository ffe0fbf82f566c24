"""``benchmark`` as a user types it, with small real estimators and, slowly, with networks; and what goes wrong."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.image import imread
from omegaconf import OmegaConf
from tiny_training import command

from mitoseg.benchmark.methods import make_estimator, open_source, read_methods, read_regions, read_source
from mitoseg.cli.launch import default_config_dir
from mitoseg.volumes import open_volume

HERE = Path(__file__).parent
DATA = ["size=small", "data.root=phantom", "data.train_shape=[10,96,128]", "data.test_shape=[3,96,128]"]
WORDS = ["--config-dir", str(HERE / "more_conf"), *DATA, "accelerator=cpu", "progress=false", "figure_size=[64,64]"]
TINY = "[epochs=1,data.epoch_tiles=16,data.tile=[1,32,32],ema=null,trainer.check_val_every_n_epoch=1]"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def benchmark(place, monkeypatch):
    """Runs the command in a folder that the tests of this file share; its processes find the estimators."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    return lambda *words: command(monkeypatch, "benchmark", *WORDS, *words)


@pytest.fixture
def finished(benchmark, place):
    """The folder of a benchmark of two estimators; made by the first test that asks."""
    if not (place / "run" / "table.md").is_file():
        assert benchmark("methods=[grey,sharp]", "hydra.run.dir=run", "crop=[0:3,32:96,0:128]") == 0
    return place / "run"


def rows(folder):
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def told(capsys):
    return " ".join(capsys.readouterr().err.split())


def record(folder):
    return json.loads((folder / "record.json").read_text())


def jaccard(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def test_the_table_holds_what_was_measured(finished, place):
    table = rows(finished)
    assert [row["method"] for row in table[:2]] == ["grey", "sharp"]
    assert [row["source"] for row in table[2:]] == 4 * ["published"]
    truth_zyx = open_volume(str(next(place.glob("phantom/fibsem_3x*/label.tif")))).read() > 0
    for row in table[:2]:
        mask_zyx = open_volume(str(finished / row["method"] / "predictions" / "test_0.tif")).read() > 0
        assert float(row["jaccard_foreground"]) == pytest.approx(jaccard(mask_zyx, truth_zyx))
        assert float(row["crop_jaccard_foreground"]) == pytest.approx(jaccard(mask_zyx[:, 32:], truth_zyx[:, 32:]))
        assert float(row["band_jaccard_mean"]) > 0
        assert float(row["training_seconds"]) > 0
        assert float(row["prediction_seconds"]) > 0
        assert float(row["peak_memory_bytes"]) > 5e7
    assert "grey" in (finished / "table.md").read_text(encoding="utf-8")
    assert "<html" in (finished / "table.html").read_text(encoding="utf-8")
    assert imread(finished / "methods.png").shape[1] > imread(finished / "methods.png").shape[0]
    provenance = json.loads((finished / "provenance.json").read_text())
    assert provenance["data"]["regions"]["test"]


def test_an_estimators_process_holds_no_torch():
    """Its memory would be counted as the estimator's."""
    loaded = "import sys, mitoseg.workflows.benchmark; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", loaded], check=False).returncode == 0


def test_finished_methods_are_skipped_and_stay_in_the_table(finished, benchmark, capsys):
    before = [(finished / name / "record.json").stat().st_mtime_ns for name in ("grey", "sharp")]
    assert benchmark("resume=run", "methods=[sharp]", "published=false", "crop=null") == 0
    assert "sharp (1 of 1): finished before" in told(capsys)
    assert [row["method"] for row in rows(finished)] == ["sharp", "grey"]
    assert before == [(finished / name / "record.json").stat().st_mtime_ns for name in ("grey", "sharp")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["methods.grey.estimator.sigmas=[3.0]"], "error: the method grey is there with other options"),
        (["seed=2"], "estimator.seed was 1, is now 2"),
        (["data.test_shape=[4,96,128]"], "data.test_shape was [3, 96, 128], is now [4, 96, 128]"),
        (["part=validation"], "part was test, is now validation"),
    ],
)
def test_other_options_are_refused_and_nothing_is_lost(finished, benchmark, capsys, words, line):
    before = {path: path.read_bytes() for path in finished.glob("*/*.json")}
    assert benchmark("resume=run", "methods=[grey,sharp]", "crop=null", *words) == 1
    said = told(capsys)
    assert line in said
    assert "overwrite=true" in said
    assert before == {path: path.read_bytes() for path in finished.glob("*/*.json")}


def test_changed_data_are_noticed(finished, benchmark, place, capsys):
    image = next((place / "phantom").glob("*3x96x128*/image.tif"))
    before = image.read_bytes()
    image.write_bytes(before + b"x")
    try:
        assert benchmark("resume=run", "methods=[grey]", "crop=null") == 1
    finally:
        image.write_bytes(before)
    assert "the method grey is there with other options (files.test.image 3 was" in told(capsys)


@pytest.mark.parametrize(
    ("data", "line"),
    [("[]", "error: data has no value"), ("domains", "error: the benchmark takes a single data set: 'domains'")],
)
def test_data_are_one_set(place, monkeypatch, capsys, data, line):
    monkeypatch.chdir(place)
    assert command(monkeypatch, "benchmark", "methods=[forest]", f"data={data}", "hydra.run.dir=none") == 1
    assert line in capsys.readouterr().err.splitlines()[-1]
    assert not (place / "none" / "table.md").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["methods=[gray]"], "error: methods has no 'gray'"),
        (["methods=[supervoxels]"], "error: methods has no 'supervoxels'; did you mean supervoxel?"),
        (["methods=[]"], "error: no methods to compare: []; give some"),
        (["methods=null"], "error: a group of options was given nothing"),
        (["methods=[grey]", "methods.sharp.checkpoint=a"], "error: no such option: 'methods.sharp.checkpoint'"),
        (["methods=[lacking,grey]"], "needs a library that is missing: 'no_such_library'; pip install \"mitoseg"),
        (["methods=[grey]", "methods.grey.estimator._target_=json.JSONDecoder"], "the method grey has no such option"),
        (["methods=[unet25d]", "methods.unet25d.checkpoint=no [1].ckpt"], "no such checkpoint: 'no [1].ckpt'"),
        (
            ["methods=[grey]", "methods.grey.checkpoint=no=model"],
            "only networks have a checkpoint to score: 'no=m",
        ),
        (["methods=[neila]", "methods.neila.small={a: 3}"], "error: methods.neila.small has no such keys"),
        (["methods=[grey]", "size=tiny"], "error: no such size: 'tiny'; choose one of full, small"),
        (["methods=[grey]", "band=0"], "error: no such boundary band: 0"),
        (["methods=[grey]", "part=train"], "error: no such part of the data to score: 'train'"),
        (["methods=[grey]", "crop=[0:9,0:9,0:9]"], "error: the box is empty or leaves the volume"),
        (["methods=[grey]", "figure_box=[0:2,0:9,0:9]"], "error: the picture shows one slice"),
        (["methods=[grey]", "overwrite=maybe"], "the option takes other values: overwrite=maybe; give true or"),
        (["methods=[grey]", "seed=-1"], "error: seed is too small: -1; give seed=NUMBER, 0 or more"),
        (["methods=[grey]", "accelerator=other"], "error: no such choice of accelerator: 'other'"),
        (["methods=[grey]", "prediction=other"], "error: no such choice of prediction: 'other'"),
        (["methods=[grey]", "job=sharp"], "error: job= names none of methods=: 'sharp'; give one of grey"),
        (["resume=nowhere"], "error: no run to resume: 'nowhere'"),
    ],
)
def test_mistakes_get_one_line_before_anything_is_run(finished, benchmark, capsys, tmp_path, words, line):
    assert benchmark(*words, f"hydra.run.dir={tmp_path / 'new'}") == 1
    said = capsys.readouterr().err
    last = said.splitlines()[-1]
    assert line in last
    assert "Traceback" not in said
    assert not list(tmp_path.glob("new/*/record.json"))


@pytest.mark.slow
def test_one_that_fails_does_not_stop_the_others_and_goes_on(benchmark, place, capsys):
    """Killed while it predicts: its row says why; the same command again fits it anew, and keeps what is finished."""
    words = ["methods=[grey,sharp]", "methods.grey.estimator.dies=predict"]
    assert benchmark(*words, "hydra.run.dir=died") == 1
    said = told(capsys)
    if sys.platform != "win32":
        assert "1 of 2 methods failed: grey (killed by SIGKILL" in said
    assert "benchmark.py resume=died" in said
    assert [row["status"] for row in rows(place / "died")[:2]] == ["failed", "finished"]
    before = record(place / "died" / "sharp")
    (place / "alive").touch()
    assert benchmark("resume=died") == 0
    assert "grey (1 of 2): starts" in told(capsys)
    assert record(place / "died" / "sharp") == before
    assert [row["status"] for row in rows(place / "died")[:2]] == ["finished", "finished"]
    (place / "alive").unlink()


@pytest.mark.slow
def test_overwrite_runs_again_what_has_changed(finished, benchmark, capsys):
    words = ["methods=[grey,sharp]", "methods.sharp.estimator.sigmas=[8.0]"]
    before = record(finished / "grey")
    assert benchmark("resume=run", *words, "overwrite=true") == 0
    said = told(capsys)
    assert "sharp (2 of 2): options have changed (estimator.sigmas was [5.0], is now [8.0]), starting again" in said
    assert record(finished / "sharp")["options"]["estimator"]["sigmas"] == [8.0]
    assert record(finished / "grey") == before
    assert benchmark("resume=run", "methods.sharp.estimator.sigmas=[5.0]") == 1  # it was said once


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
def test_a_benchmark_that_is_killed_takes_its_process_along(place, benchmark, capsys):
    """Killed while a network trains: the training ends as well, with its last checkpoint, and goes on from there."""
    words = ["methods=[unet25d]", f"methods.unet25d.small={TINY.replace('epochs=1', 'epochs=12')}"]
    start = [sys.executable, "-m", "mitoseg", "benchmark", *WORDS, *words, "hydra.run.dir=killed"]
    folder = place / "killed" / "unet25d"
    last = folder / "train" / "checkpoints" / "last.ckpt"
    with subprocess.Popen(start, cwd=place, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 250
        while not last.is_file():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert record(folder)["status"] == "running"
    assert not (folder / "train" / "metrics.json").exists()
    assert benchmark("resume=killed", "methods.unet25d.small=[epochs=1]") == 1  # there is something to lose
    assert "other options (train was " in told(capsys)
    assert last.is_file()
    assert benchmark("resume=killed") == 0
    assert "unet25d (1 of 1): goes on" in told(capsys)
    assert record(folder)["status"] == "finished"
    words = json.loads((folder / "train" / "provenance.json").read_text())["arguments"]
    assert any(word.startswith("resume=") for word in words)


@pytest.mark.slow
def test_networks_are_trained_on_the_same_split_and_checkpoints_scored(place, benchmark):
    assert benchmark("methods=[grey,unet25d]", f"methods.unet25d.small={TINY}", "hydra.run.dir=nets") == 0
    folder = place / "nets"
    table = {row["method"]: row for row in rows(folder)}
    trained = json.loads((folder / "unet25d" / "train" / "provenance.json").read_text())
    assert trained["data"]["regions"] == json.loads((folder / "provenance.json").read_text())["data"]["regions"]
    assert float(table["unet25d"]["training_seconds"]) == trained["training_seconds"]
    assert set(json.loads((folder / "unet25d" / "train" / "metrics.json").read_text())) == {"validation"}
    assert float(table["unet25d"]["threshold"]) > 0
    best = folder / "unet25d" / "train" / "checkpoints" / "best.ckpt"
    odd = place / "a [1], b" / "checkpoints" / "best.ckpt"
    odd.parent.mkdir(parents=True)
    odd.write_bytes(best.read_bytes())
    for i, path in enumerate((best, odd)):
        chosen = ["methods=[unet25d]", f"methods.unet25d.checkpoint={path}", f"hydra.run.dir=given{i}"]
        assert benchmark(*chosen) == 0
        (row, *_) = rows(place / f"given{i}")
        assert row["jaccard_foreground"] == table["unet25d"]["jaccard_foreground"]
        assert ("same regions" if path == best else "is not known") in row["protocol"]
        assert bool(row["training_seconds"]) == (path == best)


def unary_only(name, estimator, image_zyx):
    if name == "neila":
        return estimator.predict(image_zyx, regularize=False)
    estimator.regularize = False
    return estimator.predict(image_zyx)


@pytest.mark.slow
def test_neighbours_help_every_method_on_the_phantom(tmp_path, monkeypatch):
    pytest.importorskip("maxflow")
    monkeypatch.chdir(tmp_path)
    words = ["size=small", "methods=[forest]", "data.root=phantom", "progress=false"]
    assert command(monkeypatch, "benchmark", *words, "hydra.run.dir=run") == 0
    table = {row["method"]: row["jaccard_foreground"] for row in rows(tmp_path / "run")}
    scores = {"forest": float(table["forest"])}
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        config = compose("benchmark", ["methods=[neila,supervoxel,structured]", *words[2:], "hydra.mode=RUN"])
    config = OmegaConf.to_container(config, resolve=True)
    splits = open_source(read_source("phantom", config["data"], config["small"]["phantom"], {"data.root"}))
    image_zyx, truth_zyx = splits.test[0].read_image(), splits.test[0].read_label() > 0
    for method in read_methods(config["methods"], "small"):
        estimator = make_estimator(method.name, method.estimator, splits.voxel_size)
        estimator.fit(*read_regions(splits.train))
        estimator.tune(*read_regions(splits.validation))
        scores[method.name] = jaccard(estimator.predict(image_zyx) > 0, truth_zyx)
        assert scores[method.name] > jaccard(unary_only(method.name, estimator, image_zyx) > 0, truth_zyx)
    assert min(scores["supervoxel"], scores["structured"]) > max(scores["forest"], scores["neila"])
    assert np.isfinite(list(scores.values())).all()
