"""Damaged inputs, places that cannot be written, full disks: one line, nothing half-written, no crash afterwards."""

import errno
import io
import json
import logging
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
from made_files import WAYS, refused, save, walk_image, write, write_array, write_png

from mitoseg import storage
from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import check_volume_output, create_volume, open_volume
from mitoseg.volumes.stored import FlatOutput
from mitoseg.volumes.zarrs import ZarrOutput

SHAPE, NOISE_SHAPE = (4, 40, 50), (32, 256, 256)
SCRIPT = Path(__file__).with_name("malformed_files.py")
COUNT, SECONDS, QUICK, PATIENCE = 200, 10, 40, 300
FORMATS = ["a.tif", "a.h5", "a.zarr", "a.mrc"]
SMOOTH = walk_image(SHAPE)


def line_of(path):
    """The one line that reading ends in, or None."""
    line = None
    try:
        open_volume(path).read()
    except UserError as error:
        line = str(error)
    assert line is None or (os.fspath(path) in line and "\n" not in line)
    return line


@pytest.mark.parametrize("options", [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}, {"predictor": True}])
def test_a_flipped_byte_of_a_compressed_page(tmp_path, options):
    path = tmp_path / "a.tif"
    write(path, SMOOTH, compression="zlib", metadata={"axes": "ZYX"}, **options)
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        start, length = tif.pages[2].dataoffsets[-1], tif.pages[2].databytecounts[-1]
    for i in {*range(0, length, 1 + length // 20), length - 1}:
        path.write_bytes(data[: start + i] + bytes([data[start + i] ^ 0xFF]) + data[start + i + 1 :])
        assert line_of(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits", "zstd", "jpeg", "lerc", "png"])
def test_a_page_that_is_cut_short(tmp_path, compression):
    """The rest of the page must not read as a constant."""
    path = tmp_path / "a.tif"
    write(path, SMOOTH, compression=compression, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as tif:
        tag, length = tif.pages[1].tags["StripByteCounts"], tif.pages[1].databytecounts[0]
    assert line_of(path) is None
    for kept in range(1, length - 2, 1 + length // 20):
        with path.open("r+b") as file:
            file.seek(tag.valueoffset)
            file.write(struct.pack("<H" if tag.dtype == 3 else "<I", kept))
        assert line_of(path), kept


CUT = {f"{way}.tif": WAYS[way] for way in ("plain", "imagej", "generic", "zlib", "ome_zlib", "rows", "tiles")}
CUT |= {name: {} for name in ("a.h5", "a.mrc", "slices/0.png", "slices/1.tif")}


@pytest.mark.parametrize("name", CUT)
def test_a_file_that_is_cut_short_is_one_line(tmp_path, name, caplog, capfd):
    noise = np.random.default_rng(0).integers(0, 255, (6, 100, 100), np.uint8)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    if name.endswith("png"):
        write_png(file, noise[0])
    elif name.endswith("tif"):
        write(file, noise[0] if "/" in name else noise, **CUT[name])
    else:
        save(file, noise)
    data = file.read_bytes()
    for share in (0, 0.01, 0.05, 0.5, 0.9, 0.999):
        file.write_bytes(data[: int(len(data) * share)])
        with caplog.at_level(logging.DEBUG):
            line = line_of(file.parent if "/" in name else file)
        assert line or share == 0.999  # only what comes after the voxels is missing
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


NO_FILES = {
    "a.tif": [b"", b"hello", b"II*\0", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08\xff\xff", b"PK\3\4"],
    "b.zarr/zarr.json": [b"", b"{", b"[]", b"{}", b'{"zarr_format": 3, "node_type": "array"}'],
}


def test_what_is_no_tiff_and_no_zarr(tmp_path, caplog):
    write_array(tmp_path / "b.zarr", SMOOTH)
    for name, contents in NO_FILES.items():
        for content in contents:
            (tmp_path / name).write_bytes(content)
            with caplog.at_level(logging.INFO if "zarr" in name else logging.DEBUG):
                assert line_of(tmp_path / name.partition("/")[0]), content
    assert caplog.records == []


def test_a_damaged_middle_is_one_line(tmp_path, caplog, capfd):
    noise = np.random.default_rng(0).integers(0, 9, (6, 100, 100), np.uint8)
    write(tmp_path / "a.tif", noise, compression="zlib")
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5.create_dataset("a", data=noise, chunks=(1, 100, 100), compression="gzip", fletcher32=True)
    for name, start, length in (("a.tif", 0.5, 2000), ("a.h5", -3000, 1000)):
        data = bytearray((tmp_path / name).read_bytes())
        start = int(start * len(data)) if start > 0 else len(data) + start
        data[start : start + length] = bytes(length)
        (tmp_path / name).write_bytes(data)
        with caplog.at_level(logging.DEBUG):
            assert any(words in line_of(tmp_path / name) for words in ("damaged", "cannot be read"))
    for version in (2, 3):
        write_array(tmp_path / f"{version}.zarr", noise, version, chunks=noise.shape)
        files = [file for file in (tmp_path / f"{version}.zarr").rglob("*") if file.is_file()]
        chunk = next(file for file in files if file.name[0] != "." and file.suffix != ".json")
        chunk.write_bytes(chunk.read_bytes()[:50])
        assert "cannot be read" in line_of(tmp_path / f"{version}.zarr")
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.zarr", "a.h5"])
def test_a_chunk_of_ours_that_is_cut_short_or_has_a_flipped_byte(tmp_path, name):
    chunk, data = chunk_of(save(tmp_path / name, SMOOTH))
    for kept in (0, 1, len(data) // 2, len(data) - 1):
        chunk(data[:kept])
        assert "cannot be read" in line_of(tmp_path / name)
    for i in {*range(0, len(data), 1 + len(data) // 50), len(data) - 1}:
        chunk(data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :])
        assert "cannot be read" in line_of(tmp_path / name)
    chunk(data)
    assert line_of(tmp_path / name) is None


def chunk_of(path):
    """A function that replaces the bytes of a volume's only chunk, and those bytes."""
    if path.endswith(".zarr"):
        (file,) = [p for p in Path(path, "c").rglob("*") if p.is_file()]
        return file.write_bytes, file.read_bytes()
    with h5py.File(path) as h5:
        info = h5["volume"].id.get_chunk_info(0)

    def replace(data):
        with open(path, "r+b") as file:
            file.seek(info.byte_offset)
            file.write(data.ljust(info.size, b"\0"))

    with open(path, "rb") as file:
        file.seek(info.byte_offset)
        return replace, file.read(info.size)


def test_files_without_voxels(tmp_path):
    for tag in ("ImageLength", "ImageWidth"):
        for options in ({}, {"compression": "zlib"}):
            tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.uint8), metadata=None, **options)
            with tifffile.TiffFile(tmp_path / "a.tif") as tif:
                place, kind = tif.pages[0].tags[tag].valueoffset, tif.pages[0].tags[tag].dtype
            with (tmp_path / "a.tif").open("r+b") as file:
                file.seek(place)
                file.write(struct.pack("<H" if kind == 3 else "<I", 0))
            assert line_of(tmp_path / "a.tif")
    (tmp_path / "slices").mkdir()
    for height, width in ((0, 50), (40, 0)):
        head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
        (tmp_path / "slices" / "0.png").write_bytes(data)
        assert "is empty" in line_of(tmp_path / "slices")


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "png"])
@pytest.mark.parametrize("colour", [False, True])
def test_a_strip_that_unpacks_to_far_too_much(tmp_path, codec, colour):
    shape = (40, 50, 3) if colour else (40, 50)
    encode = {"jpeg": imagecodecs.jpeg8_encode, "jpeg2000": imagecodecs.jpeg2k_encode, "png": imagecodecs.png_encode}
    large = encode[codec](np.zeros((400, 500, *shape[2:]), np.uint8))
    options = {"photometric": "rgb" if colour else "minisblack", "compression": codec, "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", np.zeros(shape, np.uint8), **options)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        places = [tif.pages.first.tags[name].offset for name in ("StripOffsets", "StripByteCounts")]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    for place, value in zip(places, (len(data), len(large)), strict=True):
        data[place + 2 : place + 12] = struct.pack("<HII", 4, 1, value)
    (tmp_path / "a.tif").write_bytes(data + large)
    refused("unpacks to 500 x 400 pixels", lambda: open_volume(tmp_path / "a.tif").read())


@pytest.mark.parametrize("name", FORMATS)
def test_places_that_cannot_be_written(tmp_path, monkeypatch, name):
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        for refuse in (check_volume_output, lambda path, over: create_volume(path, SHAPE, "uint8", overwrite=over)):
            refused(r"(?i)not a (folder|directory).*check the path", refuse, f"{tmp_path}/file/{name}", overwrite)
    assert [p.name for p in tmp_path.rglob("*")] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"

    def deny(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.os, "replace", deny)  # as when a folder is closed while the volume is being written
    refused(r"cannot be written: .*check the permissions", save, tmp_path / name, SMOOTH)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
@pytest.mark.parametrize("name", [*FORMATS, "new/a.tif"])
def test_a_folder_that_may_not_be_written(tmp_path, name):
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("root may write everywhere")
    refused(r"cannot be written: .*check the permissions", create_volume, f"{tmp_path}/closed/{name}", SHAPE, "uint8")
    assert list((tmp_path / "closed").iterdir()) == []


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.mrc"])
def test_an_old_output_that_is_read_only(tmp_path, name):
    """Replacing it changes the folder, not the file."""
    path = save(tmp_path / name, SMOOTH)
    (tmp_path / name).chmod(0o444)
    if sys.platform == "win32":
        with pytest.raises(UserError, match="cannot be written"), create_volume(path, SHAPE, "uint8", overwrite=True):
            pass
        return
    with create_volume(path, SHAPE, "uint8", overwrite=True):
        pass
    assert (open_volume(path).read() == 0).all()
    assert len(list(tmp_path.iterdir())) == 1


PROGRAM = """
import resource, sys
import numpy as np
from mitoseg.errors import UserError
from mitoseg.geometry import Box, slabs
from mitoseg.volumes import create_volume

resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
rng = np.random.default_rng(0)
for path in sys.argv[1:]:
    try:
        with create_volume(path, (32, 256, 256), "uint8") as writer:
            for box in slabs(Box.of_shape((32, 256, 256)), 5):
                writer.write(box, rng.integers(0, 255, box.shape, np.uint8))
    except UserError as error:
        print(error)
"""


def write_noise(path):
    rng = np.random.default_rng(0)
    with create_volume(path, NOISE_SHAPE, "uint8") as writer:
        for box in slabs(Box.of_shape(NOISE_SHAPE), 5):
            writer.write(box, rng.integers(0, 255, box.shape, np.uint8))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_file_that_may_not_grow(tmp_path):
    """A limit of the operating system stands for a full disk: the writes fail in earnest, inside the libraries."""
    words = [sys.executable, "-c", PROGRAM, *(f"{tmp_path}/{name}" for name in FORMATS)]
    run = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert run.stderr == ""
    assert run.returncode == 0  # HDF5 would crash here at the process's end
    for line, name in zip(run.stdout.splitlines(), FORMATS, strict=True):
        assert line.startswith("the disk is full")
        assert f"/{name}'" in line
    assert list(tmp_path.iterdir()) == []


class FullFile(io.FileIO):
    """A file on a disk with room for 100 kB."""

    def write(self, data):
        if self.tell() + len(memoryview(data).cast("B")) > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("name", ["a.tif", "a.mrc"])
def test_writes_that_fail(tmp_path, monkeypatch, name):
    init = FlatOutput.__init__

    def open_full(self, path, *options):
        init(self, path, *options)
        self._file.close()
        self._file = FullFile(path, "r+")

    monkeypatch.setattr(FlatOutput, "__init__", open_full)
    refused(rf"the disk is full.*{name}", write_noise, f"{tmp_path}/{name}")
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))  # at the start
    refused(rf"the disk is full.*{name}", write_noise, f"{tmp_path}/{name}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_write_or_closing_that_fails_keeps_the_old_output(tmp_path, monkeypatch, name):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail():
        with create_volume(f"{tmp_path}/{name}", NOISE_SHAPE, "uint8", overwrite=True) as writer:
            writer.write(Box((0, 0, 0), (1, 256, 256)), np.ones((1, 256, 256), np.uint8))
            full()

    with monkeypatch.context() as patch:  # some file systems tell of a full disk only when a file is closed
        if name == "a.zarr":
            patch.setattr(ZarrOutput, "close", full)
        else:
            patch.setattr("mitoseg.storage.os.fsync", full)
        refused("the disk is full", write_noise, f"{tmp_path}/{name}")
    assert list(tmp_path.iterdir()) == []
    write_noise(f"{tmp_path}/{name}")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    refused("the disk is full", fail)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def read_damaged(folder, first, stop):
    """Read some damaged files in a process of their own; what it says of each."""
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    words = [sys.executable, str(SCRIPT), str(folder), str(first), str(stop)]
    ran = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=PATIENCE, check=False)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert ran.returncode == 0, f"died at {lines[-1:]}: {ran.stderr[-2000:]}"
    assert ran.stderr == ""
    assert len(lines) == 2 * (stop - first)
    return [what | result for what, result in zip(lines[::2], lines[1::2], strict=True)]


def check_damaged(results):
    for found in results:
        assert found["kind"] in ("read", "read in part", "refused"), found
        assert "\n" not in found["text"], found
        assert found["seconds"] < SECONDS, found
        assert found["left"] == (["out.h5"] if found["kind"] == "read" else []), found
    refused = [found for found in results if found["kind"] == "refused"]
    assert len(refused) > len(results) / 2
    assert all(len(found["text"]) < 500 for found in refused)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_some_damaged_files(tmp_path):
    check_damaged(read_damaged(tmp_path, 0, QUICK))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_all_damaged_files(tmp_path):
    results = read_damaged(tmp_path, 0, COUNT)
    check_damaged(results)
    assert len({found["what"].split(":")[0] for found in results}) > 15
