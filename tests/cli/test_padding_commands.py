"""Margins of aligned stacks in the commands: no statistic, no foreground, no label and no tissue comes from them."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from made_checkpoints import OneConvolution, Padded, run_command, save_checkpoint, tif

from mitoseg.datasets import Files
from mitoseg.sampling import data_module
from mitoseg.volumes import open_volume
from mitoseg.volumes.base import ArrayWriter

SHAPE = (6, 60, 70)
TISSUE = np.zeros(SHAPE, bool)
for z in range(6):
    TISSUE[z, 4 + z : 50, 9 - z : 60 + z] = z != 3
GREY = np.random.default_rng(0).integers(60, 200, SHAPE, np.uint8)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a command in a folder with a stack with margins and checkpoints of a network on blocks and one on tiles."""
    monkeypatch.chdir(tmp_path)
    quantiles = np.linspace(60, 200, 257).tolist()
    for name, network in (("block", OneConvolution()), ("whole", Padded())):
        save_checkpoint(f"{name}.ckpt", network, arguments={"in_channels": 1}, grey_quantiles=quantiles, threshold=0.1)
    tif("in.tif", np.where(TISSUE, GREY, 0))

    def command(name, *words):
        return run_command(monkeypatch, name, "progress=false", "hydra.run.dir=run", *words)

    def predict(*words):
        given = ("accelerator=cpu", "trust=true", "overwrite=true", "precision=fp32", "compile=false")
        return command("predict", *given, "input=in.tif", *words)

    predict.command = command
    return predict


METHODS = [
    *(("block", "dense", "probability"), ("block", "strided", "mask"), ("block", "window", "instances")),
    *(("whole", "blend", "probability"), ("whole", "blend", "instances")),
]


@pytest.mark.parametrize(("network", "method", "save"), METHODS)
def test_nothing_is_predicted_in_padding(run, network, method, save, capsys):
    words = (f"checkpoint={network}.ckpt", f"method={method}", f"save={save}", "normalize=match")
    assert run(*words, "output=a.h5", "tile=[2,16,24]") == 0
    found = open_volume("a.h5")
    assert not found.read()[~TISSUE].any()
    assert (found.read()[TISSUE] > 0).mean() > 0.5
    assert found.info.metadata["padding"] == (~TISSUE).sum()
    assert f"{100 * (~TISSUE).mean():.1f} % is constant padding" in capsys.readouterr().err
    assert run(*words, "output=b.h5", "tile=[6,60,70]") == 0
    if method != "blend":  # whose tile is the network's
        np.testing.assert_array_equal(open_volume("b.h5").read(), found.read())
    assert json.loads(Path("run/provenance.json").read_text())["chosen"]["padding"] == (~TISSUE).sum()


def test_margins_change_no_grey_value_inside(run, capsys):
    """Neither matched ones nor those that a warning is about; and what is resampled comes back without margins."""
    words = ("checkpoint=whole.ckpt", "save=probability")
    assert run(*words, "output=a.tif") == 0
    assert "normalize=match" not in capsys.readouterr().err
    assert run(*words, "output=none.tif", "padding=none") == 0
    assert open_volume("none.tif").read()[~TISSUE].all()
    assert "padding" not in open_volume("none.tif").info.metadata
    found, plain = open_volume("a.tif").read(), open_volume("none.tif").read()
    inner = np.s_[:, 12:44, 14:55]
    np.testing.assert_array_equal(found[inner][[0, 1, 2, 4, 5]], plain[inner][[0, 1, 2, 4, 5]])
    for postprocess in ("none", "clean"):
        words = ("voxel_size=[5,7,7]", "save=mask", f"postprocess={postprocess}")
        assert run("checkpoint=whole.ckpt", "output=back.tif", *words) == 0
        assert not open_volume("back.tif").read()[~TISSUE].any()
    assert run("checkpoint=whole.ckpt", "output=a.tif", "padding=maybe") == 1
    assert "choose one of auto, none" in capsys.readouterr().err


def test_nan_around_tissue_is_padding(run):
    tif("in.tif", np.where(TISSUE, GREY, np.nan).astype(np.float32))
    for choice in ("volume", "match"):
        assert run("checkpoint=whole.ckpt", "output=a.tif", f"normalize={choice}") == 0
        found = open_volume("a.tif").read()
        assert np.isfinite(found).all()
        assert not found[~TISSUE].any()
    assert run("checkpoint=whole.ckpt", "output=a.tif", "padding=none") == 1


