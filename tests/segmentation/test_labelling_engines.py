"""Labelling by other processes: the bytes that one process gives, whoever does which block, and whoever dies."""

import logging
import sys
from pathlib import Path

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from other_places import Elsewhere, Killing
from test_labelling import CUTS, in_raster_order

from mitoseg.engines import DaskEngine, LocalEngine
from mitoseg.geometry import Box, tiles
from mitoseg.segmentation import Labelling, label_array, label_volume, write_instances
from mitoseg.segmentation.blockwise import count_instances, pack, unpack, write_blocks
from mitoseg.volumes import ArrayVolume, create_volume, open_volume

SIZE = (10.0, 10.0, 10.0)
BLOCK = (4, 8, 8)
MASK = np.random.default_rng(3).random((9, 20, 28)) < 0.35
MASK[:4, :8, :8] = False  # a block without an object


class Kept:
    """A writer that keeps an array."""

    def __init__(self, shape):
        self.array, self.boxes = np.zeros(shape, np.uint32), []

    def write(self, box, array_zyx):
        self.array[box.slices] = array_zyx
        self.boxes.append(box)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


masks = arrays(bool, st.tuples(*[st.integers(1, 7)] * 3), elements=st.booleans())


@settings(max_examples=25, deadline=None)
@given(masks, st.tuples(*[st.integers(1, 8)] * 3), st.sampled_from([6, 18, 26]), st.booleans(), st.integers(0, 99))
def test_whoever_does_which_block(mask_zyx, block, connectivity, split, seed):
    options = Labelling(connectivity, split=split, smoothing=0.0, neck=1.0, fragment=0.0)
    mask, engine = ArrayVolume(mask_zyx, (1.0, 1.0, 1.0)), Elsewhere(seed)
    found = label_volume(mask, options, block=block, engine=engine)
    one = label_volume(mask, options)
    kept = Kept(mask.shape)
    write_instances(found, kept, engine=engine)
    np.testing.assert_array_equal(kept.array, one.read())
    assert sorted(map(str, kept.boxes)) == sorted(map(str, tiles(mask.box, block)))
    for name in ("voxels", "start", "stop", "first"):
        np.testing.assert_array_equal(getattr(found.objects, name), getattr(one.objects, name))
    if not split:
        whole = cc3d.connected_components(mask_zyx, connectivity=connectivity)
        np.testing.assert_array_equal(kept.array, in_raster_order(whole))
    counted = count_instances(ArrayVolume(kept.array), block=block, engine=engine)
    assert counted.to_dict("list") == count_instances(ArrayVolume(kept.array)).to_dict("list")


@given(arrays(st.sampled_from([np.uint32, np.int32, np.uint64]), st.tuples(*[st.integers(0, 4)] * 2)))
def test_packed_labels_come_back(array):
    back = unpack(pack(array))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype


def test_a_part_is_enough_for_its_box_and_holds_no_tables():
    mask_zyx = np.tile(MASK, (1, 3, 4))
    found = label_volume(ArrayVolume(mask_zyx, SIZE), CUTS, block=BLOCK)
    box = Box((3, 7, 9), (6, 20, 25))
    part = found.part(box)
    np.testing.assert_array_equal(part.read(box), found.read()[box.slices])
    assert len(part) == 0 < len(found)
    with pytest.raises(KeyError):
        part.read(Box((0, 0, 40), (1, 1, 41)))


def test_what_is_sent_for_a_block_does_not_grow_with_the_volume(tmp_path):
    sizes = []
    for times in (1, 6):
        path = tmp_path / f"{times}.zarr"
        mask_zyx = np.pad(np.tile(MASK[1:], (times, 1, 1)), ((1, 1), (0, 0), (0, 0))).astype(np.uint8)
        with create_volume(path, mask_zyx.shape, "uint8", voxel_size=SIZE) as writer:
            writer.write(Box.of_shape(mask_zyx.shape), mask_zyx)
        engine = Elsewhere()
        found = label_volume(open_volume(path), block=BLOCK, engine=engine)
        write_instances(found, Kept(found.shape), engine=engine)
        sizes.append(engine.largest)
    assert sizes[1] < 1.1 * sizes[0]


