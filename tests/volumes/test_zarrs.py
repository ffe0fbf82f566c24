import json
import logging
import os

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import open_volume

BOX = Box((1, 7, 20), (5, 33, 50))
NAMES = {"z": "space", "y": "space", "x": "space", "c": "channel", "t": "time"}


def write_array(path, image, version=3, **options):
    array = zarr.create_array(store=path, shape=image.shape, dtype=image.dtype, zarr_format=version, **options)
    array[...] = image
    return str(path)


def write_ome(path, image_zyx, version, axes="zyx", scales=((50, 4.6, 4.5),), unit="nanometer"):
    """An OME-Zarr image of two levels; version 0.4 is Zarr format 2, version 0.5 format 3."""
    group = zarr.create_group(store=path, zarr_format=2 if version == "0.4" else 3)
    shape = tuple(image_zyx.shape["zyx".index(a)] if a in "zyx" else 1 for a in axes)
    for level, step in (("s0", 1), ("s1", 2)):
        stored = image_zyx.reshape(shape)[tuple(slice(None, None, step) if a in "zyx" else slice(None) for a in axes)]
        group.create_array(level, shape=stored.shape, dtype=stored.dtype)[...] = stored
    every = [[dict(zip("zyx", size, strict=True)).get(a, 1.0) for a in axes] for size in scales]
    transforms = [{"type": "scale", "scale": scale} for scale in every]
    image = {
        "version": version,
        "axes": [{"name": a, "type": NAMES[a], **({"unit": unit} if a in "zyx" and unit else {})} for a in axes],
        "datasets": [
            {"path": "s0", "coordinateTransformations": transforms[:1]},
            {"path": "s1", "coordinateTransformations": [{"type": "scale", "scale": [2.0] * len(axes)}]},
        ],
        **({"coordinateTransformations": transforms[1:]} if transforms[1:] else {}),
    }
    group.attrs.update(
        {"multiscales": [image]} if version == "0.4" else {"ome": {"version": version, "multiscales": [image]}}
    )
    return str(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "bool", "uint64"])
def test_arrays_of_both_formats(tmp_path, image_zyx, version, dtype):
    volume = open_volume(write_array(tmp_path / "a.zarr", image_zyx.astype(dtype), version, chunks=(4, 16, 16)))
    assert volume.dtype == dtype
    assert np.array_equal(volume.read(), image_zyx.astype(dtype))
    assert np.array_equal(volume.read(BOX), image_zyx.astype(dtype)[BOX.slices])


@pytest.mark.parametrize("version", [2, 3])
def test_a_group_with_one_array(tmp_path, image_zyx, version):
    group = zarr.create_group(store=tmp_path / "a.zarr", zarr_format=version)
    group.create_array("raw", shape=image_zyx.shape, dtype="uint8")[...] = image_zyx
    for path in ("a.zarr", "a.zarr/raw", "a.zarr:/raw", "a.zarr:raw"):
        assert np.array_equal(open_volume(f"{tmp_path}/{path}").read(BOX), image_zyx[BOX.slices])
    group.create_array("more", shape=(5, 6, 7), dtype="uint8")
    with pytest.raises(UserError, match=r"holds 2 arrays.*name one: .*a\.zarr/more, .*a\.zarr/raw"):
        open_volume(f"{tmp_path}/a.zarr")
    assert open_volume(f"{tmp_path}/a.zarr/more").shape == (5, 6, 7)


def test_arrays_deeper_in_a_group(tmp_path, image_zyx):
    group = zarr.create_group(store=tmp_path / "a.zarr")
    group.create_array("deep/er/raw", shape=image_zyx.shape, dtype="uint8")[...] = image_zyx
    assert np.array_equal(open_volume(f"{tmp_path}/a.zarr:/deep/er/raw").read(), image_zyx)
    assert np.array_equal(open_volume(f"{tmp_path}/a.zarr/deep/er").read(), image_zyx)
    with pytest.raises(UserError, match=r"holds 0 arrays.*name one: .*a\.zarr/deep"):
        open_volume(f"{tmp_path}/a.zarr")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
