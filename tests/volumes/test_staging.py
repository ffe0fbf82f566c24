"""Volumes written tile by tile: taken up again, whole or not there at all, whatever happens on the way."""

import errno
import json
import logging
import os
import sys

import h5py
import numpy as np
import pytest
from made_files import check, refused, save

from mitoseg import storage
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import VolumeInfo, open_volume
from mitoseg.volumes.staging import StagedVolume
from mitoseg.volumes.zarrs import ZarrOutput

NAMES = ["out.tif", "out.h5", "out.h5:/maps/mito", "out.zarr", "out.ome.zarr", "out.mrc"]
SHAPE, TILE = (5, 20, 24), (2, 16, 16)
COUNT = 3 * 2 * 2
VOXELS = np.random.default_rng(0).random(SHAPE, np.float32)
IDENTITY = {"method": "dense", "tile": (2, 16, 16), "seen": 1}


def stage_of(path, identity=IDENTITY, **options):
    return StagedVolume(str(path), identity, volatile=("seen",), **options)


def begin(stage, decisions=None):
    metadata = {"kind": "probability", "scale": 1}
    info = VolumeInfo(stage.path, SHAPE, np.dtype(np.float32), (50.0, 5.0, 5.0), metadata)
    stage.start(info, TILE, decisions or {"tile": list(TILE)})


def write(stage, count=COUNT):
    """Write up to ``count`` tiles that are missing, the last first; those that were written."""
    missing = [tile for tile in stage.tiles() if tile not in stage.done][::-1][:count]
    for tile in missing:
        stage.write(tile, VOXELS[tile.slices])
    return missing


def leave_unfinished(path, count=3, **options):
    """What a process leaves behind that is stopped after some tiles; the tiles."""
    with stage_of(path, **options) as stage:
        begin(stage)
        return write(stage, count)


def finish(path, **options):
    """Run to the end; the tiles that were missing."""
    with stage_of(path, **options) as stage:
        assert not stage.moved
        begin(stage)
        computed = write(stage)
        stage.finish()
    return computed


def plain_path(folder, name):
    return folder / name.split(":")[0]


def folder_of(folder, name="out.tif"):
    return folder / f".{name.split(':')[0]}.unfinished"


