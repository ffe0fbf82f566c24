import logging
import os
import threading

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import open_volume
from mitoseg.volumes.reading import PageCache
from mitoseg.volumes.tiff import MappedTiff
from mitoseg.volumes.tiff_pages import PagedTiff

WAYS = {
    "plain": {},
    "generic": {"metadata": None},
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "imagej_channels": {"imagej": True},  # tifffile's default takes six slices for channels
    "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
    "bigtiff": {"bigtiff": True},
    "big_endian": {"byteorder": ">"},
    "zlib": {"compression": "zlib"},
    "lzw": {"compression": "lzw"},
    "zlib_predictor": {"compression": "zlib", "predictor": True},
    "rows": {"rowsperstrip": 5},
    "zlib_rows": {"compression": "zlib", "rowsperstrip": 5},
    "tiles": {"tile": (16, 32)},
    "zlib_tiles": {"compression": "zlib", "tile": (16, 32), "bigtiff": True},
    "volumetric": {"volumetric": True, "tile": (4, 16, 16), "compression": "zlib"},
    "ome_zlib": {"ome": True, "metadata": {"axes": "ZYX"}, "compression": "zlib"},
}

CASES = [
    (way, dtype)
    for way, options in WAYS.items()
    for dtype in ("uint8", "uint16", "float32", "float64", "bool")
    if not (options.get("imagej") and dtype in ("float64", "bool"))  # there are no such files
    if not (options.get("predictor") and dtype == "bool")
]


def write(path, image, **options):
    tifffile.imwrite(path, image, photometric="minisblack", **options)
    return str(path)


@pytest.mark.parametrize(("way", "dtype"), CASES)
def test_every_kind_of_file_reads_the_same(tmp_path, image_zyx, way, dtype):
    options = dict(WAYS[way])
    image_zyx = image_zyx.astype(dtype) if dtype != "bool" else image_zyx % 3 == 0
    if options.get("predictor") and image_zyx.dtype.kind == "f":
        options["predictor"] = 3
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, **options))
    assert volume.shape == image_zyx.shape
    assert volume.dtype == image_zyx.dtype
    assert np.array_equal(volume.read(), image_zyx)
    assert volume.read().dtype.isnative
    for box in (Box((2, 3, 30), (5, 36, 50)), Box((5, 36, 49), (6, 37, 50)), Box((0, 0, 0), (6, 1, 1))):
        assert np.array_equal(volume.read(box), image_zyx[box.slices])


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


def test_slices_written_one_by_one_are_one_stack(tmp_path, image_zyx):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for image_yx in image_zyx:
            tif.write(image_yx, compression="zlib")
    volume = open_volume(str(tmp_path / "a.tif"))
    assert np.array_equal(volume.read(), image_zyx)


def test_one_page_is_one_slice(tmp_path, image_zyx):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx[2]))
    assert volume.shape == (1, 37, 50)
    assert np.array_equal(volume.read()[0], image_zyx[2])


def test_whole_stacks_are_mapped_others_are_paged(tmp_path, image_zyx):
    assert isinstance(open_volume(write(tmp_path / "a.tif", image_zyx)), MappedTiff)
    assert isinstance(open_volume(write(tmp_path / "b.tif", image_zyx, compression="zlib")), PagedTiff)


def test_opening_reads_no_voxels(tmp_path, image_zyx, monkeypatch):
    plain = write(tmp_path / "a.tif", image_zyx)
    packed = write(tmp_path / "b.tif", image_zyx, compression="zlib")

    def refuse(*_, **__):
        raise AssertionError("voxels were read")

    monkeypatch.setattr(np, "memmap", refuse)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    monkeypatch.setattr(tifffile.TiffPage, "decode", refuse)
    assert open_volume(plain).shape == open_volume(packed).shape == (6, 37, 50)
    with pytest.raises(UserError, match="voxels were read"):  # the trap works
        open_volume(plain).read()


def test_a_slab_decodes_each_page_once(tmp_path, image_zyx, monkeypatch):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    decoded = []
    decode = PagedTiff._decode
    monkeypatch.setattr(PagedTiff, "_decode", lambda *a: decoded.append(a[2:]) or decode(*a))
    for y in range(0, 37, 8):
        for x in range(0, 50, 8):
            volume.read(Box((0, y, x), (6, min(y + 8, 37), min(x + 8, 50))))
    for z in range(5):
        volume.read(Box((z, 0, 0), (z + 2, 37, 50)))
    assert sorted(decoded) == [(z, 0, 0) for z in range(6)]