@pytest.mark.parametrize(("unit", "factor"), [("nanometer", 1), ("micrometer", 1000)])
def test_the_finest_level_of_an_ome_image(tmp_path, image_zyx, version, axes, unit, factor):
    scales = [(50 / factor, 4.6 / factor, 4.5 / factor)]
    volume = open_volume(write_ome(tmp_path / "a.ome.zarr", image_zyx, version, axes, scales, unit))
    assert volume.shape == image_zyx.shape
    assert volume.voxel_size == (50, 4.6, 4.5)
    assert np.array_equal(volume.read(BOX), image_zyx[BOX.slices])


def test_scales_of_the_image_and_the_level_multiply(tmp_path, image_zyx):
    path = write_ome(tmp_path / "a.zarr", image_zyx, "0.5", scales=[(10, 2, 2), (5, 2, 2)])
    assert open_volume(path).voxel_size == (50, 4, 4)


def test_an_ome_image_without_units_has_no_voxel_size(tmp_path, image_zyx):
    open_volume(write_ome(tmp_path / "b.zarr", image_zyx, "0.5", unit=None)).check_scale()  # which may count voxels
    assert open_volume(write_ome(tmp_path / "a.zarr", image_zyx, "0.4", unit=None)).voxel_size is None


def test_an_ome_image_with_few_slices_states_its_axes(tmp_path, image_zyx):
    path = write_ome(tmp_path / "a.zarr", image_zyx[:3], "0.4")
    assert np.array_equal(open_volume(path).read(), image_zyx[:3])


def test_channels_ask(tmp_path, image_zyx):
    few = np.stack([image_zyx] * 2)
    path = write_array(tmp_path / "a.zarr", few)
    with pytest.raises(UserError, match="ambiguous"):
        open_volume(path)
    with pytest.raises(UserError, match=r"axis c of shape .* holds 2 images"):
        open_volume(path, axes="czyx")
    with pytest.raises(UserError, match="ambiguous"):
        open_volume(write_array(tmp_path / "b.zarr", image_zyx[:4]))


def test_names_of_dimensions_are_taken(tmp_path, image_zyx):
    turned = image_zyx.transpose().copy()
    for names in (("x", "y", "z"), ("width", "height", "depth")):
        path = write_array(tmp_path / f"{names[0]}.zarr", turned, dimension_names=names)
        assert np.array_equal(open_volume(path).read(), image_zyx)
    for n, attributes in enumerate(
        ({"axes": [{"name": "x"}, {"name": "y"}, {"name": "z"}]}, {"transform": {"axes": ["x", "y", "z"]}})
    ):
        path = write_array(tmp_path / f"{n}.zarr", turned)
        zarr.open(path).attrs.update(attributes)
        assert np.array_equal(open_volume(path).read(), image_zyx)


@pytest.mark.parametrize(
    ("attributes", "nm"),
    [
        ({"voxel_size_nm": [50, 4.6, 4.6]}, (50, 4.6, 4.6)),
        ({"element_size_um": [0.05, 0.0046, 0.0046]}, (50, 4.6, 4.6)),
        ({"voxel_size_nm": "5"}, None),
        ({}, None),
    ],
)
def test_voxel_size(tmp_path, image_zyx, attributes, nm):
    assert open_volume(write_array(tmp_path / "a.zarr", image_zyx, attributes=attributes)).voxel_size == nm


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize(
    ("attributes", "nm"),
    [
        (
            {"voxel_size": [50, 4, 5], "offset": [0, 0, 8], "axis_names": ["z", "y", "x"], "units": ["nm"] * 3},
            (50, 4, 5),
        ),
        ({"resolution": [50, 4, 5]}, (50, 4, 5)),
        ({"pixelResolution": {"dimensions": [5, 4, 50], "unit": "nm"}}, (50, 4, 5)),
        ({"transform": {"axes": ["z", "y", "x"], "scale": [50, 4, 5], "units": ["nm"] * 3}}, (50, 4, 5)),
        ({"resolution": [50, 4, 5], "voxel_size": [40, 4, 5]}, None),
    ],
)
def test_voxel_sizes_of_other_programs(tmp_path, image_zyx, version, attributes, nm):
    array = zarr.create_array(tmp_path / "a.zarr", data=image_zyx, zarr_format=version)
    array.attrs.update(attributes)
    if nm is None:
        with pytest.raises(UserError, match="contradict one another"):
            open_volume(f"{tmp_path}/a.zarr")
    else:
        assert open_volume(f"{tmp_path}/a.zarr").voxel_size == nm


