"""Unpack zip and tar archives from the net without trusting them."""

from __future__ import annotations

import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

from mitoseg.errors import UserError
from mitoseg.progress import progress
from mitoseg.storage import scratch_folder

LIMIT_BYTES = 8 * 1024**3
"""Unpacked bytes that an archive may have unless said otherwise."""
LIMIT_FILES = 100_000
"""Files that an archive may have."""
_CLUTTER = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)")
_CHUNK = 1 << 20
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # a zip with a password
)
Members = Generator[tuple[str, IO[bytes]], None, None]


def unpack(archive: Path, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Unpack a zip or tar archive into a new folder, which appears only when all of it is there.

    Refused are absolute paths, ``..``, drive letters, links, devices, and archives that grow beyond the limit,
    whatever sizes they claim. Clutter of macOS and Windows is left out.

    Args:
        archive: A .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz file.
        folder: Where to; must not exist.
        limit_bytes: Unpacked bytes at most.

    Raises:
        UserError: The archive is damaged or hostile, or the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder) as temporary:
            root, left = temporary / folder.name, limit_bytes
            root.mkdir()
            with _members(archive) as members, progress(f"unpacking {archive.name}", unit="bytes") as task:
                for count, (name, stream) in enumerate(members):
                    if count >= LIMIT_FILES:
                        raise _refusal(archive, f"holds more than {LIMIT_FILES} files")
                    target = root / _safe_name(name, archive)
                    left -= _copy(stream, target, left, archive, limit_bytes)
                    task.reach(limit_bytes - left)
            _appear(root, folder)
    except _DAMAGED as error:
        raise UserError(f"cannot unpack the archive ({error})", str(archive), "remove it and run again") from error
    except OSError as error:
        remedy = "free some space, or choose a folder that can be written with data.root="
        raise UserError(f"cannot unpack into the folder ({error.strerror or error})", str(folder), remedy) from error


def _appear(complete: Path, folder: Path) -> None:
    try:
        complete.replace(folder)
    except OSError:
        if not folder.is_dir():  # it is there when another process was faster
            raise


@contextmanager
def _members(archive: Path) -> Iterator[Members]:
    """The archive's files as pairs of name and stream."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file, closing(_zip_members(file, archive)) as members:
            yield members
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar, closing(_tar_members(tar, archive)) as members:
            yield members
    else:
        raise UserError("not a zip or tar archive", str(archive), "remove it and run again")


def _zip_members(file: zipfile.ZipFile, archive: Path) -> Members:
    for info in file.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refusal(archive, f"holds a link or device, {info.filename!r}")
        if not info.is_dir() and not _CLUTTER.search(info.filename):
            with file.open(info) as stream:
                yield info.filename, stream


def _tar_members(tar: tarfile.TarFile, archive: Path) -> Members:
    for info in tar:
        if not info.isreg() and not info.isdir():
            raise _refusal(archive, f"holds a link or device, {info.name!r}")
        stream = None if _CLUTTER.search(info.name) else tar.extractfile(info)
        if stream is not None:
            with stream:
                yield info.name, stream


def _safe_name(name: str, archive: Path) -> Path:
    """The member's name as a path that stays below the folder on every system."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ":" in name or "\0" in name or ".." in parts:
        raise _refusal(archive, f"holds a path that leaves the folder, {name!r}")
    return Path(*[part for part in parts if part not in ("", ".")])


def _copy(stream: IO[bytes], target: Path, left: int, archive: Path, limit: int) -> int:
    """Copy one file and return its bytes; counts what comes out, not what the archive claims."""
    target.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    with target.open("xb") as out:
        while chunk := stream.read(_CHUNK):
            done += len(chunk)
            if done > left:
                raise _refusal(archive, f"unpacks to more than {limit} bytes")
            out.write(chunk)
    return done


def _refusal(archive: Path, why: str) -> UserError:
    return UserError(f"refused to unpack the archive, which {why}", str(archive), "get it from its official source")
