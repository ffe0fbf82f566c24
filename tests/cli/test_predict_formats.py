"""`predict` from any volume to any format: resampling, other grey values, levels of an OME-Zarr image."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from made_checkpoints import OneConvolution, Padded, predict, prepare, save_checkpoint, write_volume
from scipy import ndimage

from mitoseg.inference.prepare import resample_input
from mitoseg.networks.checkpoint import load_model
from mitoseg.volumes import ArrayVolume, open_volume

SHAPE = (4, 24, 30)


def grey(shape=SHAPE, sigma=2):
    image = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), sigma)
    return ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


@pytest.fixture
def work(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


@pytest.fixture
def run(work, monkeypatch):
    common = ["checkpoint=a.ckpt", "trust=true", "precision=fp32", "compile=false"]
    return lambda *words: predict(monkeypatch, *common, *words)


@pytest.mark.parametrize(
    ("output", "save"),
    [("a.tif", "mask"), ("a.zarr", "probability"), ("a.ome.zarr", "mask"), ("a.h5:/maps/mito", "probability")],
)
def test_the_output_has_the_inputs_grid(run, output, save):
    write_volume("in.ome.zarr", grey(), (20, 10, 10))
    assert run("input=in.ome.zarr", f"output={output}", f"save={save}") == 0
    result = open_volume(output)
    assert result.shape == SHAPE
    assert result.voxel_size == pytest.approx((20, 10, 10))
    assert result.dtype == ("uint8" if save == "mask" else "float32")
    assert result.info.metadata["kind"] == save
    found = result.read()
    assert found.max() == 1 if save == "mask" else 0 <= found.min() < found.max() <= 1


def test_what_the_network_sees_is_resampled_and_what_it_says_brought_back(run):
    """The same as to resample, predict and resample by hand; a mask is thresholded on the input's grid."""
    image = grey()
    write_volume("in.tif", image, (20, 10, 10))
    by_hand = ArrayVolume(image, (20, 10, 10))
    seen = resample_input([20, 5, 5], by_hand, load_model("a.ckpt", trust=True))
    assert seen.shape == (4, 48, 60)
    write_volume("seen.h5", seen.read(), (20, 5, 5))
    assert run("input=seen.h5", "output=fine.h5") == 0
    fine = open_volume("fine.h5").read().astype(float)
    expected = fine.reshape(4, 24, 2, 30, 2).mean((2, 4))
    assert run("input=in.tif", "output=out.h5", "resample=[20,5,5]") == 0
    assert run("input=in.tif", "output=auto.h5") == 0
    assert run("input=in.tif", "output=mask.h5", "resample=auto", "save=mask", "threshold=0.4") == 0
    assert run("input=in.tif", "output=bytes.h5", "resample=auto", "dtype=uint8") == 0
    np.testing.assert_allclose(open_volume("out.h5").read(), expected, atol=1e-4)
    assert np.array_equal(open_volume("auto.h5").read(), open_volume("out.h5").read())
    assert np.array_equal(open_volume("mask.h5").read(), open_volume("out.h5").read() >= 0.4)
    assert np.abs(open_volume("bytes.h5").read() - 255 * expected).max() < 1.1


def test_post_processing_works_on_the_inputs_grid(run):
    write_volume("in.tif", grey(), (20, 10, 10))
    words = ["resample=auto", "save=mask", "postprocess=none", "postprocess.z_median=3"]
    assert run("input=in.tif", "output=mask.tif", *words) == 0
    assert open_volume("mask.tif").shape == SHAPE


@pytest.mark.parametrize("tile", ["tile=[1,16,16]", "tile=[2,64,7]"])
def test_the_result_does_not_depend_on_the_tiles(run, tile):
    write_volume("in.tif", grey(), (20, 8, 8))
    assert run("input=in.tif", "output=a.h5", "resample=auto", tile) == 0
    assert run("input=in.tif", "output=b.h5", "resample=auto") == 0
    np.testing.assert_allclose(open_volume("a.h5").read(), open_volume("b.h5").read(), atol=1e-6)


@pytest.mark.parametrize(
    ("ndim", "channels", "voxel_size", "seen"),
    [
        (2, "single", (10, 10, 10), (10, 5, 5)),
        (2, "single", (50, 5.2, 4.8), (50, 5.2, 4.8)),
        (2, "repeat", (10, 10, 10), (10, 5, 5)),
        (2, "adjacent", (10, 10, 10), (5, 5, 5)),
        (2, "adjacent", (50, 10, 10), (50, 5, 5)),
        (3, "single", (40, 2.5, 5), (5, 5, 5)),
        (3, "single", (5, 5, 5), (5, 5, 5)),
    ],
)
def test_which_axes_auto_resamples(work, ndim, channels, voxel_size, seen):
    arguments = {"in_channels": 1 if channels == "single" else 3, "ndim": ndim}
    network = Padded(**arguments)
    save_checkpoint(work / "b.ckpt", network, arguments=arguments, channels=channels)
    volume = ArrayVolume(grey(), voxel_size)
    found = resample_input("auto", volume, load_model(work / "b.ckpt", trust=True))
    assert found.voxel_size == seen
    assert (found is volume) == (seen == voxel_size)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["resample=often"], "no such way to resample"),
        (["resample=[5,5]", "voxel_size=[5,5,5]"], "cannot read the voxel size"),
        (["resample=[5,5,5]"], "no voxel size to resample by"),
        (["voxel_size=[5,5,5000]"], "by more than 10 times: 'in.tif'; check voxel_size=, or give resample=none"),
    ],
)
def test_what_cannot_be_resampled_is_one_line(run, capsys, words, line):
    tifffile.imwrite("in.tif", grey((5, 24, 30)), photometric="minisblack")
    assert run("input=in.tif", "output=out.tif", *words) == 1
    error = capsys.readouterr().err
    assert line in error
    assert "Traceback" not in error


