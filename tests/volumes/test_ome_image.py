"""OME-Zarr in: any level, and images inside other groups."""

import numpy as np
import pytest
import zarr
from test_zarrs import write_ome

from mitoseg.errors import UserError
from mitoseg.volumes import open_volume


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx"])
@pytest.mark.parametrize("sign", ["/", ":/", ":"])
def test_a_level_has_the_axes_and_the_scale_of_its_image(tmp_path, image_zyx, version, axes, sign):
    path = write_ome(tmp_path / "a.ome.zarr", image_zyx, version, axes, scales=((50, 4.6, 4.5), (2, 1, 1)))
    assert open_volume(f"{path}{sign}s0").voxel_size == (100, 4.6, 4.5)
    volume = open_volume(f"{path}{sign}s1")
    assert volume.voxel_size == (4, 2, 2)
    assert np.array_equal(volume.read(), image_zyx[::2, ::2, ::2])


def test_a_level_deeper_in_its_image(tmp_path, image_zyx):
    path = write_ome(tmp_path / "a.zarr", image_zyx, "0.5")
    group = zarr.open_group(path, mode="r+")
    group.create_array("deep/s2", shape=(5, 6, 7), dtype="uint8")
    ome = group.attrs.asdict()["ome"]
    scale = {"type": "scale", "scale": [7.0, 8.0, 9.0]}
    ome["multiscales"][0]["datasets"].append({"path": "deep/s2", "coordinateTransformations": [scale]})
    group.attrs["ome"] = ome
    assert open_volume(f"{path}/deep/s2").voxel_size == (7, 8, 9)


def test_an_array_that_the_image_does_not_list(tmp_path, image_zyx):
    path = write_ome(tmp_path / "a.zarr", image_zyx, "0.5")
    zarr.open_group(path, mode="r+").create_array("other", shape=(5, 6, 7), dtype="uint8")
    assert open_volume(f"{path}/other").voxel_size is None


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
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert volume.voxel_size == (50, 4.6, 4.5)
    assert np.array_equal(volume.read(), image_zyx)
    assert open_volume(f"{tmp_path}/a.zarr/{place}").shape == volume.shape
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
    with pytest.raises(UserError, match=r"a\.zarr") as caught:
        open_volume(path)
    assert "\n" not in str(caught.value)
    group.create_group("s0")
    with pytest.raises(UserError, match="no array of its finest level"):
        open_volume(path)