@pytest.fixture
def stored(tmp_path):
    """A mask in a file, in small chunks."""
    with create_volume(tmp_path / "m.zarr", MASK.shape, "uint8", voxel_size=SIZE, chunks=BLOCK) as writer:
        writer.write(Box.of_shape(MASK.shape), MASK.astype(np.uint8))
    return open_volume(tmp_path / "m.zarr")


def label_file(mask, output, engine, chunks=BLOCK, labelling=CUTS):
    found = label_volume(mask, labelling, block=BLOCK, engine=engine, metadata={"from": "a test"})
    options = {"voxel_size": found.voxel_size, "metadata": found.info.metadata, "chunks": chunks}
    with create_volume(output, found.shape, np.uint32, **options) as writer:
        write_instances(found, writer, engine=engine)
    return files(output) if Path(output).is_dir() else Path(output).read_bytes()


@pytest.mark.parametrize("name", ["a.zarr", "a.tif", "a.h5", "a.ome.zarr"])
def test_files_are_the_same_to_the_byte(stored, name, tmp_path):
    (tmp_path / "one").mkdir()
    one = label_file(stored, tmp_path / "one" / name, None)
    np.testing.assert_array_equal(
        open_volume(tmp_path / "one" / name).read(), label_array(MASK, CUTS, voxel_size=SIZE)
    )
    assert label_file(stored, tmp_path / name, Elsewhere()) == one


def test_workers_write_whole_chunks_alone(tmp_path):
    """Two that write different parts of one chunk would undo each other's work."""
    options = {"chunks": (4, 8, 16)}
    with create_volume(tmp_path / "a.zarr", (9, 20, 28), "uint32", **options) as writer:
        assert writer.shared((4, 8, 16)) == writer.shared((8, 16, 16)) != None  # noqa: E711
        assert writer.shared((4, 8, 8)) is None
        assert writer.shared((9, 20, 28)) is not None
    with create_volume(tmp_path / "a.tif", (9, 20, 28), "uint32") as writer:
        assert writer.shared((4, 8, 16)) is None


def test_what_a_killed_worker_half_wrote_goes(stored, tmp_path):
    with create_volume(tmp_path / "a.zarr", MASK.shape, "uint32", chunks=BLOCK) as writer:
        (writer.shared(BLOCK) / "c.partial").touch()
        write_blocks(stored, BLOCK, writer, engine=Elsewhere(), dtype=np.dtype(np.uint32))
    assert not list(tmp_path.rglob("*.partial"))
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr").read(), MASK)


def test_two_processes(stored, tmp_path):
    one = label_file(stored, tmp_path / "one.zarr", LocalEngine())
    with LocalEngine(2) as engine:
        assert label_file(stored, tmp_path / "two.zarr", engine) == one


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_two_dask_workers(stored, tmp_path):
    pytest.importorskip("distributed")
    one = label_file(stored, tmp_path / "one.zarr", LocalEngine())
    with DaskEngine(2) as engine:
        assert label_file(stored, tmp_path / "two.zarr", engine) == one


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_workers_killed_in_each_pass(stored, tmp_path, caplog):
    """While blocks are summarised, while components are cut, and while blocks are numbered and written."""
    caplog.set_level(logging.WARNING)
    one = label_file(stored, tmp_path / "one.zarr", LocalEngine())
    blocks = len(list(tiles(stored.box, BLOCK)))
    components = len(label_volume(stored, Labelling(min_volume=1001.0)))
    assert components > 4
    (tmp_path / "notes").mkdir()
    at = (blocks // 2, blocks + components // 2, blocks + components + blocks // 2)
    with LocalEngine(2) as engine:
        assert label_file(Killing(tmp_path / "m.zarr", tmp_path / "notes", at), tmp_path / "two.zarr", engine) == one
    assert len(list((tmp_path / "notes").glob("kill.*"))) == 3
    assert caplog.text.count("a worker process was killed") == 3
