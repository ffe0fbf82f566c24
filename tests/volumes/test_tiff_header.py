import numpy as np
import pytest
import tifffile
from made_files import check, refused, write

from mitoseg.volumes import map_labels, open_volume


@pytest.mark.parametrize(("unit", "spacing", "pixels"), [("um", 0.05, 200), ("\\u00B5m", 0.05, 200), ("nm", 50, 0.2)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_voxel_size_of_imagej(tmp_path, image_zyx, unit, spacing, pixels, compression):
    options = {"metadata": {"axes": "ZYX", "spacing": spacing, "unit": unit}, "resolution": (pixels, pixels / 2)}
    path = write(tmp_path / "a.tif", image_zyx, imagej=True, compression=compression, **options)
    assert open_volume(path).voxel_size == (50, 10, 5)
    assert open_volume(path, voxel_size=[45, 4.6, 4.6]).voxel_size == (45, 4.6, 4.6)


def imagej(resolution=200, **metadata):
    return {"imagej": True, "metadata": {"axes": "ZYX", **metadata}, "resolution": (resolution, resolution)}


HALF_KNOWN = [
    *(imagej(unit="um"), imagej(spacing=1), imagej(1, spacing=1, unit="pixel"), imagej(72, spacing=1, unit="inch")),
    *({"resolution": (n, n), "resolutionunit": unit} for n, unit in ((72, "inch"), (300, "centimeter"))),
    {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.005, "PhysicalSizeY": 0.005}},
]


@pytest.mark.parametrize("options", HALF_KNOWN)
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
    refused(r"axes.*ambiguous.*axes=zyx", open_volume, path)
    if len(shape) == 3:
        assert np.array_equal(open_volume(path, axes="zyx").read(), image)
        assert np.array_equal(open_volume(path, axes="xyz").read(), image.transpose())
    else:
        refused(r"axis c of shape .* holds 5 images", open_volume, path, axes="czyx")


def test_channels_of_other_programs_are_no_slices(tmp_path, image_zyx, caplog):
    """Tifffile itself counts slices as channels unless it is told otherwise."""
    for options in ({"imagej": True}, {"ome": True}):
        path = write(tmp_path / "a.tif", image_zyx, **options)
        assert np.array_equal(open_volume(path).read(), image_zyx)
    data = (tmp_path / "a.tif").read_bytes().replace(b'Creator="tifffile.py', b'Creator="Bio-Formats')
    (tmp_path / "a.tif").write_bytes(data)
    refused("ambiguous", open_volume, path)
    assert np.array_equal(open_volume(path, axes="zyx").read(), image_zyx)
    path = write(tmp_path / "a.tif", image_zyx, imagej=True, metadata={"axes": "TYX"})
    assert np.array_equal(open_volume(path).read(), image_zyx)
    assert "calls time is taken as z" in caplog.text


COLOUR = [{}, {"compression": "zlib"}, {"planarconfig": "separate"}, {"imagej": True}, {"metadata": None}]
COLOUR += [{"ome": True, "metadata": {"axes": "ZYXS"}}, {"metadata": {"axes": "ZYXS"}}]


@pytest.mark.parametrize("planes", [3, 4])
@pytest.mark.parametrize("options", COLOUR)
def test_colour_is_reduced_to_grey(tmp_path, planes, options):
    image_zyxc = np.random.default_rng(0).integers(0, 255, (5, 20, 30, planes), np.uint8)
    planar = "planarconfig" in options
    stored = np.ascontiguousarray(np.moveaxis(image_zyxc, -1, 1)) if planar else image_zyxc
    extra = {"extrasamples": ["unassalpha"]} if planes == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", **options, **extra)
    for axes in (None, "zcyx" if planar else "zyxc"):
        check(str(tmp_path / "a.tif"), image_zyxc[..., :3].max(-1), axes=axes)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_alpha_is_left_out(tmp_path, image_zyx, flat, folder):
    stored = np.stack([image_zyx, 255 - image_zyx], -1)
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    stored = stored[: 1 if flat else None]
    if folder:
        for z, stored_yxs in enumerate(stored):
            tifffile.imwrite(tmp_path / f"{z}.tif", stored_yxs, **options)
    else:
        tifffile.imwrite(tmp_path / "a.tiff", stored[0] if flat else stored, **options)
    check(tmp_path if folder else tmp_path / "a.tiff", stored[..., 0])


def white(path, image, **options):
    tifffile.imwrite(path, image, photometric="miniswhite", **options)
    return str(path)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"metadata": {"axes": "ZYX"}, "tile": (16, 16)}])
def test_white_is_zero_is_turned_round(tmp_path, image_zyx, dtype, options):
    image = image_zyx > 90 if dtype == "bool" else image_zyx.astype(dtype) * (1 << 8 * (np.dtype(dtype).itemsize - 1))
    options = {} if dtype == "bool" else options
    path = white(tmp_path / "a.tif", ~image, **options)
    assert np.array_equal(open_volume(path).read(), image)
    (tmp_path / "slices").mkdir()
    for z, image_yx in enumerate(image):
        white(tmp_path / "slices" / f"{z}.tif", ~image_yx, **options)
    assert np.array_equal(open_volume(tmp_path / "slices").read(), image)


def palette(path, image, colours, **options):
    table = np.asarray(colours, np.uint16)
    tifffile.imwrite(path, image, photometric="palette", colormap=table, **options)
    return str(path)