def chunk_of(folder, tile, name="out.tif"):
    numbers = [str(a // n) for a, n in zip(tile.start, TILE, strict=True)]
    return folder_of(folder, name).joinpath("tiles.zarr", "c", *numbers)


def content(path):
    """Every file below a path with its bytes."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def check_result(folder, name):
    """The volume is right, and nothing lies beside it."""
    volume = check(f"{folder}/{name}", VOXELS, (50.0, 5.0, 5.0))
    assert volume.info.metadata == {"kind": "probability", "scale": 1}
    assert [p.name for p in folder.iterdir()] == [name.split(":")[0]]


@pytest.mark.parametrize("name", NAMES)
def test_tiles_in_any_order_make_the_same_volume_at_the_end_only(tmp_path, name):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    with stage_of(f"{whole}/{name}") as stage:
        begin(stage)
        assert stage.count == COUNT
        assert len(write(stage)) == COUNT
        assert [p.name for p in whole.iterdir()] == [folder_of(whole, name).name]
        seen = []
        stage.finish(seen.append)
        blocks = [Box.of_shape(SHAPE)]  # an OME-Zarr image is written by whole chunks
        assert seen == {"out.zarr": [], "out.ome.zarr": blocks}.get(name, list(stage.tiles()))
    check_result(whole, name)
    first = leave_unfinished(f"{parts}/{name}")
    assert (folder_of(parts, name) / "done.txt").read_text().splitlines() == [str(tile) for tile in first]
    with stage_of(f"{parts}/{name}") as stage:
        assert stage.decisions == {"tile": [2, 16, 16]}
        begin(stage, {"tile": "is not asked for again"})
        assert stage.decisions == {"tile": [2, 16, 16]}
        assert stage.done == set(first)
    first += leave_unfinished(f"{parts}/{name}", 4)
    rest = finish(f"{parts}/{name}")
    assert set(rest) | set(first) == set(stage.tiles())
    assert len(rest) + len(first) == COUNT
    check_result(parts, name)
    assert content(plain_path(whole, name)) == content(plain_path(parts, name))


def test_an_array_opened_again_gets_chunks_of_zeros_as_well(tmp_path):
    """Or a worker's empty tile would be taken for a missing one."""
    ZarrOutput(tmp_path / "a.zarr", VolumeInfo("a", (4, 4, 4), np.dtype(np.uint8)), (2, 2, 2))
    ZarrOutput.reopen(tmp_path / "a.zarr").write(Box((0, 2, 0), (2, 4, 2)), np.zeros((2, 2, 2), np.uint8))
    assert [p.name for p in (tmp_path / "a.zarr" / "c").rglob("*") if p.is_file()] == ["0"]


def test_a_stage_without_a_tile_leaves_nothing_and_an_error_keeps_the_tiles(tmp_path):
    leave_unfinished(tmp_path / "new" / "deep" / "out.tif", 0)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    leave_unfinished(tmp_path / "mine" / "out.tif", 0)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine"]

    def stopped():
        with stage_of(tmp_path / "out.tif") as stage:
            begin(stage)
            write(stage, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert len(finish(tmp_path / "out.tif")) == COUNT - 2


def test_another_command_is_told_what_differs(tmp_path, caplog):
    leave_unfinished(tmp_path / "out.tif")
    other = IDENTITY | {"method": "strided", "seen": 2, "tta": "flips"}
    says = r"\(method was dense, is now strided; seen .*; tta was null.*unfinished'.*overwrite=true"
    refused(says, finish, tmp_path / "out.tif", identity=other)
    assert len(finish(tmp_path / "out.tif", overwrite=True)) == COUNT - 3  # the same command goes on
    (tmp_path / "out.tif").unlink()
    leave_unfinished(tmp_path / "out.tif")
    assert len(finish(tmp_path / "out.tif", identity=other, overwrite=True)) == COUNT
    check_result(tmp_path, "out.tif")
    (tmp_path / "out.tif").unlink()
    leave_unfinished(tmp_path / "out.tif")
    caplog.clear()
    with caplog.at_level(logging.WARNING):  # a changed input
        assert len(finish(tmp_path / "out.tif", identity=IDENTITY | {"seen": 2})) == COUNT
    assert caplog.messages == ["an unfinished output is discarded: seen changed since"]
    check_result(tmp_path, "out.tif")


def test_two_at_once_and_other_datasets_of_the_same_file(tmp_path):
    says = r"another process is writing this output: '.*out\.tif'; wait for it"
    with stage_of(tmp_path / "out.tif"):
        refused(says, stage_of(tmp_path / "out.tif").__enter__)
    finish(tmp_path / "out.tif")
    check_result(tmp_path, "out.tif")
    (tmp_path / "out.tif").unlink()
    leave_unfinished(f"{tmp_path}/out.h5:/a")
    refused(r"dataset was a, is now b", finish, f"{tmp_path}/out.h5:/b")
    finish(f"{tmp_path}/out.h5:/a")
    check_result(tmp_path, "out.h5:/a")
    refused(r"remove: .*", stage_of, f"{tmp_path}/out.h5:/mine", overwrite=True)
    with h5py.File(tmp_path / "out.h5") as h5:
        assert list(h5) == ["a"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("when", ["never written", "removed before the end", "removed between"])
def test_missing_tiles_are_told_and_computed_the_next_time(tmp_path, name, when):
    with stage_of(f"{tmp_path}/{name}") as stage:
        begin(stage)
        tiles = write(stage, COUNT - (when == "never written"))
        missing = {*stage.tiles()} - {*tiles}
        if not missing:
            missing = {tiles[4]}
            chunk_of(tmp_path, tiles[4], name).unlink()
        if when != "removed between":
            refused(r"not complete, 1 tiles are missing: .*run the same command again", stage.finish)
    assert not plain_path(tmp_path, name).exists()
    assert {*finish(f"{tmp_path}/{name}")} == missing
    check_result(tmp_path, name)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_chunks_are_told_at_once_and_computed_anew(tmp_path, name):
    tiles = leave_unfinished(f"{tmp_path}/{name}", COUNT - 1)
    for number in (4, 7):
        chunk = bytearray(chunk_of(tmp_path, tiles[number], name).read_bytes())
        chunk[len(chunk) // 2] ^= 1
        chunk_of(tmp_path, tiles[number], name).write_bytes(chunk)
    says = r"2 finished tiles were damaged on the disk, among them: .*same command again"
    refused(says, finish, f"{tmp_path}/{name}")
    assert not plain_path(tmp_path, name).exists()
    assert set(finish(f"{tmp_path}/{name}")) == {tiles[4], tiles[7]}
    check_result(tmp_path, name)


def test_no_flipped_byte_passes_for_voxels(tmp_path):
    """Every byte of a chunk, one after the other: an error or the right voxels, never others."""
    box = Box((0, 0, 0), (2, 4, 8))
    ZarrOutput(tmp_path / "a.zarr", VolumeInfo("a", box.shape, VOXELS.dtype)).write(box, VOXELS[box.slices])
    chunk = tmp_path / "a.zarr" / "c" / "0" / "0" / "0"
    good, volume, refusals = chunk.read_bytes(), open_volume(tmp_path / "a.zarr"), 0
    for i in range(len(good)):
        chunk.write_bytes(good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1 :])
        try:
            voxels = volume.read()
        except UserError:
            refusals += 1
        else:
            np.testing.assert_array_equal(voxels, VOXELS[box.slices], err_msg=f"byte {i}")
    assert refusals > 0.98 * len(good)
    for length in (0, 1, len(good) // 2, len(good) - 1):
        chunk.write_bytes(good[:length])
        with pytest.raises(UserError):
            volume.read()


def test_only_whole_lines_that_name_tiles_are_trusted(tmp_path):
    tiles = leave_unfinished(tmp_path / "out.tif")
    done = folder_of(tmp_path) / "done.txt"
    text = done.read_text()
    for cut in (1, 4, len(str(tiles[-1]))):  # the line's end is missing, or more of it
        done.write_text(text[:-cut])
        with stage_of(tmp_path / "out.tif") as stage:
            begin(stage)
            assert stage.done == set(tiles[:2])
        assert done.read_text() == "".join(f"{tile}\n" for tile in stage.tiles() if tile in tiles[:2])
    done.write_text(f"{tiles[0]}\n[0:1,0:16,0:16]\nnonsense\n\n{Box((0, 0, 0), TILE)}\n")
    assert len(finish(tmp_path / "out.tif")) == COUNT - 1
    check_result(tmp_path, "out.tif")


@pytest.mark.parametrize("what", ["plan.json", "done.txt", "tiles.zarr/zarr.json"])
def test_a_damaged_stage_begins_anew(tmp_path, what):
    for text in (None, b"", b"{", b"[]", b'{"identity": {}, "decisions": null}', b"\xff"):
        leave_unfinished(tmp_path / "out.tif")
        path = folder_of(tmp_path) / what
        path.unlink() if text is None else path.write_bytes(text)
        assert len(finish(tmp_path / "out.tif")) == COUNT, text
        check_result(tmp_path, "out.tif")
        (tmp_path / "out.tif").unlink()


WRONG = [{"whole": whole} for whole in ("x", {"result": "../precious"}, {"stamp": [1, 2]})]
WRONG += [{"decisions": {"tile": tile}} for tile in (None, "abc", [0, 0, 0], [1, 2])]


def test_a_plan_of_other_values_is_none(tmp_path):
    for wrong in WRONG:
        leave_unfinished(tmp_path / "out.tif")
        (tmp_path / "precious").write_text("precious")
        plan = folder_of(tmp_path) / "plan.json"
        plan.write_text(json.dumps({**json.loads(plan.read_text()), **wrong}))
        assert len(finish(tmp_path / "out.tif")) == COUNT, wrong
        assert (tmp_path / "precious").read_text() == "precious"
        (tmp_path / "precious").unlink()
        check_result(tmp_path, "out.tif")
        (tmp_path / "out.tif").unlink()


@pytest.mark.parametrize("name", NAMES)
def test_an_old_output_stays_until_the_end(tmp_path, name):
    def old_output():
        """Something else under the final name."""
        save(f"{tmp_path}/{name}", np.full((1, 2, 3), 7, np.uint8))
        return content(plain_path(tmp_path, name))

    with stage_of(f"{tmp_path}/{name}") as stage:
        begin(stage)
        write(stage)
        before = old_output()
        refused("appeared while it was being written", stage.finish)
    assert content(plain_path(tmp_path, name)) == before
    assert finish(f"{tmp_path}/{name}", overwrite=True) == []
    check_result(tmp_path, name)
    storage.remove(plain_path(tmp_path, name))
    before = old_output()
    refused(r"the output exists: .*overwrite=true", stage_of, f"{tmp_path}/{name}")
    assert len(list(tmp_path.iterdir())) == 1
    leave_unfinished(f"{tmp_path}/{name}", overwrite=True)
    assert content(plain_path(tmp_path, name)) == before
    with stage_of(f"{tmp_path}/{name}", overwrite=True) as stage:
        begin(stage)
        write(stage)
        assert content(plain_path(tmp_path, name)) == before
        stage.finish(lambda _: content(plain_path(tmp_path, name)) == before or pytest.fail("gone too early"))
    check_result(tmp_path, name)


def fail_full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "kept"), [("zarrs.ZarrOutput.write", 2), ("staging.StagedVolume._add", 2), ("staging.write_text", 3)]
)
def test_a_full_disk_keeps_the_tiles(tmp_path, monkeypatch, where, kept):
    """Also one that is still full when the list of tiles is written, the first thing that a second run writes."""
    leave_unfinished(tmp_path / "out.tif", kept)
    monkeypatch.setattr(f"mitoseg.volumes.{where}", fail_full)
    refused(r"^the disk is full.*out\.tif'; free some space", finish, tmp_path / "out.tif")
    monkeypatch.undo()
    assert len(finish(tmp_path / "out.tif")) == COUNT - kept


@pytest.mark.parametrize("broken", ["staging.write_json", "staging.ZarrOutput", "storage.tempfile.TemporaryFile"])
def test_a_stage_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch, broken):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    if broken.startswith("storage"):
        monkeypatch.setattr(f"mitoseg.{broken}", refuse)
        refused(r"cannot be written: .*permissions", finish, tmp_path / "out.tif")
    else:
        monkeypatch.setattr(f"mitoseg.volumes.{broken}", fail_full)
        refused("^the disk is full", finish, tmp_path / "new" / "out.tif")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "out.zarr"])
