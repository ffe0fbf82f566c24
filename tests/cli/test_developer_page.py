"""The developer's page: its files, written as it says, are found by the commands and do what it says."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_checkpoints import OneConvolution, predict, save_checkpoint
from pages import ROOT, commands, files, our_words, write_files
from tiny_training import TINY, command

from mitoseg.datasets.phantom import Phantom
from mitoseg.errors import UserError
from mitoseg.viewers.napari_plugin import layers
from mitoseg.volumes import open_volume, opening
from mitoseg.volumes.stored import ReadOptions
from mitoseg.workflows.many import plan_rows

PAGE = ROOT / "docs" / "DEVELOPER.md"
TILES = ["data.tile=[1,64,64]", "data.epoch_tiles=8", *(word for word in TINY if "epoch_blocks" not in word)]
TRAININGS = [words for words in commands(PAGE) if our_words(words) and words[1] == "train.py" and "-m" not in words]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The current folder, with the page's files in it and its modules at hand."""
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "mine"))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) & {"dilated", "hardest", "cerebellum"} - before:
        del sys.modules[name]


def test_the_page_names_its_files():
    names = {name for name in files(PAGE) if name.startswith("mine/")}
    tree = PAGE.read_text(encoding="utf-8").split("## A network")[0]
    assert len(names) == 6
    assert all(name.removeprefix("mine/") in tree for name in names)


def test_the_network(mine):
    from dilated import DilatedNet

    scores = DilatedNet(in_channels=5, width=4, depth=3)(torch.zeros(2, 5, 40, 24))
    assert scores.shape == (2, 2, 40, 24)


def test_the_loss_counts_the_hardest_share(mine):
    from hardest import Hardest

    margins = torch.tensor([3.0, -2.0, 1.0, -4.0, 9.0])  # log-odds of the right class; the last is ignored
    logits = torch.stack([torch.zeros(5), margins])[None].requires_grad_()
    label = torch.tensor([[1, 1, 1, 1, 255]])
    found = Hardest(share=0.5)(logits, label)
    expected = torch.nn.functional.softplus(-margins[[1, 3]]).mean()  # the two that are most wrong
    torch.testing.assert_close(found, expected)
    nothing = Hardest()(logits, torch.full((1, 5), 255))
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()


def test_the_data_set_opens_what_it_names(mine):
    from cerebellum import Cerebellum

    make_scans(mine / "scans")
    splits = Cerebellum(root="scans", validation={"share": 0.25, "gap": 1}).splits()
    assert splits.voxel_size == (30.0, 6.0, 6.0)
    assert splits.provenance["licence"] == "CC BY 4.0"
    assert [region.box.shape[0] for region in (*splits.train, *splits.validation, *splits.test)] == [7, 2, 3]


def make_scans(folder):
    """Files under the recipe's names: a phantom, of another shape than the published one."""
    phantom = Phantom(root=str(folder), train_shape=(10, 96, 128), test_shape=(3, 96, 128))
    phantom.prepare()
    for key in ("train", "test"):
        shutil.copy(phantom.volume_folder(key) / "image.tif", folder / f"{key}.tif")
        shutil.copy(phantom.volume_folder(key) / "label.tif", folder / f"{key}_mito.tif")


@pytest.mark.slow
@pytest.mark.parametrize("words", TRAININGS, ids=lambda words: " ".join(words[4:])[:60])
def test_the_trainings_and_a_prediction(words, mine, monkeypatch):
    """As typed, but for sizes; the checkpoint then predicts, with trust=true and not without."""
    make_scans(mine / "scans")
    own = [w for w in TILES if "data=cerebellum" not in words or not w.startswith(("data.root", "data.t", "data=ph"))]
    smaller = ["data=phantom" if word == "data=lucchi" else word for word in words[2:]]
    assert command(monkeypatch, "train", *smaller, *own, "data.tile=[1,64,64]", "hydra.run.dir=run") == 0
    options = ["--config-dir", "mine", "checkpoint=run/checkpoints/best.ckpt", "input=scans/test.tif", "output=p.tif"]
    assert command(monkeypatch, "predict", *options) == 1
    assert command(monkeypatch, "predict", *options, "trust=true") == 0
    assert open_volume("p.tif").shape == (3, 96, 128)