def test_voxels_far_from_trainings_are_told(work, caplog):
    model = load_model(work / "a.ckpt", trust=True)
    with caplog.at_level(logging.INFO):
        for size in ((50, 5, 5), (5, 6, 4.5), None):
            resample_input("none", ArrayVolume(grey(), size), model)
        assert caplog.records == []
        resample_input("none", ArrayVolume(grey(), (5, 10, 10)), model)
    (record,) = caplog.records
    assert "give resample=auto" in record.getMessage()


def test_by_default_voxels_of_another_size_are_resampled_and_it_is_told(run, capsys):
    """More than a tenth away; the record of the run says it as well."""
    write_volume("in.tif", grey(), (20, 10, 10))
    write_volume("near.tif", grey(), (5, 5.4, 4.6))
    told = "in.tif: resampled from voxels of 20 x 10 x 10 nm to 20 x 5 x 5 nm, 4 x 24 x 30 voxels to 4 x 48 x 60"
    assert run("input=in.tif", "output=a.h5", "hydra.run.dir=a") == 0
    assert told in capsys.readouterr().err
    assert json.loads(Path("a/provenance.json").read_text())["chosen"]["resampled_to"] == [20, 5, 5]
    assert run("input=in.tif", "output=none.h5", "resample=none", "hydra.run.dir=none") == 0
    said = capsys.readouterr().err
    assert "resampled from" not in said
    assert "give resample=auto" in said
    assert "resampled_to" not in json.loads(Path("none/provenance.json").read_text())["chosen"]
    assert not np.array_equal(open_volume("a.h5").read(), open_volume("none.h5").read())
    assert run("input=near.tif", "output=near.h5") == 0
    assert "resampl" not in capsys.readouterr().err


@pytest.mark.parametrize("known", [None, [5.0, 5.0, 5.0]])
@pytest.mark.parametrize("stated", [None, (20, 10, 10)])
def test_one_warning_where_a_voxel_size_is_not_known(run, work, capsys, known, stated):
    save_checkpoint(work / "a.ckpt", OneConvolution(), arguments={"in_channels": 1}, voxel_size=known)
    write_volume("in.tif", grey(), stated)
    assert run("input=in.tif", "output=out.h5") == 0
    said = capsys.readouterr().err
    assert said.count("not resampled") + said.count("nothing is resampled") == (known is None or stated is None)
    assert said.count("warning") <= 1


def test_one_warning_where_grey_values_are_others(run, work, capsys):
    image = grey((6, 120, 130), 3)
    quantiles = np.quantile(image, np.linspace(0, 1, 257)).tolist()
    save_checkpoint(work / "a.ckpt", OneConvolution(), arguments={"in_channels": 1}, grey_quantiles=quantiles)
    for name, stored, warns in (
        ("same", image, False),
        ("shifted", image // 2, True),
        ("wide", image.astype(np.uint16) * 257, True),
    ):
        write_volume(f"{name}.tif", stored, (5, 5, 5))
        assert run(f"input={name}.tif", f"output={name}_out.tif") == 0
        said = capsys.readouterr().err
        assert said.count("normalize=match") == warns, name
    assert run("input=wide.tif", "output=matched.tif", "normalize=match") == 0
    assert "normalize=match" not in capsys.readouterr().err


def test_a_level_of_an_image_in_and_an_image_with_levels_out(run):
    write_volume("in.ome.zarr", grey((2, 300, 280), 3), (50, 5, 5))
    assert run("input=in.ome.zarr/1", "output=out.ome.zarr", "save=mask") == 0
    result = open_volume("out.ome.zarr")
    assert result.shape == (2, 150, 140)
    assert result.voxel_size == (50, 10, 10)
    assert run("input=in.ome.zarr", "output=fine.ome.zarr") == 0
    assert open_volume("fine.ome.zarr/1").voxel_size == (50, 10, 10)
    assert set(np.unique(open_volume("out.ome.zarr").read())) <= {0, 1}


@pytest.mark.parametrize("name", ["em.n5", "em.n5/raw", "em.n5:/raw"])
def test_a_dataset_of_n5(run, name):
    """Also one of several volumes; a container is not a folder of volumes."""
    tensorstore = pytest.importorskip("tensorstore")
    image = grey()
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{Path.cwd()}/em.n5/raw/"}}
    metadata = {
        "dimensions": SHAPE[::-1],
        "dataType": "uint8",
        "blockSize": [16, 16, 4],
        "compression": {"type": "raw"},
    }
    tensorstore.open({**spec, "metadata": metadata}, create=True).result()[...].write(image.transpose()).result()
    attributes = Path("em.n5/raw/attributes.json")
    size = {"pixelResolution": {"dimensions": [5, 5, 20], "unit": "nm"}}
    attributes.write_text(json.dumps(json.loads(attributes.read_text()) | size))
    write_volume("in.tif", image, (20, 5, 5))
    assert run("input=in.tif", "output=one.h5") == 0
    assert run(f"input={name}", "output=out.h5") == 0
    assert open_volume("out.h5").voxel_size == (20, 5, 5)
    assert np.array_equal(open_volume("out.h5").read(), open_volume("one.h5").read())
    assert run(f"input=[{name},in.tif]", "output=out", "suffix=.h5") == 0
    named = "em" if name == "em.n5" else "raw" if "/" in name and ":" not in name else "em_raw"
    assert np.array_equal(open_volume(f"out/{named}.h5").read(), open_volume("one.h5").read())