def test_a_disk_full_while_converting(tmp_path, monkeypatch, name):
    modules = {".tif": "stored.FlatOutput", ".mrc": "mrc.MrcOutput", "zarr": "zarrs.OmeZarrOutput"}
    module = modules.get(name[-4:], "hdf5.Hdf5Output")
    monkeypatch.setattr(f"mitoseg.volumes.{module}.write", fail_full)
    refused(r"^the disk is full", finish, f"{tmp_path}/{name}")
    monkeypatch.undo()
    assert not plain_path(tmp_path, name).exists()
    assert finish(f"{tmp_path}/{name}") == []
    check_result(tmp_path, name)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_chunk_that_may_not_grow(tmp_path):
    """A limit of the operating system stands for a full disk: the write fails in earnest, inside zarr."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with stage_of(tmp_path / "out.tif") as stage:
        stage.start(VolumeInfo("", (2, 64, 64), np.dtype("uint8")), (1, 64, 64), {"tile": [1, 64, 64]})
        first, second = stage.tiles()
        stage.write(first, np.zeros((1, 64, 64), np.uint8))
        noise = np.random.default_rng(0).integers(0, 255, (1, 64, 64), np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            refused("^the disk is full", stage.write, second, noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (folder_of(tmp_path) / "done.txt").read_text().count("\n") == 1


def test_a_name_that_is_too_long(tmp_path):
    for length in (240, 248, 300):
        refused(r"cannot be written \(.*too long\)", finish, tmp_path / "new" / ("a" * length + ".tif"))
        assert list(tmp_path.iterdir()) == []


def test_the_user_removed_the_output_of_a_run_that_was_killed_in_its_clean_up(tmp_path, monkeypatch):
    """Then the stage knows of a finished output that is not there: it must not be told as written."""
    for name in ("out.tif", "out.zarr"):
        for method in ("_clear", "_discard"):
            monkeypatch.setattr(StagedVolume, method, lambda _: None)
        finish(tmp_path / name)
        monkeypatch.undo()
        with stage_of(tmp_path / name) as stage:
            assert stage.moved
        storage.remove(tmp_path / name)
        finish(tmp_path / name)
        check_result(tmp_path, name)
        storage.remove(tmp_path / name)