@pytest.mark.slow
def test_the_class_is_found_by_further_processes(mine, monkeypatch):
    """Two ranks in training, two processes in prediction."""
    own = ["--config-dir", "mine"]
    train = ["network=dilated", "network.width=4", *TILES, "trainer.devices=2", "data.validation_stride=1"]
    assert command(monkeypatch, "train", *own, *train, "hydra.run.dir=run") == 0
    (image,) = (mine / "phantom").glob("*_3x*/image.tif")
    words = ["checkpoint=run/checkpoints/best.ckpt", f"input={image}", "output=p.tif", "devices=2", "trust=true"]
    assert command(monkeypatch, "predict", *own, *words) == 0


def test_the_paired_test(mine):
    """Its mean, and the p of turning signs: all five differences on one side give 2 / 2^5."""
    rows = [f"{seed},{name},{value}" for seed in range(5) for name, value in (("a", 0.8 + seed / 99), ("b", 0.7))]
    (mine / "r.csv").write_text("\n".join(["seed,network,validation_jaccard_foreground", *rows]), encoding="utf-8")
    words = [sys.executable, "paired.py", "r.csv", "a", "b"]
    done = subprocess.run(words, cwd=mine, capture_output=True, encoding="utf-8", check=True)
    mean = np.mean([0.1 + seed / 99 for seed in range(5)])
    assert done.stdout.startswith(f"{mean:+.4f} ±")
    assert done.stdout.rstrip().endswith("p = 0.062")


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda file, image: np.save(file, np.asfortranarray(image)), "in Fortran order"),
        (lambda file, image: np.savez(file, image), "a package of several"),
    ],
)
def test_arrays_that_cannot_be_mapped_are_refused(write, line, mine, monkeypatch):
    monkeypatch.syspath_prepend(str(mine))
    npy = importlib.import_module("npy")
    monkeypatch.delitem(sys.modules, "npy")
    with open("a.npy", "wb") as file:
        write(file, np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(UserError, match=line):
        npy.open_npy("a.npy", ReadOptions())


def test_a_new_format_is_known_everywhere_at_once(mine, monkeypatch):
    pytest.importorskip("dask.array")
    monkeypatch.syspath_prepend(str(mine))
    npy = importlib.import_module("npy")
    monkeypatch.delitem(sys.modules, "npy")
    monkeypatch.setattr(opening, "FORMATS", [*opening.FORMATS[:-1], npy.FORMAT, opening.FORMATS[-1]])
    image_zyx = np.random.default_rng(0).integers(0, 255, (5, 24, 32), np.uint8)
    (mine / "in").mkdir()
    for name in ("a", "b"):
        np.save(mine / "in" / f"{name}.npy", image_zyx)
    for given in (str(mine / "in"), str(mine / "in" / "*.npy")):
        jobs = plan_rows(given, str(mine / "out"), ".npy")
        assert [Path(job.output).name for job in jobs] == ["a.npy", "b.npy"]
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1})
    words = ["checkpoint=a.ckpt", "trust=true", "input=in/a.npy", "output=m.npy", "save=mask", "voxel_size=[20,10,10]"]
    assert predict(monkeypatch, *words) == 0
    assert {*np.unique(np.load("m.npy"))} <= {0, 1}
    labels_zyx = np.zeros((5, 24, 32), np.uint32)
    labels_zyx[1:4, 5:15, 5:20] = 7
    assert layers.write_labels("l.npy", labels_zyx, {"name": "l", "metadata": {}}) == ["l.npy"]
    assert ".npy" in opening.written_suffixes("uint32")
    ((array, options, _),) = layers.read("l.npy")
    assert options["name"] == "l"
    np.testing.assert_array_equal(array, labels_zyx)
    words = ["input=l.npy", "output=l.csv", "kind=instances", "voxel_size=[20,10,10]"]
    assert command(monkeypatch, "measure", "hydra.run.dir=measured", *words) == 0
    assert len((mine / "l.csv").read_text().splitlines()) == 2
