"""Zarr arrays and OME-Zarr images, what is written of them, and chunks that are not there."""

import itertools
import json
import math
import os
import tempfile

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_files import check, refused, save, write_array, write_ome
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.volumes import check_volume_output, create_volume, map_labels, open_volume
from mitoseg.volumes.base import CroppedVolume, encoded_volume, integer_volume, mask_volume
from mitoseg.volumes.normalize import MatchedVolume
from mitoseg.volumes.padding import PaddedVolume, blanked
from mitoseg.volumes.resampling import resampled
from mitoseg.volumes.zarrs import coarser, halved, holds_labels, level_factors

BOX = Box((1, 7, 20), (5, 33, 50))


@pytest.mark.parametrize("version", [2, 3])
def test_arrays_and_groups_of_both_formats(tmp_path, image_zyx, version):
    for dtype in ("uint8", "uint16", "float32", "float64", "bool", "uint64"):
        stored = image_zyx.astype(dtype)
        path = write_array(
            tmp_path / f"{dtype}.zarr", stored, version, chunks=(4, 16, 16), attributes={"mitoseg": "x"}
        )
        assert check(path, stored).info.metadata == {}  # a string is not of mitoseg
    group = zarr.create_group(store=tmp_path / "a.zarr", zarr_format=version)
    group.create_array("raw", data=image_zyx)
    for path in ("a.zarr", "a.zarr/raw", "a.zarr:/raw", "a.zarr:raw"):
        check(f"{tmp_path}/{path}", image_zyx)
    group.create_array("more", shape=(5, 6, 7), dtype="uint8")
    refused(r"holds 2 arrays.*name one: .*a\.zarr/more, .*a\.zarr/raw", open_volume, f"{tmp_path}/a.zarr")
    assert open_volume(f"{tmp_path}/a.zarr/more").shape == (5, 6, 7)
    zarr.create_group(store=tmp_path / "b.zarr", zarr_format=version).create_array("deep/er/raw", data=image_zyx)
    for path in ("b.zarr:/deep/er/raw", "b.zarr/deep/er"):
        assert np.array_equal(open_volume(f"{tmp_path}/{path}").read(), image_zyx)
    refused(r"holds 0 arrays.*name one: .*b\.zarr/deep", open_volume, f"{tmp_path}/b.zarr")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_finest_level_of_an_ome_image(tmp_path, image_zyx, version):
    for axes, (unit, factor) in itertools.product(("zyx", "czyx", "tczyx"), (("nanometer", 1), ("micrometer", 1000))):
        path = tmp_path / f"{axes}{factor}.ome.zarr"
        scales = [(50 / factor, 4.6 / factor, 4.5 / factor)]
        check(write_ome(path, image_zyx, version, axes, scales, unit), image_zyx, (50, 4.6, 4.5))
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
    axes = [{"name": a} for a in "xyz"]
    for n, (names, attributes) in enumerate(
        (
            *((names, {}) for names in (("x", "y", "z"), ("width", "height", "depth"))),
            *((None, attributes) for attributes in ({"axes": axes}, {"transform": {"axes": ["x", "y", "z"]}})),
        )
    ):
        check(write_array(tmp_path / f"{n}.zarr", turned, dimension_names=names, attributes=attributes), image_zyx)
    attributes = {"voxel_size": [50, 4, 5], "axis_names": ["c^", "z", "y", "x"]}
    check(write_array(tmp_path / "funlib.zarr", image_zyx[None], attributes=attributes), image_zyx, (50, 4, 5))


def test_what_webknossos_writes_and_a_flat_image(tmp_path, image_zyx, caplog):
    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "nanometer"} for a in "xyz")]
    move = {"type": "translation", "translation": [0, 128, 0, 0]}
    levels = [{"path": "1", "coordinateTransformations": [{"type": "scale", "scale": [1, 4, 5, 50]}, move]}]
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_array("1", data=np.ascontiguousarray(image_zyx.transpose()[None]), chunks=(1, 32, 32, 32))
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    check(f"{tmp_path}/a.zarr", image_zyx, (50, 5, 4))
    axes = [{"name": a, "type": "space", "unit": "angstrom"} for a in "yx"]
    levels = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [50, 40]}]}]
    group = zarr.create_group(tmp_path / "b.zarr", zarr_format=2)
    group.create_array("0", data=image_zyx[0])
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    assert open_volume(f"{tmp_path}/b.zarr").voxel_size == (4, 5, 4)
    assert "one slice of unknown thickness" in caplog.text


