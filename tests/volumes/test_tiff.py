"""TIFF stacks: voxels of every kind of file, and what their headers say of axes, sizes, colours and grey values."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import WAYS, check, refused, write, write_ome_set, write_slices

from mitoseg.geometry import Box, slabs, tiles
from mitoseg.volumes import map_labels, open_volume
from mitoseg.volumes.stored import PageCache
from mitoseg.volumes.tiff import Stack

DTYPES = ("uint8", "uint16", "float32", "float64", "bool")


@pytest.mark.parametrize("way", WAYS)
def test_every_kind_of_file_reads_the_same(tmp_path, image_zyx, way):
    for dtype in DTYPES:
        options = dict(WAYS[way])
        if (options.get("imagej") and dtype in ("float64", "bool")) or (options.get("predictor") and dtype == "bool"):
            continue  # there are no such files
        stored_zyx = image_zyx.astype(dtype) if dtype != "bool" else image_zyx % 3 == 0
        if options.get("predictor") and stored_zyx.dtype.kind == "f":
            options["predictor"] = 3
        volume = check(write(tmp_path / "a.tif", stored_zyx, **options), stored_zyx)
        assert volume.dtype.isnative
        for box in (Box((2, 3, 30), (5, 36, 50)), Box((5, 36, 49), (6, 37, 50)), Box((0, 0, 0), (6, 1, 1))):
            assert np.array_equal(volume.read(box), stored_zyx[box.slices])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_box_of_strips_and_tiles(tmp_path_factory, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=3, max_size=3)))
    image_zyx = np.random.default_rng(0).integers(0, 1000, shape).astype(np.uint16)
    layout = data.draw(
        st.sampled_from([{"tile": (16, 16)}, {"tile": (32, 16)}, {"rowsperstrip": 1}, {"rowsperstrip": 7}, {}])
    )
    path = tmp_path_factory.mktemp("any") / "a.tif"
    with tifffile.TiffWriter(path) as tif:
        for image_yx in image_zyx:
            tif.write(image_yx, metadata=None, compression="zlib", photometric="minisblack", **layout)
    axes = "zyx" if {shape[0], shape[-1]} & {3, 4} else None
    volume = open_volume(str(path), axes=axes)
    bounds = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    assert np.array_equal(volume.read(box), image_zyx[box.slices])


def test_a_slab_decodes_each_page_once(tmp_path, image_zyx, monkeypatch):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    decoded, read = [], Stack.read_segment
    monkeypatch.setattr(Stack, "read_segment", lambda *a: decoded.append(a[1:]) or read(*a))
    for box in (*tiles(volume.box, (6, 8, 8)), *(Box((z, 0, 0), (z + 2, 37, 50)) for z in range(5))):
        assert np.array_equal(volume.read(box), image_zyx[box.slices])
    assert sorted(decoded) == [(z, 0) for z in range(6)]
    volume._cache = PageCache(1)  # a small one still reads right
    assert all(np.array_equal(volume.read(box), image_zyx[box.slices]) for box in slabs(volume.box, 4))


def test_threads_share_a_volume(tmp_path, image_zyx):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib", rowsperstrip=2))
    volume._cache = PageCache(4000)
    wrong = []

    def run(seed):
        for z in np.random.default_rng(seed).integers(0, 6, 20):
            box = Box((int(z), 0, 0), (int(z) + 1, 37, 50))
            if not np.array_equal(volume.read(box), image_zyx[box.slices]):
                wrong.append(box)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(4)))
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_opens_the_file_for_itself(tmp_path, image_zyx, monkeypatch):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    volume.read(Box((0, 0, 0), (1, 37, 50)))
    handle, pid = volume._handle(), os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)  # as if forked
    assert volume._handle() is not handle
    assert np.array_equal(volume.read(), image_zyx)


def test_a_real_volume_reads_as_tifffile_reads_it(real_data):
    path = real_data / "epfl_ca1" / "training.tif"
    volume = open_volume(str(path))
    assert (volume.shape, volume.dtype) == ((165, 768, 1024), np.uint8)
    expected = tifffile.imread(path, key=range(40, 45))
    assert np.array_equal(volume.read(Box((40, 0, 0), (45, 768, 1024))), expected)
    box = Box((41, 250, 1000), (44, 262, 1024))  # crosses two strips
    assert np.array_equal(volume.read(box), expected[1:4, 250:262, 1000:])


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_an_ome_image_in_several_files(tmp_path, image_zyx, options):
    path = write_ome_set(tmp_path, image_zyx, **options)
    check(path, image_zyx)
    (tmp_path / "1.ome.tif").unlink()
    refused("3 of the 6 slices that the OME-TIFF lists are not there", open_volume, path)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_voxel_size_of_imagej_and_ome(tmp_path, image_zyx, compression):
    for unit, spacing, pixels in (("um", 0.05, 200), ("\\u00B5m", 0.05, 200), ("nm", 50, 0.2)):
        options = {"metadata": {"axes": "ZYX", "spacing": spacing, "unit": unit}, "resolution": (pixels, pixels / 2)}
        path = write(tmp_path / "a.tif", image_zyx, imagej=True, compression=compression, **options)
        assert open_volume(path).voxel_size == (50, 10, 5)
        assert open_volume(path, voxel_size=[45, 4.6, 4.6]).voxel_size == (45, 4.6, 4.6)
    for unit, factor in ((None, 1000), ("nm", 1), ("µm", 1000)):  # micrometres are OME's default
        sizes = {f"PhysicalSize{a}": n / factor for a, n in (("Z", 50), ("Y", 4.6), ("X", 4.5))}
        units = {f"{name}Unit": unit for name in sizes} if unit else {}
        metadata = {"axes": "ZYX", **sizes, **units}
        path = write(tmp_path / "a.ome.tif", image_zyx, ome=True, compression=compression, metadata=metadata)
        assert open_volume(path).voxel_size == (50, 4.6, 4.5)
    for options in HALF_KNOWN:
        path = write(tmp_path / "a.tif", image_zyx, compression=compression, **options)
        assert open_volume(path).voxel_size is None


def imagej(resolution=200, **metadata):
    return {"imagej": True, "metadata": {"axes": "ZYX", **metadata}, "resolution": (resolution, resolution)}


HALF_KNOWN = [
    *(imagej(unit="um"), imagej(spacing=1), imagej(1, spacing=1, unit="pixel"), imagej(72, spacing=1, unit="inch")),
    *({"resolution": (n, n), "resolutionunit": unit} for n, unit in ((72, "inch"), (300, "centimeter"))),
    {"ome": True, "metadata": {"axes": "ZYX", "PhysicalSizeX": 0.005, "PhysicalSizeY": 0.005}},
]


def test_ambiguous_axes_ask(tmp_path):
    for shape in ((3, 20, 30), (4, 20, 30), (20, 30, 3), (20, 30, 4), (5, 6, 20, 30)):
        image = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16)
        path = write(tmp_path / "a.tif", image)
        refused(r"axes.*ambiguous.*axes=zyx", open_volume, path)
        if len(shape) == 4:
            refused(r"axis c of shape .* holds 5 images", open_volume, path, axes="czyx")
            continue
        assert np.array_equal(open_volume(path, axes="zyx").read(), image)
        assert np.array_equal(open_volume(path, axes="xyz").read(), image.transpose())
        for options in ({"imagej": True}, {"ome": True}, {}):  # these state them
            path = write(tmp_path / "b.tif", image, metadata={"axes": "ZYX"}, **options)
            assert np.array_equal(open_volume(path).read(), image)


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
def test_colour_is_reduced_to_grey(tmp_path, planes):
    image_zyxc = np.random.default_rng(0).integers(0, 255, (5, 20, 30, planes), np.uint8)
    extra = {"extrasamples": ["unassalpha"]} if planes == 4 else {}
    for options in COLOUR:
        planar = "planarconfig" in options
        stored = np.ascontiguousarray(np.moveaxis(image_zyxc, -1, 1)) if planar else image_zyxc
        write(tmp_path / "a.tif", stored, photometric="rgb", **options, **extra)
        for axes in (None, "zcyx" if planar else "zyxc"):
            check(str(tmp_path / "a.tif"), image_zyxc[..., :3].max(-1), axes=axes)


def test_alpha_is_left_out(tmp_path, image_zyx):
    stored = np.stack([image_zyx, 255 - image_zyx], -1)
    options = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    for name, shown in (("a.tif", stored), ("b.tif", stored[0])):
        check(write(tmp_path / name, shown, **options), stored[: len(shown) if shown.ndim == 4 else 1, ..., 0])
    check(write_slices(tmp_path / "slices", stored, "{}.tif", photometric="minisblack", **options), image_zyx)
    check(write_slices(tmp_path / "one", stored[:1], "{}.tif", photometric="minisblack", **options), image_zyx[:1])


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "uint32"])
def test_white_is_zero_is_turned_round(tmp_path, image_zyx, dtype):
    image = image_zyx > 90 if dtype == "bool" else image_zyx.astype(dtype) * (1 << 8 * (np.dtype(dtype).itemsize - 1))
    for options in ({}, {"compression": "zlib"}, {"metadata": {"axes": "ZYX"}, "tile": (16, 16)}):
        options = {"photometric": "miniswhite", **({} if dtype == "bool" else options)}
        assert np.array_equal(open_volume(write(tmp_path / "a.tif", ~image, **options)).read(), image)
        assert np.array_equal(
            open_volume(write_slices(tmp_path / "slices", ~image, "{}.tif", **options)).read(), image
        )


def test_tables_of_colours(tmp_path, image_zyx, caplog):
    def palette(image, *colours):
        table = np.array(colours, np.uint16)
        return open_volume(write(tmp_path / "a.tif", image, photometric="palette", colormap=table))

    ramp = np.arange(256) * 257
    labels = image_zyx // 40
    assert np.array_equal(palette(image_zyx, ramp, ramp, ramp).read(), image_zyx)
    few = np.where(np.arange(256) < 5, ramp, 0)  # entries that nothing uses
    assert np.array_equal(palette(labels, few, few, few).read(), labels)
    assert caplog.text == ""
    assert np.array_equal(palette(labels, ramp, ramp[::-1], ramp).read(), labels)
    assert "has indexed colours" in caplog.text
    for table in (ramp[::-1], ramp // 2):
        refused("maps its values to other greys", palette, image_zyx, table, table, table)


CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
NOT_READ = [
    *((dtype, 0, {"photometric": "miniswhite"}, "smallest value is white") for dtype in ("float32", "int16")),
    ("uint8", 4, {"photometric": "separated"}, r"holds 4 values \(SEPARATED\)"),
    ("uint8", 3, {"photometric": "cielab"}, "holds 3 values"),
    *(("uint8", samples, CONTIGUOUS, f"holds {samples} values") for samples in (2, 3)),
]


def test_pixels_that_are_not_read(tmp_path, image_zyx):
    for dtype, samples, options, says in NOT_READ:
        stored = image_zyx.astype(dtype)
        stored = np.stack([stored] * samples, -1) if samples else stored
        refused(says, open_volume, write(tmp_path / "a.tif", stored, **options))
        refused(says, open_volume, write_slices(tmp_path / "slices", stored[:1], "{}.tif", **options))
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for n in (20, 20, 21):
            tif.write(np.zeros((n, 30), np.uint8), metadata=None)
    refused("not one stack", open_volume, str(tmp_path / "a.tif"))
    common = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    for second in ({"predictor": 2}, {"photometric": "miniswhite"}, {"compression": "lzw"}, {"tile": (16, 16)}):
        with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
            for options in ({}, second):
                tif.write(image_zyx[0], **{**common, **options})
        refused("stored in different ways", open_volume, tmp_path / "a.tif")


def test_images_larger_than_tiff_have_one_page(tmp_path, image_zyx):
    """How ImageJ writes stacks of more than 4 GB: one page, and the voxels of all behind it."""
    path = write(tmp_path / "a.tif", image_zyx, imagej=True, metadata={"axes": "ZYX", "truncate": True})
    assert np.array_equal(open_volume(path).read(), image_zyx)


TOLD = [
    ({"extratags": [(274, 3, 1, 4, True)]}, "orientation 4"),
    ({"imagej": True, "metadata": {"axes": "ZYX", "cf": 21, "vunit": "OD"}}, "calibration of the TIFF is not linear"),
    ({"photometric": "miniswhite", "imagej": True, "metadata": {"axes": "ZYX"}}, "ImageJ shows the TIFF inverted"),
    ({"ome": True, "metadata": {"axes": "YX"}}, "6 images of one plane"),
]


def test_what_may_be_meant_otherwise_is_told(tmp_path, image_zyx, caplog):
    for options, says in TOLD:
        kind = {key: options.pop(key) for key in ("ome", "imagej") if key in options}
        with tifffile.TiffWriter(tmp_path / "a.tif", **kind) as tif:
            for image in image_zyx if "ome" in kind else [image_zyx]:
                tif.write(image, **{"photometric": "minisblack", **options})
        assert np.array_equal(open_volume(tmp_path / "a.tif").read(), image_zyx)
        assert says in caplog.text


FLAT = [
    {"imagej": True, "metadata": {"axes": "YX", "unit": unit}, "resolution": (n, 1.25 * n)}
    for unit, n in (("um", 200), ("\\u00C5", 0.02), ("angstroms", 0.02))
]
FLAT += [{"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.005, "PhysicalSizeY": 0.004}}]


def test_a_flat_image_is_as_thick_as_a_pixel_is_wide(tmp_path, image_zyx, caplog):
    for options in FLAT:
        caplog.clear()
        path = write(tmp_path / "a.tif", image_zyx[0], **options)
        assert open_volume(path).voxel_size == (5, 4, 5)
        assert "one slice of unknown thickness" in caplog.text
        caplog.clear()
        assert open_volume(path, voxel_size=[40, 4, 4]).voxel_size == (40, 4, 4)
        assert caplog.text == ""


def test_calibration_of_imagej(tmp_path, image_zyx):
    """Signed 16 bits are stored with 32768 added and a calibration that takes them away."""
    for slope, intercept in ((1.0, -32768.0), (-1.0, 255.0)):
        stored = ((image_zyx.astype(float) - intercept) / slope).astype(np.uint16)
        metadata = {"axes": "ZYX", "spacing": -50, "unit": "nm", "cf": 0, "c0": intercept, "c1": slope}
        path = write(tmp_path / "a.tif", stored, imagej=True, metadata=metadata, resolution=(0.2, 0.2))
        assert check(path, image_zyx.astype(np.float32), (50, 5, 5)).state()


def test_labels_that_were_compressed_with_loss(tmp_path):
    yx = np.add.outer(np.arange(64) // 16, np.arange(64) // 16)
    ids = (yx * 60 % 250).astype(np.uint8)[None]
    lossy = {"jpeg": {"level": 90}, "jpeg2000": {"level": 40}, "jpegxl": {"distance": 2}, "lerc": {"level": 9}}
    for compression, arguments in lossy.items():
        path = write(tmp_path / "a.tif", ids, compression=compression, compressionargs=arguments)
        for options in ({}, {"foreground": 60}):
            refused(r"compressed with loss|instead of labels", map_labels, open_volume(path), **options)
    path = write(tmp_path / "a.tif", ids, compression="jpeg2000")
    assert np.array_equal(map_labels(open_volume(path)).read(), ids > 0)