def test_what_webknossos_writes(tmp_path, image_zyx):
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "nanometer"} for a in "xyz")]
    move = {"type": "translation", "translation": [0, 128, 0, 0]}
    levels = [{"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [1, 4, 5, 50]}, move]}]
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("1", data=np.ascontiguousarray(image_zyx.transpose()[None]), chunks=(1, 32, 32, 32))
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert volume.voxel_size == (50, 5, 4)
    assert np.array_equal(volume.read(), image_zyx)


def test_a_flat_image_is_as_thick_as_a_pixel_is_wide(tmp_path, image_zyx, caplog):
    axes = [{"name": a, "type": "space", "unit": "angstrom"} for a in "yx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [50, 40]}]}]
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("0", data=image_zyx[0])
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    assert open_volume(f"{tmp_path}/a.zarr").voxel_size == (4, 5, 4)
    assert "one slice of unknown thickness" in caplog.text


def test_channels_that_funlib_marks(tmp_path, image_zyx):
    array = zarr.create_array(tmp_path / "a.zarr", data=image_zyx[None])
    array.attrs.update({"voxel_size": [50, 4, 5], "axis_names": ["c^", "z", "y", "x"]})
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert volume.voxel_size == (50, 4, 5)
    assert np.array_equal(volume.read(), image_zyx)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("codec", ["blosc", "zstd", "gzip"])
def test_a_chunk_that_unpacks_to_far_too_much(tmp_path, image_zyx, version, codec):
    """Shape and chunks stay as they are; only the file of one chunk is another one."""
    make = {"blosc": numcodecs.Blosc(), "zstd": numcodecs.Zstd(), "gzip": numcodecs.GZip()}[codec]
    codecs = make if version == 2 else {"blosc": BloscCodec(), "zstd": ZstdCodec(), "gzip": GzipCodec()}[codec]
    options = {"chunks": (3, 37, 50), "compressors": codecs, "zarr_format": version}
    zarr.create_array(tmp_path / "a.zarr", data=image_zyx + 1, **options)
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert np.array_equal(volume.read(), image_zyx + 1)
    chunk = tmp_path / "a.zarr" / ("0.0.0" if version == 2 else "c/0/0/0")
    chunk.write_bytes(make.encode(np.zeros(2**24, np.uint8)))
    with pytest.raises(UserError, match="would unpack to 16 MiB"):
        volume.read()


@pytest.mark.parametrize("make", [numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZMA()])
def test_a_chunk_that_does_not_say_what_it_unpacks_to(tmp_path, image_zyx, make):
    zarr.create_array(tmp_path / "a.zarr", data=image_zyx + 1, chunks=(3, 37, 50), compressors=make, zarr_format=2)
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert np.array_equal(volume.read(), image_zyx + 1)
    (tmp_path / "a.zarr" / "0.0.0").write_bytes(make.encode(np.zeros(2**24, np.uint8)))
    with pytest.raises(UserError, match="would unpack to 1 MiB, more than belongs in it"):
        volume.read()


@pytest.mark.parametrize("index", ["start", "end"])
@pytest.mark.parametrize("box", [None, BOX])
def test_a_chunk_in_a_shard_that_unpacks_to_far_too_much(tmp_path, index, box):
    noise = np.random.default_rng(0).integers(1, 250, (6, 40, 60), np.uint8)
    shards = {"shape": (6, 40, 60), "index_location": index}
    options = {"chunks": (3, 20, 30), "shards": shards, "compressors": GzipCodec()}
    zarr.create_array(tmp_path / "a.zarr", data=noise, **options)
    volume = open_volume(f"{tmp_path}/a.zarr")
    box = Box.of_shape(noise.shape) if box is None else box
    assert np.array_equal(volume.read(box), noise[box.slices])
    file = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    for place in [
        n for n in range(len(data) - 4) if data[n : n + 4] == b"\x08\x07\x00\x00"
    ]:  # the length at a gzip's end
        data[place : place + 4] = (2**30).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(UserError, match="would unpack to 1024 MiB"):
        volume.read(box)


@pytest.mark.parametrize("version", [2, 3])
def test_a_codec_that_is_not_known_is_named(tmp_path, image_zyx, version):
    zarr.create_array(tmp_path / "a.zarr", data=image_zyx, zarr_format=version)
    file = tmp_path / "a.zarr" / (".zarray" if version == 2 else "zarr.json")
    metadata = json.loads(file.read_text())
    codecs = [*metadata.get("codecs", ())[:-1], {"name": "zfp_new"}]
    codec = {"compressor": {"id": "zfp_new"}} if version == 2 else {"codecs": codecs}
    file.write_text(json.dumps(metadata | codec))
    with pytest.raises(UserError, match=r"in a way that is not read.*zfp_new.*write the volume again") as caught:
        open_volume(f"{tmp_path}/a.zarr").read()
    assert "damaged" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_chunk_that_is_a_pipe(tmp_path, image_zyx):
    zarr.create_array(tmp_path / "a.zarr", data=image_zyx + 1, chunks=(3, 37, 50))
    (tmp_path / "a.zarr" / "c/0/0/0").unlink()
    os.mkfifo(tmp_path / "a.zarr" / "c/0/0/0")
    with pytest.raises(UserError, match="a pipe, a socket or a device"):
        open_volume(f"{tmp_path}/a.zarr").read()


def test_large_chunks_count_as_memory(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(1024, 1024, 1024), chunks=(512, 1024, 1024), dtype="uint8")
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert volume.scratch_bytes(volume.box) == 2**30
    zarr.create_array(tmp_path / "b.zarr", shape=(1024, 1024, 1024), chunks=(64, 64, 64), dtype="uint8")
    assert open_volume(f"{tmp_path}/b.zarr").scratch_bytes(volume.box) == 0


def test_what_is_no_zarr(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(UserError, match="no Zarr array or group"):
        open_volume(f"{tmp_path}/a.zarr")
    with pytest.raises(UserError, match="no such file or folder"):
        open_volume(f"{tmp_path}/b.zarr")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_metadata_are_one_line(tmp_path, image_zyx, text, caplog):
    path = write_array(tmp_path / "a.zarr", image_zyx)
    (tmp_path / "a.zarr" / "zarr.json").write_text(text)
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match=r"a\.zarr") as caught:
        open_volume(path)
    assert "\n" not in str(caught.value)
    assert caplog.records == []


@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_chunk_is_one_line(tmp_path, image_zyx, version):
    path = write_array(tmp_path / "a.zarr", image_zyx, version, chunks=(6, 37, 50))
    chunk = next(
        p for p in (tmp_path / "a.zarr").rglob("*") if p.is_file() and p.name[0] != "." and p.suffix != ".json"
    )
    chunk.write_bytes(chunk.read_bytes()[:50])
    volume = open_volume(path)
    with pytest.raises(UserError, match="cannot be read"):
        volume.read()


def test_metadata_that_is_not_ours(tmp_path, image_zyx):
    path = write_array(tmp_path / "a.zarr", image_zyx, attributes={"mitoseg": "a string"})
    assert open_volume(path).info.metadata == {}
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"] == {"mitoseg": "a string"}


@pytest.mark.parametrize("index", ["start", "end"])
def test_an_image_in_shards(tmp_path, image_zyx, index):
    """Few files, each with many chunks, as others write a terabyte."""
    path = write_ome(tmp_path / "a.zarr", image_zyx, "0.5")
    group = zarr.open_group(path, mode="r+")
    group.create_array(
        "s0",
        shape=image_zyx.shape,
        chunks=(2, 8, 8),
        shards={"shape": (4, 24, 32), "index_location": index},
        dtype="u1",
        compressors=zarr.codecs.ZstdCodec(),
        overwrite=True,
    )[...] = image_zyx
    assert len([p for p in (tmp_path / "a.zarr" / "s0" / "c").rglob("*") if p.is_file()]) == 2 * 2 * 2
    for name in (path, f"{path}/s0"):
        volume = open_volume(name)
        volume.check_complete()
        assert volume.voxel_size == (50, 4.6, 4.5)
        assert np.array_equal(volume.read(BOX), image_zyx[BOX.slices])
        assert np.array_equal(volume.read(), image_zyx)