@pytest.mark.parametrize("normalize", ["checkpoint", "volume", "match"])
def test_a_stack_of_nothing_is_told(run, capsys, normalize):
    words = ("checkpoint=whole.ckpt", "output=a.tif", f"normalize={normalize}")
    tif("in.tif", np.full(SHAPE, 7, np.uint8))
    for resampled in ([], ["voxel_size=[5,7,7]"]):
        assert run(*words, *resampled) == 0
        assert "no tissue" in capsys.readouterr().err
        assert not open_volume("a.tif").read().any()
        tif("nan.tif", np.full(SHAPE, np.nan, np.float32))
        assert run(*words, *resampled, "input=nan.tif", "output=b.tif") == 1
        assert "only NaN" in capsys.readouterr().err
        assert not Path("b.tif").exists()


def test_densities_are_those_of_tissue(run, capsys):
    assert run("checkpoint=whole.ckpt", "output=a.zarr", "save=mask") == 0
    mask = open_volume("a.zarr").read() > 0
    tif("mask.tif", mask.astype(np.uint8))
    tissue = TISSUE.sum() * 125 / 1e9
    rows = {}
    for name, words in {
        "noted": ["input=a.zarr"],
        "image": ["input=mask.tif", "image=in.tif", "kind=mask"],
        "none": ["input=a.zarr", "padding=none"],
    }.items():
        assert run.command("measure", *words, f"output={name}.csv", "voxel_size=[5,5,5]", "reach=0") == 0
        rows[name] = pd.read_csv(f"{name}_summary.csv").iloc[0]
    for name in ("noted", "image"):
        assert rows[name]["tissue_um3"] == pytest.approx(tissue)
        assert rows[name]["volume_fraction"] == pytest.approx(mask.sum() / TISSUE.sum())
        assert rows[name]["padding_fraction"] == pytest.approx((~TISSUE).mean())
    assert rows["none"]["volume_fraction"] == pytest.approx(mask.mean())
    assert f"tissue ({100 * (~TISSUE).mean():.1f} % of the volume is padding)" in capsys.readouterr().out


@pytest.mark.slow
def test_margins_cost_no_mitochondria(run, monkeypatch):
    """The model that comes along, on tissue with black margins of 19 %: without `padding` it loses a third of them."""
    folder = os.environ.get("MITOSEG_DATA")
    if not folder:
        pytest.skip("MITOSEG_DATA is not set")
    part = np.s_[128:640, 256:768]
    stacks = [Path(folder) / "epfl_ca1" / f"testing_z000-081{name}.tif" for name in ("", "_groundtruth")]
    image, truth = (np.stack([tifffile.imread(path, key=z)[part] for z in range(20, 22)]) for path in stacks)
    for name, margin in (("plain", 0), ("margins", 28)):
        wide = ((0, 0), (margin, margin), (margin, margin))
        tif("in.tif", np.pad(image, wide))
        words = ("save=mask", "normalize=match", "voxel_size=[5,5,5]", f"output={name}.tif")
        assert run(*words) == 0
    inner = np.s_[:, 28:-28, 28:-28]
    found = {"plain": open_volume("plain.tif").read(), "margins": open_volume("margins.tif").read()[inner]}
    score = {n: ((m > 0) & (truth > 0)).sum() / ((m > 0) | (truth > 0)).sum() for n, m in found.items()}
    assert score["margins"] > score["plain"] - 0.05


@pytest.mark.parametrize("tile", [None, [1, 16, 16]])
def test_training_learns_nothing_from_padding(tmp_path, tile):
    label = (GREY > 120).astype(np.uint8)
    tif(tmp_path / "label.tif", label)
    found = {}
    for choice in ("auto", "none"):
        tif(tmp_path / "image.tif", np.where(TISSUE, GREY, 0))
        named = {"image": "image.tif", "label": "label.tif"}
        source = {"root": str(tmp_path), "train": named, "validation": {"slabs": [[5, 6]], "gap": 0}}
        options = {"window": 16, "block": 16, "label_rule": "center", "spatial_dims": 2, "batch_size": 4}
        data = data_module(Files, tile=tile, channels="single", padding=choice, **options, **source)
        data.setup()
        found[choice] = data
    inside = TISSUE[:5]
    data = found["auto"]
    assert data.normalization.mean == pytest.approx(GREY[:5][inside].mean())
    assert data.normalization.std == pytest.approx(GREY[:5][inside].std())
    assert data.grey_quantiles[0] >= 60
    assert data.prior == pytest.approx(label[:5][inside].mean())
    assert found["none"].normalization.mean < data.normalization.mean - 10
    if tile is None:
        _, z, y, x = data.draws.draw(0).position_n4.T
        assert inside[z, y, x].all()
    validation = next(iter(data.val_dataloader()))
    assert ((validation["label_yx"].numpy() == 255) == ~TISSUE[5]).all()
    region, writer = data.splits.train[0], ArrayWriter(SHAPE, np.uint8)
    writer.write(region.box, region.read_label())
    assert (writer.array_zyx[:5][~inside] == 255).all()
