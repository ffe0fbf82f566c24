"""Zarr arrays and images, and chunks that are not there."""

import itertools
import json
import logging
import os

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from made_files import check, refused, save
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, map_labels, open_volume
from mitoseg.volumes.base import CroppedVolume, encoded_volume, integer_volume, mask_volume
from mitoseg.volumes.normalize import MatchedVolume
from mitoseg.volumes.padding import PaddedVolume, blanked
from mitoseg.volumes.resampling import resampled

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
    about = {"multiscales": [image]}
    group.attrs.update(about if version == "0.4" else {"ome": {"version": version, **about}})
    return str(path)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "bool", "uint64"])
def test_arrays_of_both_formats(tmp_path, image_zyx, version, dtype):
    path = write_array(tmp_path / "a.zarr", image_zyx.astype(dtype), version, chunks=(4, 16, 16))
    check(path, image_zyx.astype(dtype))


@pytest.mark.parametrize("version", [2, 3])
def test_a_group_with_one_array(tmp_path, image_zyx, version):
    group = zarr.create_group(store=tmp_path / "a.zarr", zarr_format=version)
    group.create_array("raw", shape=image_zyx.shape, dtype="uint8")[...] = image_zyx
    for path in ("a.zarr", "a.zarr/raw", "a.zarr:/raw", "a.zarr:raw"):
        check(f"{tmp_path}/{path}", image_zyx)
    group.create_array("more", shape=(5, 6, 7), dtype="uint8")
    refused(r"holds 2 arrays.*name one: .*a\.zarr/more, .*a\.zarr/raw", open_volume, f"{tmp_path}/a.zarr")
    assert open_volume(f"{tmp_path}/a.zarr/more").shape == (5, 6, 7)
    deep = zarr.create_group(store=tmp_path / "b.zarr", zarr_format=version)
    deep.create_array("deep/er/raw", shape=image_zyx.shape, dtype="uint8")[...] = image_zyx
    for path in ("b.zarr:/deep/er/raw", "b.zarr/deep/er"):
        assert np.array_equal(open_volume(f"{tmp_path}/{path}").read(), image_zyx)
    refused(r"holds 0 arrays.*name one: .*b\.zarr/deep", open_volume, f"{tmp_path}/b.zarr")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("axes", ["zyx", "czyx", "tczyx"])
@pytest.mark.parametrize(("unit", "factor"), [("nanometer", 1), ("micrometer", 1000)])
def test_the_finest_level_of_an_ome_image(tmp_path, image_zyx, version, axes, unit, factor):
    scales = [(50 / factor, 4.6 / factor, 4.5 / factor)]
    check(write_ome(tmp_path / "a.ome.zarr", image_zyx, version, axes, scales, unit), image_zyx, (50, 4.6, 4.5))
    path = write_ome(tmp_path / "b.zarr", image_zyx[:3], version, scales=[(10, 2, 2), (5, 2, 2)])
    assert open_volume(path).voxel_size == (50, 4, 4)  # that of the level times that of the image
    assert open_volume(path).shape == (3, 37, 50)  # no colours, as the image says
    counted = open_volume(write_ome(tmp_path / "c.zarr", image_zyx, version, unit=None))
    assert counted.voxel_size is None
    counted.check_scale()  # which may count voxels


def test_what_is_no_zarr_and_channels_ask(tmp_path, image_zyx):
    (tmp_path / "empty.zarr").mkdir()
    refused("not a Zarr array or group", open_volume, f"{tmp_path}/empty.zarr")
    refused("no such file or folder", open_volume, f"{tmp_path}/none.zarr")
    few = np.stack([image_zyx] * 2)
    path = write_array(tmp_path / "a.zarr", few)
    refused("ambiguous", open_volume, path)
    refused(r"axis c of shape .* holds 2 images", open_volume, path, axes="czyx")
    refused("ambiguous", open_volume, write_array(tmp_path / "b.zarr", image_zyx[:4]))


