"""Every command of the README and of the microscopist's page is run as typed, but for sizes, on data of seconds."""

import json
import os
import re
import runpy
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from made_checkpoints import write_volume
from pages import ROOT, commands, our_words
from tiny_training import TINY, command

from mitoseg.datasets.synthetic import generate_phantom, get_preset

READ = [ROOT / "README.md", ROOT / "docs" / "MICROSCOPIST.md"]
RUN = "2026-01-31_12-00-00"
SMALL = [
    *("epochs=1", "save_overlays=1", "figures=false", "trainer.accelerator=cpu"),
    *("trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"),
]
LUCCHI = ["data.root=EPFL", "data.validation.slabs=[[0,3]]", "data.validation.gap=1"]
BLOCKS = ["data.epoch_blocks=400", "data.validation_stride=1"]
PHANTOM = ["data.root=phantom", "data.train_shape=[10,96,128]", "data.test_shape=[3,96,128]", *BLOCKS]

ELSEWHERE = {
    "make demo": ("tests/test_demo.py", "train.py"),  # what the target runs, as typed
    "make test": (".ci/run", "exec make test"),
    "python -m venv": ("tests/test_wheel.py", "venv.create("),
    ".venv/bin/python -m pip install": ("tests/test_wheel.py", '"pip"'),
    "python -m pip install": ("tests/test_wheel.py", '"pip"'),
    ".venv/bin/python train.py": ("tests/test_demo.py", "train.py"),
    ".venv/bin/python -m pytest": (".ci/run", "exec make test"),
    "python view.py": ("tests/viewers/test_view_command.py", "run_view("),
    "pip install": ("tests/test_wheel.py", '"pip"'),
}
"""Commands that make environments or take minutes: the file that runs each, and the words it does so with."""

pytestmark = pytest.mark.slow


def elsewhere(words):
    """The entry of `ELSEWHERE` that a command has, or None."""
    line = " ".join(words)
    return next((found for start, found in ELSEWHERE.items() if line.startswith(start)), None)


COMMANDS = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)[:90]}")
    for page in READ
    for words in commands(page)
    if elsewhere(words) is None
]


def smaller(words):
    """Words to add to a command so that it takes seconds; later ones win."""
    name, line = our_words(words)[0], " ".join(words)
    if name == "train":
        if "resume=" in line:
            return []
        if "data=files" in line:  # labels of all slices
            return [*SMALL, *BLOCKS, "data.validation.gap=1", "data.train.label=labels.tif"]
        return [*SMALL, *(LUCCHI if "data=lucchi" in line else PHANTOM)]
    if name == "finetune":
        return ["steps=2", "accelerator=cpu", "progress=false"]
    if name == "benchmark":
        forest = [f"methods.forest.estimator.{word}" for word in ("samples=4000", "trees=5")]
        train = "experiment=paper_tiles,epochs=1,ema=null,data.epoch_tiles=8"
        methods = [
            "methods=[forest,patch_cnn]",
            *forest,
            f"methods.patch_cnn.train=[{train}]",
            "methods.patch_cnn.small=[]",
        ]
        return ["accelerator=cpu", *methods, *(LUCCHI if "data=lucchi" in line else PHANTOM[:3])]
    return ["crop=[0:2,16:96,0:128]"] if "crop=" in line else []


def write(path, kind, array_zyx):
    write_volume(path, array_zyx, (5, 5, 5), kind=kind)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with everything that the pages' commands read, made by commands."""
    folder = tmp_path_factory.mktemp("made")
    image_zyx, mask_zyx, instances_zyx = generate_phantom((24, 160, 160), 3, get_preset("fibsem"))
    assert mask_zyx[18:23].any((1, 2)).all()
    painted_zyx = np.zeros_like(mask_zyx)
    painted_zyx[18:23] = mask_zyx[18:23]
    for name in ("my.tif", "other.tif", "other.zarr", "data/a.tif", "data/b.tif", "EPFL/training.tif"):
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, "image", image_zyx)
    for name in ("labels.tif", "truth.tif", "EPFL/training_groundtruth.tif"):
        write(folder / name, "mask", mask_zyx)
    write(folder / "EPFL" / "testing.tif", "image", image_zyx[:4])
    write(folder / "EPFL" / "testing_groundtruth.tif", "mask", mask_zyx[:4])
    write(folder / "my_labels.tif", "mask", painted_zyx)
    write(folder / "other_labels.tif", "mask", painted_zyx)
    write(folder / "instances.tif", "instances", instances_zyx)
    run = folder / "outputs" / "train" / "paper" / RUN
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command(patch, "train", *TINY, f"hydra.run.dir={run.relative_to(folder).as_posix()}") == 0
        for name in ("best", "a", "b", "c"):
            shutil.copy(run / "checkpoints" / "best.ckpt", folder / f"{name}.ckpt")
        shutil.copytree(run, folder / "mine")
        for output in ("out.zarr", "prob.tif", "better.tif"):
            words = ["checkpoint=best.ckpt", "input=my.tif", f"output={output}", "method=strided"]
            assert command(patch, "predict", *words) == 0
        assert command(patch, "measure", "input=instances.tif", "output=cells.csv") == 0
    cells = pd.read_csv(folder / "cells.csv")
    for factor, names in ((1, ("a", "b", "c", "c1", "c2", "c3")), (1.3, ("d", "e", "f", "d1", "d2", "d3"))):
        for number, name in enumerate(names):
            cells.assign(volume_nm3=cells.volume_nm3 * factor * (1 + number / 10)).to_csv(folder / f"{name}.csv")
    (folder / "cells.csv").unlink()
    (folder / "cells_summary.csv").unlink()
    return folder


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_runs(words, made, tmp_path, monkeypatch):
    place = tmp_path / "place"
    shutil.copytree(made, place)
    if words[0] == "tensorboard":
        assert words[1:] == ["--logdir", "outputs"]
        assert list(place.glob("outputs/**/events.out.tfevents.*"))
        return
    for word in words:
        if word.startswith("output=") and "overwrite=true" not in words:
            remove(place / word.removeprefix("output="))
    name, rest = our_words(words)
    typed = [re.sub(r"^crop=.*", "progress=true", word) for word in rest]
    monkeypatch.chdir(place)
    if words[0] == "mitoseg" or words[1] == "-m":
        assert command(monkeypatch, name, *typed) == 0
    else:
        assert run_script(monkeypatch, words[1], *typed, *smaller(words)) in {0, None}
    for word in words:
        if word.startswith("output="):
            assert (place / word.removeprefix("output=")).exists()
    if name == "evaluate":
        (metrics,) = place.glob("outputs/evaluate/*/metrics.json")
        assert "jaccard_foreground" in json.loads(metrics.read_text(encoding="utf-8"))


def run_script(monkeypatch, script, *words):
    """Run a script of the repository in this process, as Python would; its exit code."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / script), *words])
    before = dict(os.environ)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as leaving:
        return leaving.code
    finally:
        os.environ.clear()
        os.environ.update(before)
    return 0


def remove(path):
    """Take away an output that a command before has left."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def test_what_is_run_elsewhere_is():
    for file, words in ELSEWHERE.values():
        assert words in (ROOT / file).read_text(encoding="utf-8"), file
    mapped = [words for page in READ for words in commands(page) if elsewhere(words)]
    assert len(mapped) <= 9
    assert len(COMMANDS) >= 40