STATED = [(numcodecs.Blosc(), BloscCodec()), (numcodecs.Zstd(), ZstdCodec()), (numcodecs.GZip(), GzipCodec())]
CODECS = [(make, codec, 16) for make, new in STATED for codec in (new, make)]
CODECS += [(make, make, 1) for make in (numcodecs.Zlib(), numcodecs.BZ2(), numcodecs.LZMA())]  # do not say how much


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
    path = write_array(tmp_path / "a.zarr", image_zyx, version)
    file = tmp_path / "a.zarr" / (".zarray" if version == 2 else "zarr.json")
    metadata = json.loads(file.read_text())
    codecs = [*metadata.get("codecs", ())[:-1], {"name": "zfp_new"}]
    codec = {"compressor": {"id": "zfp_new"}} if version == 2 else {"codecs": codecs}
    file.write_text(json.dumps(metadata | codec))
    says = r"in a way that is not read.*zfp_new.*write the volume again"
    assert "damaged" not in refused(says, lambda: open_volume(path).read())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_chunk_that_is_a_pipe(tmp_path, image_zyx):
    path = write_array(tmp_path / "a.zarr", image_zyx + 1, chunks=(3, 37, 50))
    (tmp_path / "a.zarr" / "c/0/0/0").unlink()
    os.mkfifo(tmp_path / "a.zarr" / "c/0/0/0")
    refused("a pipe, a socket or a device", lambda: open_volume(path).read())


def test_large_chunks_count_as_memory(tmp_path):
    for name, chunks, memory in (("a.zarr", (512, 1024, 1024), 2**30), ("b.zarr", (64, 64, 64), 0)):
        zarr.create_array(tmp_path / name, shape=(1024, 1024, 1024), chunks=chunks, dtype="uint8")
        volume = open_volume(f"{tmp_path}/{name}")
        assert volume.scratch_bytes(volume.box) == memory


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
def test_missing_chunks_are_counted(tmp_path, layout):
    for gone in (0, 1, 5, 27):
        volume = open_volume(make(tmp_path / f"{gone}.zarr", ALL[gone:], layout))
        if gone == 0:
            volume.check_complete()
            assert (volume.read() == 7).all()
            continue
        says = rf"{gone} of 27 chunks are missing and would read as -1: .*\.zarr.*restore them.*missing_chunks=fill"
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


