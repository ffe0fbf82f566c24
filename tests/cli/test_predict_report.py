"""`predict report=true`: one HTML file beside the record of the run."""

from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import OneConvolution, predict, save_checkpoint
from scipy import ndimage

from mitoseg.geometry import Box
from mitoseg.volumes import create_volume

SHAPE = (6, 60, 70)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command in a folder with a checkpoint and a volume; its exit code."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1}, voxel_size=[20.0, 10.0, 10.0])
    image = ndimage.gaussian_filter(np.random.default_rng(0).random(SHAPE), (1, 4, 4))
    grey = ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)
    for name in ("in.tif", "b.tif"):
        with create_volume(name, SHAPE, np.uint8, voxel_size=(20, 10, 10)) as writer:
            writer.write(Box.of_shape(SHAPE), grey)
    words = ["checkpoint=a.ckpt", "trust=true", "compile=false", "hydra.run.dir=run", "input=in.tif", "report=true"]
    return lambda *more: predict(monkeypatch, *words, *more)


@pytest.mark.parametrize("save", ["probability", "mask", "instances"])
def test_one_volume(run, capsys, save):
    assert run("output=out.h5", f"save={save}", f"expect={save == 'mask'}") == 0
    text = Path("run/report.html").read_text(encoding="utf-8")
    assert "Prediction of in.tif" in text
    assert text.count('id="slices"') == text.count('id="scene-part"') == 1
    assert 'id="errors"' not in text  # there is no truth
    assert ("JAC to expect, without labels" in text) == (save == "mask")
    for told in ("20 \N{MULTIPLICATION SIGN} 10 \N{MULTIPLICATION SIGN} 10 nm", "a.ckpt", "out.h5"):
        assert told in text
    assert "report in" in capsys.readouterr().out


def test_several_volumes_have_one_each(run):
    assert run("input=[in.tif,b.tif]", "output=out") == 0
    assert sorted(p.name for p in Path("run").glob("*.html")) == ["report_b.zarr.html", "report_in.zarr.html"]
    assert "Prediction of b.tif" in Path("run/report_b.zarr.html").read_text(encoding="utf-8")


def test_there_is_none_unless_it_is_asked_for_nor_of_uncertainty(run, capsys):
    assert run("output=out.h5", "report=false") == 0
    assert not list(Path("run").glob("*.html"))
    assert run("output=unsure.h5", "save=uncertainty", "tta=flips") == 1
    assert "error: the report shows mitochondria: 'save=uncertainty'" in capsys.readouterr().err
    assert not Path("unsure.h5").exists()
