"""OME-Zarr: images in groups, and outputs: what coarser levels hold, where they lie, and that other readers agree."""

import itertools
import math
import tempfile

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_files import check, refused, save
from test_zarrs import write_ome

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes import check_volume_output, create_volume, open_volume
from mitoseg.volumes.zarrs import coarser, halved, holds_labels, levels

STEPS = st.tuples(*[st.integers(1, 2)] * 3)
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=5)


def cells(image_zyx, steps):
    """Each coarser voxel's place, and the voxels that it covers."""
    shape = [-(-n // s) for n, s in zip(image_zyx.shape, steps, strict=True)]
    for at in itertools.product(*map(range, shape)):
        yield at, image_zyx[tuple(slice(i * s, (i + 1) * s) for i, s in zip(at, steps, strict=True))]


@settings(max_examples=60, deadline=None)
@given(image_zyx=hnp.arrays("uint8", SHAPES), steps=STEPS)
def test_the_mean_is_that_of_the_voxels_that_are_there(image_zyx, steps):
    found = coarser(image_zyx, steps, labels=False)
    assert found.dtype == np.uint8
    for at, cell in cells(image_zyx, steps):
        assert found[at] == math.floor(cell.mean() + 0.5)


@settings(max_examples=60, deadline=None)
@given(image_zyx=hnp.arrays("uint32", SHAPES, elements=st.sampled_from([0, 1, 2, 7, 2**32 - 1])), steps=STEPS)
def test_a_label_is_the_most_frequent_one_and_never_a_new_one(image_zyx, steps):
    found = coarser(image_zyx, steps, labels=True)
    assert found.dtype == np.uint32
    for at, cell in cells(image_zyx, steps):
        values, counts = np.unique(cell, return_counts=True)
        most = values[counts == counts.max()]
        assert found[at] in (most[most > 0] if (most > 0).any() else most)


@settings(max_examples=100, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 3000)] * 3), voxel=st.tuples(*[st.floats(1, 100)] * 3))
def test_levels_shrink_and_their_voxels_get_cubic(shape, voxel):
    found = levels(shape, voxel)
    assert found[0].shape == shape
    assert max(found[-1].shape) <= 256
    assert all(max(level.shape) > 256 for level in found[:-1])
    for before, after in itertools.pairwise(found):
        size, coarse = before.scale(voxel), after.scale(voxel)
        long = [a for a in range(3) if before.shape[a] > 1]
        for a in range(3):
            assert after.shape[a] == -(-shape[a] // after.factors[a])
            if coarse[a] > size[a]:
                assert all(size[a] <= 2 * size[b] for b in long)
        ratio = [max(s[a] for a in long) / min(s[a] for a in long) for s in (size, coarse)]
        assert ratio[1] <= max(ratio[0], 2)


def test_which_axes_are_halved_and_what_is_averaged():
    steps = {(5, 5, 5): (2, 2, 2), (50, 5, 5): (1, 2, 2), (50, 40, 40): (2, 2, 2), (10, 5, 5): (1, 2, 2)}
    for voxel, expected in {**steps, (4, 8, 8): (2, 1, 1)}.items():
        assert halved((100, 100, 100), voxel) == expected
    kinds = [("uint8", "mask", True), ("uint32", "instances", True), ("uint8", "probability", False)]
    kinds += [("uint8", None, False), ("uint16", None, False), ("uint32", None, True), ("float32", None, False)]
    for dtype, kind, labels in kinds:
        assert holds_labels(np.dtype(dtype), {"kind": kind} if kind else {}) is labels


@pytest.mark.parametrize("kind", ["probability", "instances"])
def test_every_level_opens_with_its_voxel_size_and_place(tmp_path, kind):
    rng = np.random.default_rng(0)
    image_zyx = rng.random((9, 300, 520)).astype("float32")
    if kind == "instances":
        image_zyx = np.kron(rng.integers(0, 2**31, (3, 10, 13)), np.ones((3, 30, 40))).astype("uint32")
    voxel = (30.0, 8.0, 8.0)
    path = save(tmp_path / "a.ome.zarr", image_zyx, voxel_size=voxel, metadata={"kind": kind})
    (image,) = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"]
    assert [axis["unit"] for axis in image["axes"]] == ["nanometer"] * 3
    assert image["type"] == ("mode" if kind == "instances" else "mean")
    expected = image_zyx
    for i, (dataset, level) in enumerate(zip(image["datasets"], levels(image_zyx.shape, voxel), strict=True)):
        scale, translation = dataset["coordinateTransformations"]
        size = tuple(v * f for v, f in zip(voxel, level.factors, strict=True))
        assert scale == {"type": "scale", "scale": list(size)}
        assert translation["translation"] == [(f - 1) / 2 * v for v, f in zip(voxel, level.factors, strict=True)]
        if i:
            before = levels(image_zyx.shape, voxel)[i - 1].factors
            steps = tuple(b // a for a, b in zip(before, level.factors, strict=True))
            expected = coarser(expected, steps, labels=kind == "instances")
        for name in (f"{path}/{i}", f"{path}:/{i}"):
            assert check(name, expected, size).info.metadata == {"kind": kind}
    assert i == 2
    assert np.isin(expected, image_zyx).all() == (kind == "instances")


def test_a_blob_stays_where_it_is(tmp_path):
    """Its centre in nm is that of level 0 at every level."""
    z, y, x = np.ogrid[:20, :520, :320]
    blob = np.exp(-(((z - 8.2) * 2.5) ** 2 + (y - 331.3) ** 2 + (x - 120.6) ** 2) / 40**2).astype("float32")
    path = save(tmp_path / "a.ome.zarr", blob, voxel_size=(20, 8, 8))
    places = []
    for dataset in zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]["datasets"]:
        scale, translation = dataset["coordinateTransformations"]
        image = open_volume(f"{path}/{dataset['path']}").read()
        grid = np.indices(image.shape).reshape(3, -1)
        centre = (grid * image.ravel()).sum(1) / image.sum()
        places.append(centre * scale["scale"] + translation["translation"])
    assert len(places) == 3
    np.testing.assert_allclose(places[1:], [places[0]] * 2, atol=0.5)


@pytest.mark.parametrize("voxel_size", [None, (50, 4.6, 4.5)])
def test_the_models_of_ome_zarr_accept_it(tmp_path, voxel_size):
    models = pytest.importorskip("ome_zarr_models.v05")
    path = save(tmp_path / "a.ome.zarr", np.zeros((3, 260, 30), "uint8"), voxel_size=voxel_size)
    image = models.Image.from_zarr(zarr.open_group(path, mode="r"))
    assert len(image.attributes.ome.multiscales[0].datasets) == 2
    assert open_volume(path).voxel_size == voxel_size
    assert open_volume(f"{path}/1").voxel_size == (None if voxel_size is None else (50, 9.2, 9))


def test_chunks_suit_viewers_and_none_is_missing(tmp_path):
    path = save(tmp_path / "a.ome.zarr", np.zeros((200, 270, 140), "uint8"))
    group = zarr.open_group(path, mode="r")
    assert [group[str(i)].chunks for i in range(2)] == [(128, 128, 128), (100, 128, 70)]
    for i in range(2):
        open_volume(f"{path}/{i}").check_complete()


@settings(max_examples=15, deadline=None)
@given(
    image_zyx=hnp.arrays("uint16", hnp.array_shapes(min_dims=3, max_dims=3, max_side=20)),
    tile=st.tuples(*[st.integers(3, 20)] * 3),
)
def test_boxes_of_any_size_make_the_same_volume(image_zyx, tile):
    with tempfile.TemporaryDirectory() as folder:
        with create_volume(f"{folder}/a.ome.zarr", image_zyx.shape, "uint16", chunks=(4, 8, 8)) as writer:
            for box in tiles(Box.of_shape(image_zyx.shape), tile):
                writer.write(box, image_zyx[box.slices])
        assert np.array_equal(open_volume(f"{folder}/a.ome.zarr").read(), image_zyx)


def test_an_image_of_ours_may_be_replaced_and_nothing_else(tmp_path):
    path = save(tmp_path / "a.ome.zarr", np.zeros((2, 3, 4), "uint8"))
    refused("the output exists", check_volume_output, path, False)
    check_volume_output(path, True)
    zarr.open_group(path, mode="r+").create_group("labels")
    refused("overwriting would remove", check_volume_output, path, True)
    (tmp_path / "b.ome.zarr").mkdir()
    (tmp_path / "b.ome.zarr" / "mine.txt").write_text("mine")
    refused("overwriting would remove", check_volume_output, f"{tmp_path}/b.ome.zarr", True)


def test_nothing_is_left_where_a_level_or_the_writing_fails(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mitoseg.volumes.zarrs.coarser", full)
    refused(r"a\.ome\.zarr", save, tmp_path / "a.ome.zarr", np.zeros((2, 300, 4), "uint8"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("mitoseg.volumes.zarrs.coarser", lambda *_, **__: pytest.fail("levels were made"))
    with pytest.raises(RuntimeError, match="mine"), create_volume(tmp_path / "a.ome.zarr", (2, 300, 4), "uint8"):
        raise RuntimeError("mine")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx"])
@pytest.mark.parametrize("sign", ["/", ":/", ":"])
def test_a_level_has_the_axes_and_the_scale_of_its_image(tmp_path, image_zyx, version, axes, sign):
    path = write_ome(tmp_path / "a.ome.zarr", image_zyx, version, axes, scales=((50, 4.6, 4.5), (2, 1, 1)))
    assert open_volume(f"{path}{sign}s0").voxel_size == (100, 4.6, 4.5)
    check(f"{path}{sign}s1", image_zyx[::2, ::2, ::2], (4, 2, 2))
    group = zarr.open_group(path, mode="r+")
    for name in ("deep/s2", "other"):  # the second is not of the image
        group.create_array(name, shape=(1,) * (len(axes) - 3) + (5, 6, 7), dtype="uint8")
    attributes = group.attrs.asdict()
    scale = [{"type": "scale", "scale": [1.0] * (len(axes) - 3) + [7.0, 8.0, 9.0]}]
    images = attributes.get("ome", attributes)["multiscales"]
    images[0]["datasets"].append({"path": "deep/s2", "coordinateTransformations": scale})
    group.attrs.update(attributes)
    assert open_volume(f"{path}{sign}deep/s2").voxel_size == (14, 8, 9)
    assert open_volume(f"{path}{sign}other", axes=axes).voxel_size is None


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("place", ["0", "A/1/0"])
def test_the_only_image_in_a_group(tmp_path, image_zyx, version, place):
    zarr.create_group(
        store=tmp_path / "a.zarr",
        zarr_format=2 if version == "0.4" else 3,
        attributes={"bioformats2raw.layout": 3} if place == "0" else {"plate": {}},
    ).create_group("OME")
    if place != "0":
        zarr.open_group(tmp_path / "a.zarr", mode="r+").create_group("A/1")
    write_ome(tmp_path / "a.zarr" / place, image_zyx, version)
    for name in ("a.zarr", f"a.zarr/{place}"):
        check(f"{tmp_path}/{name}", image_zyx, (50, 4.6, 4.5))
    assert open_volume(f"{tmp_path}/a.zarr:/{place}/s1").voxel_size == (2, 2, 2)


@pytest.mark.parametrize("count", [2, 12])
def test_several_images_ask(tmp_path, image_zyx, count):
    zarr.create_group(store=tmp_path / "a.zarr", attributes={"ome": {"bioformats2raw.layout": 3, "version": "0.5"}})
    for i in range(count):
        write_ome(tmp_path / "a.zarr" / str(i), image_zyx[:5, :4, :4], "0.5")
    with pytest.raises(UserError, match=r"several images.*name one: \S*a\.zarr/0, \S*a\.zarr/1") as caught:
        open_volume(f"{tmp_path}/a.zarr")
    assert ("and more" in str(caught.value)) == (count == 12)
    assert open_volume(f"{tmp_path}/a.zarr/1").voxel_size == (50, 4.6, 4.5)


@pytest.mark.parametrize("transforms", [None, [], [{"type": "identity"}], [{"type": "scale", "path": "elsewhere"}]])
def test_an_image_without_a_scale_opens(tmp_path, image_zyx, transforms):
    path = write_ome(tmp_path / "a.zarr", image_zyx, "0.4")
    group = zarr.open_group(path, mode="r+")
    images = group.attrs.asdict()["multiscales"]
    for level in images[0]["datasets"]:
        level["coordinateTransformations"] = transforms or []
        if transforms is None:
            del level["coordinateTransformations"]
    group.attrs["multiscales"] = images
    for name in (path, f"{path}/s1"):
        assert open_volume(name).voxel_size is None
        with pytest.raises(UserError, match=r"the OME-Zarr image states no scale: .*give voxel_size=\[z,y,x\] in nm"):
            open_volume(name).check_scale()
        open_volume(name, voxel_size=(50, 4, 4)).check_scale()
    assert np.array_equal(open_volume(path).read(), image_zyx)


def test_an_image_whose_array_is_gone(tmp_path, image_zyx):
    path = write_ome(tmp_path / "a.zarr", image_zyx, "0.5")
    group = zarr.open_group(path, mode="r+")
    del group["s0"]
    refused(r"a\.zarr", open_volume, path)
    group.create_group("s0")
    refused("no array of its finest level", open_volume, path)
