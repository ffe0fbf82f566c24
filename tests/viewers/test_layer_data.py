"""Volumes as layers of napari, and layers as volumes."""

import doctest
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest

from mitoseg.geometry import Box
from mitoseg.viewers.napari_plugin.layers import KEY, as_dask, layer_volume, read_layer, size_of
from mitoseg.volumes import ArrayVolume, create_volume

da = pytest.importorskip("dask.array", reason="lazy layers need dask, of the extra viewers")

SHAPE = (5, 20, 30)
FORMATS = [".tif", ".h5", ".zarr", ".ome.zarr", ".mrc"]


def written(path, array_zyx, voxel_size=(50.0, 5.0, 4.0), **metadata):
    with create_volume(path, array_zyx.shape, array_zyx.dtype, voxel_size=voxel_size, metadata=metadata) as writer:
        writer.write(Box.of_shape(array_zyx.shape), array_zyx)
    return str(path)


def greys(dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 200, SHAPE).astype(dtype)


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_image_stays_on_the_disk(tmp_path, suffix):
    image_zyx = greys()
    data, options, kind = read_layer(written(tmp_path / f"em{suffix}", image_zyx))
    assert kind == "image"
    assert isinstance(data, da.Array)
    assert np.array_equal(data[1:3, 4:9, 5:6].compute(), image_zyx[1:3, 4:9, 5:6])
    assert np.array_equal(np.asarray(data), image_zyx)
    assert options["name"] == "em"
    assert options["scale"] == pytest.approx((50, 5, 4))
    assert options["units"] == ("nm",) * 3
    assert options["colormap"] == "gray"


def test_only_what_is_looked_at_is_read(tmp_path):
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
    path = written(tmp_path / "p.zarr", greys(dtype), kind="probability", threshold=0.4, scale=scale)
    _, options, kind = read_layer(path)
    assert (kind, options["contrast_limits"], options["blending"]) == ("image", (0, scale), "additive")
    assert options["metadata"][KEY]["threshold"] == 0.4


@pytest.mark.parametrize(
    ("metadata", "dtype"), [({"kind": "mask"}, np.uint8), ({"kind": "instances"}, np.uint16), ({}, np.uint32)]
)
def test_masks_and_instances_are_labels_in_memory(tmp_path, monkeypatch, metadata, dtype):
    labels_zyx = greys(dtype)
    data, options, kind = read_layer(written(tmp_path / "a.h5", labels_zyx, voxel_size=None, **metadata))
    assert kind == "labels"
    assert isinstance(data, np.ndarray)
    assert np.array_equal(data, labels_zyx)
    assert "scale" not in options  # the file knows none
    monkeypatch.setattr("mitoseg.viewers.napari_plugin.layers.IN_MEMORY", 0)
    data, _, kind = read_layer(str(tmp_path / "a.h5"))  # large ones stay on the disk
    assert (kind, isinstance(data, da.Array)) == ("labels", True)


def test_an_ome_zarr_image_comes_with_its_levels(tmp_path):
    image_zyx = np.random.default_rng(0).integers(0, 200, (4, 600, 520)).astype(np.uint8)
    data, options, _ = read_layer(written(tmp_path / "em.ome.zarr", image_zyx, voxel_size=(50, 5, 5)))
    assert options["multiscale"]
    assert [level.shape for level in data] == [(4, 600, 520), (4, 300, 260), (4, 150, 130)]
    assert np.array_equal(np.asarray(data[0]), image_zyx)
    assert read_layer(str(tmp_path / "em.ome.zarr" / "1"))[1]["multiscale"] is False


@pytest.mark.parametrize("name", ["layers", "panels"])
def test_examples(application, name):
    assert doctest.testmod(import_module(f"mitoseg.viewers.napari_plugin.{name}")) == (0, 1)


@pytest.mark.parametrize(
    ("scale", "units", "size"),
    [
        ((50, 5, 4), ("nanometer",) * 3, (50, 5, 4)),
        ((0.05, 5, 4), ("micrometer", "nm", "nm"), (50, 5, 4)),
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
