"""Chunks of Zarr arrays that are not there."""

import itertools

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import ArrayVolume, create_volume, map_labels, open_volume

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
    with pytest.raises(UserError, match=says) as caught:
        volume.check_complete()
    assert "\n" not in str(caught.value)
    assert volume.read()[0, 0, 0] == -1  # reading itself fills


@settings(max_examples=30, deadline=None)
@given(written=st.sets(st.sampled_from(ALL)), shards=st.sampled_from([(2, 4, 5), (4, 4, 10), (6, 12, 15)]))
def test_chunks_inside_shards_are_counted(tmp_path_factory, written, shards):
    volume = open_volume(make(tmp_path_factory.mktemp("any") / "a.zarr", sorted(written, key=str), shards=shards))
    assert (volume.read() == -1).any() == (len(written) < len(ALL))
    if len(written) == len(ALL):
        volume.check_complete()
        return
    with pytest.raises(UserError, match=f"^{27 - len(written)} of 27 chunks"):
        volume.check_complete()


@pytest.mark.parametrize(
    "codec", [{"index_location": "start"}, {"index_codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}]
)
def test_indices_of_shards_of_another_make(tmp_path, codec):
    path = tmp_path / "a.zarr"
    serializer = zarr.codecs.ShardingCodec(chunk_shape=CHUNK, **codec)
    array = zarr.create_array(
        store=path,
        shape=SHAPE,
        chunks=(4, 8, 10),
        dtype="int16",
        serializer=serializer,
        compressors=None,
        filters=None,
    )
    array[...] = 7
    open_volume(str(path)).check_complete()
    array[ALL[0].slices] = 0  # the fill value: zarr leaves the chunk out
    with pytest.raises(UserError, match=r"^1 of 27 chunks"):
        open_volume(str(path)).check_complete()


def test_a_shard_that_is_empty(tmp_path):
    path = make(tmp_path / "a.zarr", ALL, shards=(4, 4, 10))
    open_volume(path).check_complete()
    (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(b"")
    with pytest.raises(UserError, match=r"^4 of 27 chunks"):
        open_volume(path).check_complete()


def test_rubbish_is_no_chunk(tmp_path):
    path = make(tmp_path / "a.zarr", ALL[1:])
    for name in ("c/0/0/0.tmp", "c/0/0/00", "c/9/9/9", "0.0.0", "c/0.0.0", "notes.txt"):
        (tmp_path / "a.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a.zarr" / name).write_text("x")
    with pytest.raises(UserError, match=r"^1 of 27 chunks"):
        open_volume(path).check_complete()


@pytest.mark.parametrize("version", [2, 3])
def test_the_level_in_use_of_an_image(tmp_path, version):
    group = zarr.create_group(store=tmp_path / "a.zarr", zarr_format=version)
    group.create_array("s0", shape=SHAPE, chunks=CHUNK, dtype="uint8")[...] = 1
    group.create_array("s1", shape=SHAPE, chunks=CHUNK, dtype="uint8")
    image = {"axes": [{"name": a} for a in "zyx"], "datasets": [{"path": "s0"}, {"path": "s1"}]}
    group.attrs.update({"multiscales": [image]} if version == 2 else {"ome": {"multiscales": [image]}})
    open_volume(tmp_path / "a.zarr").check_complete()
    with pytest.raises(UserError, match=r"^27 of 27 chunks.*a\.zarr/s1"):
        open_volume(tmp_path / "a.zarr" / "s1").check_complete()
    next(p for p in (tmp_path / "a.zarr" / "s0").rglob("*") if p.name in ("0.0.0", "0") and p.is_file()).unlink()
    with pytest.raises(UserError, match=r"^1 of 27 chunks"):
        open_volume(tmp_path / "a.zarr").check_complete()


def test_labels_ask_what_they_are_made_of(tmp_path):
    path = make(tmp_path / "a.zarr", ALL)
    labels = map_labels(open_volume(path))
    labels.check_complete()
    (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(UserError, match=r"^1 of 27 chunks"):
        labels.check_complete()


def test_other_formats_are_complete(tmp_path):
    ArrayVolume(np.zeros(SHAPE)).check_complete()
    for name in ("a.tif", "a.h5", "a.mrc"):
        with create_volume(tmp_path / name, SHAPE, "uint8") as writer:
            writer.write(Box.of_shape(SHAPE), np.zeros(SHAPE, np.uint8))
        open_volume(tmp_path / name).check_complete()


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