def test_a_small_cache_still_reads_right(tmp_path, image_zyx):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    volume._cache = PageCache(1)
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

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_opens_the_file_for_itself(tmp_path, image_zyx, monkeypatch):
    volume = open_volume(write(tmp_path / "a.tif", image_zyx, compression="zlib"))
    volume.read(Box((0, 0, 0), (1, 37, 50)))
    handle = volume._handle()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)  # as if forked
    assert volume._handle() is not handle
    assert np.array_equal(volume.read(), image_zyx)


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


def test_pages_of_different_sizes(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for n in (20, 20, 21):
            tif.write(np.zeros((n, 30), np.uint8), metadata=None)
    with pytest.raises(UserError, match="not one stack"):
        open_volume(str(tmp_path / "a.tif"))


@pytest.mark.parametrize("way", ["plain", "imagej", "generic", "zlib", "ome_zlib", "rows", "tiles"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_is_one_line(tmp_path, way, share, caplog, capfd):
    noise = np.random.default_rng(0).integers(0, 255, (6, 100, 100), np.uint8)
    path = write(tmp_path / "a.tif", noise, **WAYS[way])
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: int(len(data) * share)])
    with caplog.at_level(logging.DEBUG):
        try:
            back = open_volume(path).read()
        except UserError as error:
            line = str(error)
        else:  # only what comes after the voxels is missing
            assert share == 0.999
            assert np.array_equal(back, noise)
            line = "a.tif"
    assert "a.tif" in line
    assert "\n" not in line
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_a_file_that_is_damaged_inside_is_one_line(tmp_path, caplog, capfd):
    image_zyx = np.random.default_rng(0).integers(0, 9, (6, 100, 100), np.uint8)
    path = write(tmp_path / "a.tif", image_zyx, compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = bytes(2000)
    (tmp_path / "a.tif").write_bytes(data)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"damaged.*|cannot be read"):
        open_volume(path).read()
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08\xff\xff", b"PK\3\4"]
)
def test_what_is_no_tiff(tmp_path, content, caplog):
    (tmp_path / "a.tif").write_bytes(content)
    with caplog.at_level(logging.DEBUG), pytest.raises(UserError, match=r"a\.tif"):
        open_volume(str(tmp_path / "a.tif"))
    assert caplog.records == []


def write_ome_set(folder, image_zyx, **options):
    """An OME image whose slices lie in two files."""
    uuid = "urn:uuid:0000000{}-0000-0000-0000-000000000000"
    planes = "".join(
        f'<TiffData IFD="{z % 3}" FirstZ="{z}" PlaneCount="1">'
        f'<UUID FileName="{z // 3}.ome.tif">{uuid.format(z // 3)}</UUID></TiffData>'
        for z in range(6)
    )
    for part in (0, 1):
        text = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid.format(part)}">'
            '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="50" SizeY="37" '
            'SizeZ="6" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
            f"{planes}</Pixels></Image></OME>"
        )
        slices = image_zyx[part * 3 : part * 3 + 3]
        write(folder / f"{part}.ome.tif", slices, description=text.encode(), metadata=None, **options)
    return str(folder / "0.ome.tif")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_an_ome_image_in_several_files(tmp_path, image_zyx, options):
    path = write_ome_set(tmp_path, image_zyx, **options)
    volume = open_volume(path)
    assert np.array_equal(volume.read(), image_zyx)
    box = Box((1, 2, 3), (5, 36, 49))
    assert np.array_equal(volume.read(box), image_zyx[box.slices])
    (tmp_path / "1.ome.tif").unlink()
    with pytest.raises(UserError, match="3 of the 6 slices that the OME-TIFF lists are not there"):
        open_volume(path)


def test_complex_voxels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((5, 6, 7), np.complex64))
    with pytest.raises(UserError, match="complex"):
        open_volume(str(tmp_path / "a.tif"))


def test_a_real_volume_reads_as_tifffile_reads_it(real_data):
    path = real_data / "epfl_ca1" / "training.tif"
    volume = open_volume(str(path))
    assert volume.shape == (165, 768, 1024)
    assert volume.dtype == np.uint8
    expected = tifffile.imread(path, key=range(40, 45))
    assert np.array_equal(volume.read(Box((40, 0, 0), (45, 768, 1024))), expected)
    box = Box((41, 250, 1000), (44, 262, 1024))  # crosses two strips
    assert np.array_equal(volume.read(box), expected[1:4, 250:262, 1000:])