def test_shards_of_another_make_empty_ones_and_rubbish(tmp_path):
    big = {"index_codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]}
    for n, codec in enumerate(({"index_location": "start"}, big)):
        serializer = zarr.codecs.ShardingCodec(chunk_shape=CHUNK, **codec)
        options = {"chunks": (4, 8, 10), "serializer": serializer, "compressors": None, "filters": None}
        array = zarr.create_array(store=tmp_path / f"{n}.zarr", data=np.full(SHAPE, 7, np.int16), **options)
        open_volume(tmp_path / f"{n}.zarr").check_complete()
        array[ALL[0].slices] = 0  # the fill value: zarr leaves the chunk out
        refused(r"^1 of 27 chunks", open_volume(tmp_path / f"{n}.zarr").check_complete)
    path = make(tmp_path / "a.zarr", ALL, shards=(4, 4, 10))
    open_volume(path).check_complete()
    (tmp_path / "a.zarr" / "c" / "0" / "0" / "0").write_bytes(b"")
    refused(r"^4 of 27 chunks", open_volume(path).check_complete)
    path = make(tmp_path / "b.zarr", ALL[1:])
    for name in ("c/0/0/0.tmp", "c/0/0/00", "c/9/9/9", "0.0.0", "c/0.0.0", "notes.txt"):
        (tmp_path / "b.zarr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b.zarr" / name).write_text("x")
    refused(r"^1 of 27 chunks", open_volume(path).check_complete)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_level_in_use_of_an_image(tmp_path, image_zyx, version):
    path = write_ome(tmp_path / "a.zarr", image_zyx + 1, version)
    chunks = [
        {p for p in (tmp_path / "a.zarr" / s).rglob("*") if p.is_file() and p.name[-1] == "0"} for s in ("s0", "s1")
    ]
    for chunk in chunks[1]:
        chunk.unlink()
    open_volume(path).check_complete()
    refused(rf"^{len(chunks[1])} of \d+ chunks.*a\.zarr/s1", open_volume(f"{path}/s1").check_complete)
    chunks[0].pop().unlink()
    refused(r"^1 of \d+ chunks", open_volume(path).check_complete)


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


def test_many_chunks_are_counted_at_once(tmp_path):
    """Each of thousands of files is looked at once, and places without a file cost nothing."""
    zarr.create_array(store=tmp_path / "a.zarr", shape=(200, 200, 10**9), chunks=(10, 10, 10), dtype="uint8")
    for z, y in itertools.product(range(10), repeat=2):
        folder = tmp_path / "a.zarr" / "c" / str(z) / str(y)
        folder.mkdir(parents=True)
        for x in range(25):
            (folder / str(x)).touch()
    with pytest.raises(UserError, match=f"^{400 * 10**8 - 2_500} of {400 * 10**8} chunks"):
        open_volume(tmp_path / "a.zarr").check_complete()


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
    found = level_factors(shape, voxel)
    assert found[0] == (1, 1, 1)
    shapes = [[-(-n // f) for n, f in zip(shape, factors, strict=True)] for factors in found]
    assert max(shapes[-1]) <= 256
    assert all(max(sides) > 256 for sides in shapes[:-1])
    for sides, *levels in zip(shapes[:-1], found[:-1], found[1:], strict=True):
        size, coarse = ([v * f for v, f in zip(voxel, factors, strict=True)] for factors in levels)
        long = [a for a in range(3) if sides[a] > 1]
        for a in range(3):
            if coarse[a] > size[a]:
                assert all(size[a] <= 2 * size[b] for b in long)
        ratio = [max(s[a] for a in long) / min(s[a] for a in long) for s in (size, coarse)]
        assert ratio[1] <= max(ratio[0], 2)


def test_which_axes_are_halved_and_what_is_averaged():
    for voxel, expected in {(5, 5, 5): (2, 2, 2), (10, 5, 5): (1, 2, 2), (4, 8, 8): (2, 1, 1)}.items():
        assert halved((100, 100, 100), voxel) == expected
    for kinds, labels in (
        ("uint8 mask, uint32 instances, uint32", True),
        ("uint8 probability, uint16, float32", False),
    ):
        for dtype, *kind in map(str.split, kinds.split(", ")):
            assert holds_labels(np.dtype(dtype), dict(zip(["kind"], kind, strict=False))) is labels


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
    expected, factors = image_zyx, [(1, 1, 1), *level_factors(image_zyx.shape, voxel)]
    for i, (dataset, before, after) in enumerate(zip(image["datasets"], factors, factors[1:], strict=False)):
        scale, translation = dataset["coordinateTransformations"]
        size = tuple(v * f for v, f in zip(voxel, after, strict=True))
        assert scale == {"type": "scale", "scale": list(size)}
        assert translation["translation"] == [(f - 1) / 2 * v for v, f in zip(voxel, after, strict=True)]
        steps = tuple(b // a for a, b in zip(before, after, strict=True))
        expected = coarser(expected, steps, labels=kind == "instances") if i else expected
        for name in (f"{path}/{i}", f"{path}:/{i}"):
            assert check(name, expected, size).info.metadata == {"kind": kind}
    assert i == 2 == len(factors) - 2
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
    for i, chunks in enumerate([(128, 128, 128), (100, 128, 70)]):
        assert zarr.open_group(path, mode="r")[str(i)].chunks == chunks
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
def test_a_level_has_the_axes_and_the_scale_of_its_image(tmp_path, image_zyx, version, axes):
    path = write_ome(tmp_path / "a.ome.zarr", image_zyx, version, axes, scales=((50, 4.6, 4.5), (2, 1, 1)))
    group = zarr.open_group(path, mode="r+")
    for name in ("deep/s2", "other"):  # the second is not of the image
        group.create_array(name, shape=(1,) * (len(axes) - 3) + (5, 6, 7), dtype="uint8")
    attributes = group.attrs.asdict()
    scale = [{"type": "scale", "scale": [1.0] * (len(axes) - 3) + [7.0, 8.0, 9.0]}]
    images = attributes.get("ome", attributes)["multiscales"]
    images[0]["datasets"].append({"path": "deep/s2", "coordinateTransformations": scale})
    group.attrs.update(attributes)
    for sign in ("/", ":/", ":"):
        assert open_volume(f"{path}{sign}s0").voxel_size == (100, 4.6, 4.5)
        check(f"{path}{sign}s1", image_zyx[::2, ::2, ::2], (4, 2, 2))
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


def test_several_images_ask(tmp_path, image_zyx):
    group = zarr.create_group(store=tmp_path / "a.zarr")
    group.attrs["ome"] = {"bioformats2raw.layout": 3, "version": "0.5"}
    for i in range(12):
        write_ome(tmp_path / "a.zarr" / str(i), image_zyx[:5, :4, :4], "0.5")
        if i in (1, 11):
            says = r"several images.*name one: \S*a\.zarr/0, \S*a\.zarr/1"
            assert ("and more" in refused(says, open_volume, f"{tmp_path}/a.zarr")) == (i == 11)
    assert open_volume(f"{tmp_path}/a.zarr/1").voxel_size == (50, 4.6, 4.5)


def test_images_without_a_scale_or_an_array(tmp_path, image_zyx):
    for n, transforms in enumerate((None, [], [{"type": "identity"}], [{"type": "scale", "path": "elsewhere"}])):
        path = write_ome(tmp_path / f"{n}.zarr", image_zyx, "0.4")
        group = zarr.open_group(path, mode="r+")
        images = group.attrs.asdict()["multiscales"]
        for level in images[0]["datasets"]:
            level["coordinateTransformations"] = transforms or []
            if transforms is None:
                del level["coordinateTransformations"]
        group.attrs["multiscales"] = images
        for name in (path, f"{path}/s1"):
            assert open_volume(name).voxel_size is None
            says = r"the OME-Zarr image states no scale: .*give voxel_size=\[z,y,x\] in nm"
            refused(says, open_volume(name).check_scale)
            open_volume(name, voxel_size=(50, 4, 4)).check_scale()
        assert np.array_equal(open_volume(path).read(), image_zyx)
    del group["s0"]
    refused(r"3\.zarr", open_volume, path)
    group.create_group("s0")
    refused("no array of its finest level", open_volume, path)