def test_names_of_dimensions_are_taken(tmp_path, image_zyx):
    turned = image_zyx.transpose().copy()
    for names in (("x", "y", "z"), ("width", "height", "depth")):
        path = write_array(tmp_path / f"{names[0]}.zarr", turned, dimension_names=names)
        check(path, image_zyx)
    for n, attributes in enumerate(
        ({"axes": [{"name": "x"}, {"name": "y"}, {"name": "z"}]}, {"transform": {"axes": ["x", "y", "z"]}})
    ):
        path = write_array(tmp_path / f"{n}.zarr", turned)
        zarr.open(path).attrs.update(attributes)
        check(path, image_zyx)
    path = write_array(tmp_path / "funlib.zarr", image_zyx[None])
    zarr.open(path).attrs.update({"voxel_size": [50, 4, 5], "axis_names": ["c^", "z", "y", "x"]})
    check(path, image_zyx, (50, 4, 5))


def test_what_webknossos_writes(tmp_path, image_zyx):
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "nanometer"} for a in "xyz")]
    move = {"type": "translation", "translation": [0, 128, 0, 0]}
    levels = [{"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [1, 4, 5, 50]}, move]}]
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("1", data=np.ascontiguousarray(image_zyx.transpose()[None]), chunks=(1, 32, 32, 32))
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    check(f"{tmp_path}/a.zarr", image_zyx, (50, 5, 4))


def test_a_flat_image_is_as_thick_as_a_pixel_is_wide(tmp_path, image_zyx, caplog):
    axes = [{"name": a, "type": "space", "unit": "angstrom"} for a in "yx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [50, 40]}]}]
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.create_array("0", data=image_zyx[0])
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    assert open_volume(f"{tmp_path}/a.zarr").voxel_size == (4, 5, 4)
    assert "one slice of unknown thickness" in caplog.text


CHECKED = [(numcodecs.Blosc(), BloscCodec()), (numcodecs.Zstd(), ZstdCodec()), (numcodecs.GZip(), GzipCodec())]
CODECS = [
    *((make, codec, 16) for make, codec in CHECKED),
    *((make, make, 16) for make, _ in CHECKED),
    *((make, make, 1) for make in (numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZMA())),  # they do not say how much
]


@pytest.mark.parametrize(("make", "codec", "told"), CODECS)
def test_a_chunk_that_unpacks_to_far_too_much(tmp_path, image_zyx, make, codec, told):
    """Shape and chunks stay as they are; only the file of one chunk is another one."""
    version = 2 if codec is make else 3
    options = {"chunks": (3, 37, 50), "compressors": codec, "zarr_format": version}
    zarr.create_array(tmp_path / "a.zarr", data=image_zyx + 1, **options)
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert np.array_equal(volume.read(), image_zyx + 1)
    chunk = tmp_path / "a.zarr" / ("0.0.0" if version == 2 else "c/0/0/0")
    chunk.write_bytes(make.encode(np.zeros(2**24, np.uint8)))
    refused(f"would unpack to {told} MiB, more than belongs in it", volume.read)


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
    refused("would unpack to 1024 MiB", volume.read, box)


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
    refused("a pipe, a socket or a device", lambda: open_volume(f"{tmp_path}/a.zarr").read())


def test_large_chunks_count_as_memory(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(1024, 1024, 1024), chunks=(512, 1024, 1024), dtype="uint8")
    volume = open_volume(f"{tmp_path}/a.zarr")
    assert volume.scratch_bytes(volume.box) == 2**30
    zarr.create_array(tmp_path / "b.zarr", shape=(1024, 1024, 1024), chunks=(64, 64, 64), dtype="uint8")
    assert open_volume(f"{tmp_path}/b.zarr").scratch_bytes(volume.box) == 0


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
    refused("cannot be read", volume.read)


def test_metadata_that_is_not_ours(tmp_path, image_zyx):
    path = write_array(tmp_path / "a.zarr", image_zyx, attributes={"mitoseg": "a string"})
    assert open_volume(path).info.metadata == {}
    assert json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"] == {"mitoseg": "a string"}


@pytest.mark.parametrize("index", ["start", "end"])
def test_an_image_in_shards(tmp_path, image_zyx, index):
    """Few files, each with many chunks, as others write a terabyte."""
    path = write_ome(tmp_path / "a.zarr", image_zyx, "0.5")
    shards = {"shape": (4, 24, 32), "index_location": index}
    options = {"chunks": (2, 8, 8), "shards": shards, "compressors": ZstdCodec(), "overwrite": True}
    zarr.open_group(path, mode="r+").create_array("s0", data=image_zyx, **options)
    assert len([p for p in (tmp_path / "a.zarr" / "s0" / "c").rglob("*") if p.is_file()]) == 2 * 2 * 2
    for name in (path, f"{path}/s0"):
        check(name, image_zyx, (50, 4.6, 4.5)).check_complete()


SHAPE, CHUNK = (5, 9, 13), (2, 4, 5)  # 3 x 3 x 3 chunks, the last ones cut off
LAYOUTS = {
    "2 dots": {"zarr_format": 2},
    "2 slashes": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "3 slashes": {"zarr_format": 3},
    "3 dots": {"zarr_format": 3, "chunk_key_encoding": {"name": "default", "separator": "."}},
    "3 as 2": {"zarr_format": 3, "chunk_key_encoding": {"name": "v2", "separator": "."}},
}


def make(path, boxes, layout="3 slashes", shards=None):
    """An array of which only some boxes are written; -1 is the fill value."""
    array = zarr.create_array(
        store=path, shape=SHAPE, chunks=CHUNK, shards=shards, dtype="int16", fill_value=-1, **LAYOUTS[layout]
    )
    for box in boxes:
        array[box.slices] = 7
    return str(path)


def chunk_box(place):
    start = tuple(i * c for i, c in zip(place, CHUNK, strict=True))
    return Box(start, tuple(min(a + c, n) for a, c, n in zip(start, CHUNK, SHAPE, strict=True)))


ALL = [chunk_box(place) for place in itertools.product(range(3), repeat=3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("gone", [0, 1, 5, 27])
def test_missing_chunks_are_counted(tmp_path, layout, gone):
    volume = open_volume(make(tmp_path / "a.zarr", ALL[gone:], layout))
    if gone == 0:
        volume.check_complete()
        assert (volume.read() == 7).all()
        return
    says = rf"{gone} of 27 chunks are missing and would read as -1: .*a\.zarr.*restore them.*missing_chunks=fill"
    refused(says, volume.check_complete)
    assert volume.read()[0, 0, 0] == -1  # reading itself fills


@settings(max_examples=30, deadline=None)
@given(written=st.sets(st.sampled_from(ALL)), shards=st.sampled_from([(2, 4, 5), (4, 4, 10), (6, 12, 15)]))
def test_chunks_inside_shards_are_counted(tmp_path_factory, written, shards):
    volume = open_volume(make(tmp_path_factory.mktemp("any") / "a.zarr", sorted(written, key=str), shards=shards))
    assert (volume.read() == -1).any() == (len(written) < len(ALL))
    if len(written) == len(ALL):
        volume.check_complete()
        return
    refused(f"^{27 - len(written)} of 27 chunks", volume.check_complete)


@pytest.mark.parametrize(
    "codec", [{"index_location": "start"}, {"index_codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}]
)
def test_indices_of_shards_of_another_make(tmp_path, codec):
    path = tmp_path / "a.zarr"
    serializer = zarr.codecs.ShardingCodec(chunk_shape=CHUNK, **codec)
    options = {"chunks": (4, 8, 10), "serializer": serializer, "compressors": None, "filters": None}
    array = zarr.create_array(store=path, data=np.full(SHAPE, 7, np.int16), **options)
    open_volume(str(path)).check_complete()
    array[ALL[0].slices] = 0  # the fill value: zarr leaves the chunk out
    refused(r"^1 of 27 chunks", lambda: open_volume(str(path)).check_complete())


def test_an_empty_shard_lacks_its_chunks_and_rubbish_is_no_chunk(tmp_path):
    path = make(tmp_path / "a.zarr", ALL, shards=(4, 4, 10))
    open_volume(path).check_complete()
    (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(b"")
    refused(r"^4 of 27 chunks", lambda: open_volume(path).check_complete())
    path = make(tmp_path / "b.zarr", ALL[1:])
    for name in ("c/0/0/0.tmp", "c/0/0/00", "c/9/9/9", "0.0.0", "c/0.0.0", "notes.txt"):
        (tmp_path / "b.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b.zarr" / name).write_text("x")
    refused(r"^1 of 27 chunks", lambda: open_volume(path).check_complete())


@pytest.mark.parametrize("version", [2, 3])
def test_the_level_in_use_of_an_image(tmp_path, version):
    group = zarr.create_group(store=tmp_path / "a.zarr", zarr_format=version)
    group.create_array("s0", shape=SHAPE, chunks=CHUNK, dtype="uint8")[...] = 1
    group.create_array("s1", shape=SHAPE, chunks=CHUNK, dtype="uint8")
    image = {"axes": [{"name": a} for a in "zyx"], "datasets": [{"path": "s0"}, {"path": "s1"}]}
    group.attrs.update({"multiscales": [image]} if version == 2 else {"ome": {"multiscales": [image]}})
    open_volume(tmp_path / "a.zarr").check_complete()
    refused(r"^27 of 27 chunks.*a\.zarr/s1", lambda: open_volume(tmp_path / "a.zarr" / "s1").check_complete())
    next(p for p in (tmp_path / "a.zarr" / "s0").rglob("*") if p.name in ("0.0.0", "0") and p.is_file()).unlink()
    refused(r"^1 of 27 chunks", lambda: open_volume(tmp_path / "a.zarr").check_complete())


MADE = {
    "mask": lambda v: mask_volume(v, np.logical_not),
    "integers": integer_volume,
    "encoded": lambda v: encoded_volume(v, np.dtype(np.uint8), {}),
    "crop": lambda v: CroppedVolume(v, Box((1, 0, 0), (5, 9, 13))),
    "labels": lambda v: map_labels(v, foreground=7),
    "matched": lambda v: MatchedVolume(v, [0.0, 1.0]),
    "resampled": lambda v: resampled(v, (9, 9, 9)),
    "padded": PaddedVolume,
    "blanked": lambda v: blanked(v, PaddedVolume(v).known),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_volume_made_of_another_passes_on_what_that_one_knows(tmp_path, kind):
    stored = open_volume(make(tmp_path / "a.zarr", ALL), voxel_size=(5, 5, 5))
    stored.read = lambda box=None: np.arange(stored.check_box(box).size).reshape(stored.check_box(box).shape) % 9
    stored.scratch_bytes = lambda box: 10**9
    stored.lossy, stored.directions = kind != "labels", "+-+"
    made = MADE[kind](mask_volume(stored, lambda values: values) if kind == "mask" else stored)
    assert (made.lossy, made.directions, made.state()) == (stored.lossy, "+-+", stored.state())
    assert made.scratch_bytes(made.box) >= 10**9
    made.check_complete()
    (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").unlink()
    refused(r"^1 of 27 chunks", made.check_complete)


def test_other_formats_are_complete(tmp_path):
    ArrayVolume(np.zeros(SHAPE)).check_complete()
    for name in ("a.tif", "a.h5", "a.mrc"):
        open_volume(save(tmp_path / name, np.zeros(SHAPE, np.uint8))).check_complete()


def test_many_chunks_are_counted_at_once(tmp_path):
    """Each of ten thousand files is looked at once, and places without a file cost nothing."""
    zarr.create_array(store=tmp_path / "a.zarr", shape=(200, 200, 10**9), chunks=(10, 10, 10), dtype="uint8")
    for z, y in itertools.product(range(20), repeat=2):
        folder = tmp_path / "a.zarr" / "c" / str(z) / str(y)
        folder.mkdir(parents=True)
        for x in range(25):
            (folder / str(x)).touch()
    with pytest.raises(UserError, match=f"^{400 * 10**8 - 10_000} of {400 * 10**8} chunks"):
        open_volume(tmp_path / "a.zarr").check_complete()
