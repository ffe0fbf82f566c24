import numpy as np
import pytest
import tifffile
from tiff_files import write

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import open_volume


@pytest.mark.parametrize(("unit", "spacing", "pixels"), [("um", 0.05, 200), ("\\u00B5m", 0.05, 200), ("nm", 50, 0.2)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_voxel_size_of_imagej(tmp_path, image_zyx, unit, spacing, pixels, compression):
    options = {"metadata": {"axes": "ZYX", "spacing": spacing, "unit": unit}, "resolution": (pixels, pixels / 2)}
    path = write(tmp_path / "a.tif", image_zyx, imagej=True, compression=compression, **options)
    assert open_volume(path).voxel_size == (50, 10, 5)
    assert open_volume(path, voxel_size=[45, 4.6, 4.6]).voxel_size == (45, 4.6, 4.6)


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "ZYX", "unit": "um"}, "resolution": (200, 200)},  # no spacing
        {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 1}, "resolution": (200, 200)},  # no unit
        {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 1, "unit": "pixel"}, "resolution": (1, 1)},
        {"imagej": True, "metadata": {"axes": "ZYX", "spacing": 1, "unit": "inch"}, "resolution": (72, 72)},
        {"resolution": (72, 72), "resolutionunit": "inch"},  # for printing
        {"resolution": (300, 300), "resolutionunit": "centimeter"},
        {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.005, "PhysicalSizeY": 0.005}},
    ],
)
def test_half_known_voxel_sizes_are_none(tmp_path, image_zyx, options):
    assert open_volume(write(tmp_path / "a.tif", image_zyx, **options)).voxel_size is None


@pytest.mark.parametrize("unit", [None, "nm", "µm"])
def test_voxel_size_of_ome(tmp_path, image_zyx, unit):
    factor = 1 if unit == "nm" else 1000  # micrometres are OME's default
    sizes = {f"PhysicalSize{a}": n / factor for a, n in (("Z", 50), ("Y", 4.6), ("X", 4.5))}
    units = {f"{name}Unit": unit for name in sizes} if unit else {}
    path = write(tmp_path / "a.ome.tif", image_zyx, ome=True, metadata={"axes": "ZYX", **sizes, **units})
    assert open_volume(path).voxel_size == (50, 4.6, 4.5)


def test_axes_that_the_file_states(tmp_path, image_zyx):
    few = np.ascontiguousarray(image_zyx[:3])
    for options in ({"imagej": True}, {"ome": True}, {}):
        path = write(tmp_path / "a.tif", few, metadata={"axes": "ZYX"}, **options)
        assert np.array_equal(open_volume(path).read(), few)


@pytest.mark.parametrize("shape", [(3, 20, 30), (4, 20, 30), (20, 30, 3), (20, 30, 4), (5, 6, 20, 30)])
def test_ambiguous_axes_ask(tmp_path, shape):
    image = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16)
    path = write(tmp_path / "a.tif", image)
    with pytest.raises(UserError, match=r"axes.*ambiguous.*axes=zyx"):
        open_volume(path)
    if len(shape) == 3:
        assert np.array_equal(open_volume(path, axes="zyx").read(), image)
        assert np.array_equal(open_volume(path, axes="xyz").read(), image.transpose())
    else:
        with pytest.raises(UserError, match=r"axis c of shape .* holds 5 images"):
            open_volume(path, axes="czyx")


@pytest.mark.parametrize("planes", [3, 4])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"imagej": True}])
def test_colour_stacks_ask_and_are_reduced_to_grey(tmp_path, planes, options):
    image_zyxc = np.random.default_rng(0).integers(0, 255, (5, 20, 30, planes), np.uint8)
    stored = image_zyxc
    if "planarconfig" in options:
        stored = np.ascontiguousarray(np.moveaxis(image_zyxc, -1, 1))
    extra = {"extrasamples": ["unassalpha"]} if planes == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **options, **extra)
    with pytest.raises(UserError, match="ambiguous"):
        open_volume(str(tmp_path / "a.tif"))
    volume = open_volume(str(tmp_path / "a.tif"), axes="zcyx" if "planarconfig" in options else "zyxc")
    assert np.array_equal(volume.read(), image_zyxc[..., :3].max(-1))
    box = Box((1, 2, 3), (4, 5, 6))
    assert np.array_equal(volume.read(box), volume.read()[box.slices])
