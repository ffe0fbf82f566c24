"""Volumes as layers of napari, layers as volumes, and saving them."""

import doctest
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
from made_volumes import save

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.viewers.napari_plugin.layers import KEY, as_dask, layer_volume, read_layer, save_volume, size_of
from mitoseg.volumes import ArrayVolume, open_volume

da = pytest.importorskip("dask.array", reason="lazy layers need dask, of the extra viewers")

SHAPE = (5, 20, 30)
FORMATS = [".tif", ".h5", ".zarr", ".ome.zarr", ".mrc"]


def greys(dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_image_stays_on_the_disk(tmp_path, suffix):
    image_zyx = greys()
    data, options, kind = read_layer(save(tmp_path / f"em{suffix}", image_zyx))
    assert (kind, options["name"], options["units"], options["colormap"]) == ("image", "em", ("nm",) * 3, "gray")
    assert isinstance(data, da.Array)
    assert np.array_equal(data[1:3, 4:9, 5:6].compute(), image_zyx[1:3, 4:9, 5:6])
    assert np.array_equal(np.asarray(data), image_zyx)
    assert options["scale"] == pytest.approx((30, 5, 4))


def test_only_what_is_looked_at_is_read():
    read = []

    class Watched(ArrayVolume):
        def read(self, box=None):
            read.append(box)
            return super().read(box)

    data = as_dask(Watched(greys()))
    assert read == []
    assert np.array_equal(data[2].compute(), greys()[2])
    assert read == [Box((2, 0, 0), (3, 20, 30))]


@pytest.mark.parametrize(
    "index", [np.s_[3], np.s_[1:4, ::2, 5], np.s_[::-1, 3:19:5, 2:2], np.s_[:, :, -1], np.s_[..., ::-3]]
)
def test_any_slice_of_a_volume(index):
    assert np.array_equal(as_dask(ArrayVolume(greys()))[index].compute(), greys()[index])


@pytest.mark.parametrize(("dtype", "scale"), [(np.float32, 1.0), (np.uint8, 255)])
def test_probabilities_are_drawn_from_0_to_1(tmp_path, dtype, scale):
    path = save(tmp_path / "p.zarr", greys(dtype), kind="probability", threshold=0.4, scale=scale)
    _, options, kind = read_layer(path)
    assert (kind, options["contrast_limits"], options["blending"]) == ("image", (0, scale), "additive")
    assert options["metadata"][KEY]["threshold"] == 0.4


@pytest.mark.parametrize(
    ("metadata", "dtype"), [({"kind": "mask"}, np.uint8), ({"kind": "instances"}, np.uint16), ({}, np.uint32)]
)
def test_masks_and_instances_are_labels_in_memory(tmp_path, monkeypatch, metadata, dtype):
    labels_zyx = greys(dtype)
    data, options, kind = read_layer(save(tmp_path / "a.h5", labels_zyx, voxel_size=None, **metadata))
    assert (kind, isinstance(data, np.ndarray)) == ("labels", True)
    assert np.array_equal(data, labels_zyx)
    assert "scale" not in options  # the file knows none
    monkeypatch.setattr("mitoseg.viewers.napari_plugin.layers.IN_MEMORY", 0)
    data, _, kind = read_layer(str(tmp_path / "a.h5"))  # large ones stay on the disk
    assert (kind, isinstance(data, da.Array)) == ("labels", True)


def test_an_ome_zarr_image_comes_with_its_levels(tmp_path):
    image_zyx = np.random.default_rng(0).integers(0, 200, (4, 600, 520)).astype(np.uint8)
    data, options, _ = read_layer(save(tmp_path / "em.ome.zarr", image_zyx, voxel_size=(50, 5, 5)))
    assert options["multiscale"]
    assert [level.shape for level in data] == [(4, 600, 520), (4, 300, 260), (4, 150, 130)]
    assert np.array_equal(np.asarray(data[0]), image_zyx)
    assert read_layer(str(tmp_path / "em.ome.zarr" / "1"))[1]["multiscale"] is False


@pytest.mark.parametrize("name", ["layers", "fields"])
def test_examples(application, name):
    assert doctest.testmod(import_module(f"mitoseg.viewers.napari_plugin.{name}")) == (0, 1)


@pytest.mark.parametrize(
    ("scale", "units", "size"),
    [
        ((0.05, 5, 4), ("micrometer", "nm", "nanometer"), (50, 5, 4)),
        ((1, 1, 1), ("pixel",) * 3, None),
        ((5, 5), ("nm", "nm"), None),
        (None, None, None),
    ],
)
def test_voxel_sizes_of_layers(scale, units, size):
    assert size_of(scale, units) == size


def test_a_layer_is_a_volume():
    image_zyx = greys()
    data = [da.from_array(image_zyx), image_zyx[:, ::2, ::2]]
    about = {"name": "em", "metadata": {}, "scale": (1,) * 3, "units": ("pixel",) * 3}
    many = SimpleNamespace(data=data, multiscale=True, **about)
    volume = layer_volume(many)
    assert (volume.shape, volume.dtype, volume.voxel_size) == (SHAPE, np.uint8, None)
    box = Box((1, 2, 3), (3, 9, 8))
    assert np.array_equal(volume.read(box), image_zyx[box.slices])
    assert layer_volume(many, (5, 5, 5)).voxel_size == (5, 5, 5)


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.zarr", "a.ome.zarr"])
def test_saved_labels_come_back(tmp_path, name):
    labels_zyx, about = greys(np.int64), {"kind": "instances", "threshold": 0.4, "corrected": True}
    path, volume = str(tmp_path / name), ArrayVolume(labels_zyx, (30.0, 5.0, 5.0))
    save_volume(path, volume, about)
    back = open_volume(path)
    assert (back.dtype, back.voxel_size) == (np.uint32, (30, 5, 5))
    assert dict(back.info.metadata) == about
    assert np.array_equal(back.read(), labels_zyx)
    with pytest.raises(UserError, match="exists"):
        save_volume(path, volume, about)
    save_volume(path, volume, {"kind": "mask"}, overwrite=True)
    assert open_volume(path).info.metadata["kind"] == "mask"


@pytest.mark.parametrize(("name", "number"), [("a.tif", 2**32), ("a.mrc", 3)])  # MRC has no whole numbers of 32 bits
def test_numbers_that_do_not_fit_are_not_saved(tmp_path, name, number):
    with pytest.raises(UserError):
        save_volume(str(tmp_path / name), ArrayVolume(np.full((1, 2, 3), number)), {"kind": "instances"})
    assert list(tmp_path.iterdir()) == []