def test_tables_of_colours(tmp_path, image_zyx, caplog):
    ramp = np.arange(256) * 257
    labels = image_zyx // 40
    assert np.array_equal(open_volume(palette(tmp_path / "a.tif", image_zyx, [ramp] * 3)).read(), image_zyx)
    few = np.where(np.arange(256) < 5, ramp, 0)  # entries that nothing uses
    assert np.array_equal(open_volume(palette(tmp_path / "a.tif", labels, [few] * 3)).read(), labels)
    assert caplog.text == ""
    assert np.array_equal(open_volume(palette(tmp_path / "a.tif", labels, [ramp, ramp[::-1], ramp])).read(), labels)
    assert "has indexed colours" in caplog.text
    for table in (ramp[::-1], ramp // 2):
        refused("maps its values to other greys", open_volume, palette(tmp_path / "a.tif", image_zyx, [table] * 3))


CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
NOT_READ = [
    *((dtype, 0, {"photometric": "miniswhite"}, "smallest value is white") for dtype in ("float32", "int16")),
    ("uint8", 4, {"photometric": "separated"}, r"holds 4 values \(SEPARATED\)"),
    ("uint8", 3, {"photometric": "cielab"}, "holds 3 values"),
    *(("uint8", samples, CONTIGUOUS, f"holds {samples} values") for samples in (2, 3)),
]


@pytest.mark.parametrize(("dtype", "samples", "options", "says"), NOT_READ)
def test_pixels_that_are_not_read(tmp_path, image_zyx, dtype, samples, options, says):
    image = image_zyx.astype(dtype)
    (tmp_path / "slices").mkdir()
    for path, shown in ((tmp_path / "a.tif", image), (tmp_path / "slices" / "0.tif", image[0])):
        tifffile.imwrite(path, np.stack([shown] * samples, -1) if samples else shown, **options)
        refused(says, open_volume, path if shown.ndim == 3 else path.parent)


def test_images_larger_than_tiff_have_one_page(tmp_path, image_zyx):
    """How ImageJ writes stacks of more than 4 GB: one page, and the voxels of all behind it."""
    path = write(tmp_path / "a.tif", image_zyx, imagej=True, metadata={"axes": "ZYX", "truncate": True})
    assert np.array_equal(open_volume(path).read(), image_zyx)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"photometric": "minisblack", "extratags": [(274, 3, 1, 4, True)]}, "orientation 4"),
        (
            {"photometric": "minisblack", "imagej": True, "metadata": {"axes": "ZYX", "cf": 21, "vunit": "OD"}},
            "ImageJ's calibration of the TIFF is not linear",
        ),
        ({"photometric": "miniswhite", "imagej": True, "metadata": {"axes": "ZYX"}}, "ImageJ shows the TIFF inverted"),
        ({"photometric": "minisblack", "ome": True, "metadata": {"axes": "YX"}}, "6 images of one plane"),
    ],
)
def test_what_may_be_meant_otherwise_is_told(tmp_path, image_zyx, options, says, caplog):
    kind = {key: True for key in ("ome", "imagej") if key in options}
    with tifffile.TiffWriter(tmp_path / "a.tif", **kind) as tif:
        for image in image_zyx if "ome" in kind else [image_zyx]:
            tif.write(image, **{key: value for key, value in options.items() if key not in kind})
    assert np.array_equal(open_volume(tmp_path / "a.tif").read(), image_zyx)
    assert says in caplog.text


FLAT = [
    {"imagej": True, "metadata": {"axes": "YX", "unit": unit}, "resolution": (n, 1.25 * n)}
    for unit, n in (("um", 200), ("\\u00C5", 0.02), ("angstroms", 0.02))
]
FLAT += [{"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.005, "PhysicalSizeY": 0.004}}]


@pytest.mark.parametrize("options", FLAT)
def test_a_flat_image_is_as_thick_as_a_pixel_is_wide(tmp_path, image_zyx, options, caplog):
    path = write(tmp_path / "a.tif", image_zyx[0], **options)
    assert open_volume(path).voxel_size == (5, 4, 5)
    assert "one slice of unknown thickness" in caplog.text
    caplog.clear()
    assert open_volume(path, voxel_size=[40, 4, 4]).voxel_size == (40, 4, 4)
    assert caplog.text == ""


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -32768.0), (-1.0, 255.0)])
def test_calibration_of_imagej(tmp_path, image_zyx, slope, intercept):
    """Signed 16 bits are stored with 32768 added and a calibration that takes them away."""
    stored = ((image_zyx.astype(float) - intercept) / slope).astype(np.uint16)
    metadata = {"axes": "ZYX", "spacing": -50, "unit": "nm", "cf": 0, "c0": intercept, "c1": slope}
    path = write(tmp_path / "a.tif", stored, imagej=True, metadata=metadata, resolution=(0.2, 0.2))
    assert check(path, image_zyx.astype(np.float32), (50, 5, 5)).state()


@pytest.mark.parametrize(
    "second", [{"predictor": 2}, {"photometric": "miniswhite"}, {"compression": "lzw"}, {"tile": (16, 16)}]
)
def test_slices_that_are_stored_in_different_ways(tmp_path, image_zyx, second):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for options in ({}, second):
            common = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
            tif.write(image_zyx[0], **{**common, **options})
    refused("stored in different ways", open_volume, tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("compression", "arguments"),
    [("jpeg", {"level": 90}), ("jpeg2000", {"level": 40}), ("jpegxl", {"distance": 2}), ("lerc", {"level": 9})],
)
def test_labels_that_were_compressed_with_loss(tmp_path, compression, arguments):
    yx = np.add.outer(np.arange(64) // 16, np.arange(64) // 16)
    ids = (yx * 60 % 250).astype(np.uint8)[None]
    path = write(tmp_path / "a.tif", ids, compression=compression, compressionargs=arguments)
    for options in ({}, {"foreground": 60}):
        refused(r"compressed with loss|instead of labels", map_labels, open_volume(path), **options)
    path = write(tmp_path / "a.tif", ids, compression="jpeg2000")
    assert np.array_equal(map_labels(open_volume(path)).read(), ids > 0)
