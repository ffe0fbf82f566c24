"""A disk that fills up: one line, no output, no rubbish, and no crash afterwards."""

import errno
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from made_files import refused

from mitoseg.geometry import Box, slabs
from mitoseg.volumes import create_volume
from mitoseg.volumes.stored import FlatOutput

FORMATS = ["a.tif", "a.h5", "a.zarr", "a.mrc"]
FLAT = ["a.tif", "a.mrc"]
SHAPE = (32, 256, 256)

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
    with create_volume(path, SHAPE, "uint8") as writer:
        for box in slabs(Box.of_shape(SHAPE), 5):
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


@pytest.mark.parametrize("name", FLAT)
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
def test_a_write_that_fails_keeps_the_old_output(tmp_path, monkeypatch, name):
    write_noise(f"{tmp_path}/{name}")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def fail():
        with create_volume(f"{tmp_path}/{name}", SHAPE, "uint8", overwrite=True) as writer:
            writer.write(Box((0, 0, 0), (1, 256, 256)), np.ones((1, 256, 256), np.uint8))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    refused("the disk is full", fail)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", FORMATS)
def test_closing_that_fails(tmp_path, monkeypatch, name):
    """Some file systems tell of a full disk only when a file is closed."""

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "a.zarr":
        from mitoseg.volumes.zarrs import ZarrOutput

        monkeypatch.setattr(ZarrOutput, "close", fail)
    else:
        monkeypatch.setattr("mitoseg.storage.os.fsync", fail)
    refused("the disk is full", write_noise, f"{tmp_path}/{name}")
    assert list(tmp_path.iterdir()) == []
