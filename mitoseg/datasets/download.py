"""Published files: downloaded, unpacked without trusting them, and told apart by size and sha256.

Pooch, whose cache folder is used, neither continues a download that was cut nor refuses archives with links or
terabytes of zeros.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import os
import re
import stat
import time
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import requests
from filelock import FileLock

from mitoseg.errors import UserError
from mitoseg.progress import progress
from mitoseg.storage import open_own, scratch_folder
from mitoseg.volumes.opening import split_path
from mitoseg.volumes.stored import state_of

_log = logging.getLogger(__name__)
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may be gone at the next try
_CHUNK = 1 << 16  # bytes that a cut connection may cost: a chunk that is not complete is lost
LIMIT_BYTES, LIMIT_FILES = 8 * 1024**3, 100_000  # that an archive may hold
HASH_LIMIT_BYTES = 16 * 1024**3  # larger volumes are recorded by size alone: hashing them would take minutes
_WRITABLE = "free some space, or choose a folder that can be written with data.root="


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name on disk, where it is, and its sha256 or else its size in bytes, as published."""

    name: str
    url: str
    sha256: str | None = None
    size: int | None = None

    def difference(self, size: int, sha256: str | None) -> str | None:
        """How a file at hand differs from the published one, in words; None if it does not as far as is known."""
        if self.size is not None and size != self.size:
            return f"{size} bytes instead of {self.size}"
        if self.sha256 is not None and sha256 is not None and sha256 != self.sha256:
            return f"sha256 {sha256[:12]}... instead of {self.sha256[:12]}..."
        return None


class _CutError(Exception):
    """The transfer stopped early; another try may resume from there."""


def fetch(file: RemoteFile, folder: Path, *, retries: int = 5, wait_s: float = 1.0) -> Path:
    """Download a published file into a folder, unless it is there and whole, and check its checksum or size.

    What a cut connection leaves in ``NAME.part`` is continued, also by the next run. Only tries that bring the file
    no further count against ``retries``; the wait before the next one, ``wait_s`` at first, doubles with each.
    Processes that want the same file wait for each other.
    """
    target, part = folder / file.name, folder / f"{file.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):
            if target.exists():
                if _difference(file, target) is None:
                    return target
                target.unlink()
            _log.info("downloading %s", file.url)
            for last in (False, True):
                resumed = _download(file, part, retries, wait_s)
                difference = _difference(file, part)
                if difference is None:
                    os.replace(part, target)
                    break
                part.unlink()
                if last or not resumed:
                    remedy = "run again, or name a copy with data.root="
                    raise UserError(f"the download has {difference} and was removed", file.url, remedy)
                _log.info("%s was continued from an older part that does not fit; starting again", file.name)
    except OSError as error:
        what = f"cannot store the download ({error.strerror or error})"
        raise UserError(what, str(target), _WRITABLE) from error
    return target


def _difference(file: RemoteFile, path: Path) -> str | None:
    state = path.stat()
    sha256 = _sha256(os.fspath(path), state.st_size, state.st_mtime_ns) if file.sha256 else None
    return file.difference(state.st_size, sha256)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _download(file: RemoteFile, part: Path, retries: int, wait_s: float) -> bool:
    """Fill ``part``; whether bytes of an earlier try were kept."""
    failures, furthest, resumed = 0, _size(part), False
    while True:
        resumed |= _size(part) > 0
        try:
            _request(file, part)
            return resumed
        except (requests.RequestException, _CutError) as error:
            failures = 0 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            reasons = {"ConnectTimeout": "no answer", "ReadTimeout": "no answer", "ConnectionError": "no connection"}
            reasons["ChunkedEncodingError"] = "the connection was cut"
            kind = type(error).__name__
            reason = str(error) if isinstance(error, _CutError) else reasons.get(kind, kind)  # theirs run to lines
            if failures > retries:
                remedy = "check the connection and run again to resume it, or name a copy with data.root="
                raise UserError(f"the download failed ({reason})", file.url, remedy) from error
            _log.info("%s was interrupted at %d bytes (%s); trying again", file.url, _size(part), reason)
            time.sleep(min(wait_s * 2 ** max(failures - 1, 0), 60))


def _request(file: RemoteFile, part: Path) -> None:
    """Append to the part what one request brings, or start it again where the server sends everything."""
    have = _size(part)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=30) as response:
        status, sent = response.status_code, response.headers.get("Content-Range", "")
        if status == 416 and have and (file.size == have or sent == f"bytes */{have}"):
            return  # the part was complete already
        if status in _TRANSIENT:
            raise _CutError(f"HTTP {status} {response.reason}")
        if (status == 416 and have) or (status == 206 and not sent.startswith(f"bytes {have}-")):
            part.unlink(missing_ok=True)
            raise _CutError("the server cannot continue the file")
        if status not in (200, 206):
            what = f"the server refuses the download (HTTP {status} {response.reason})"
            raise UserError(what, file.url, "download the files by hand and name their folder with data.root=")
        done = start = have if status == 206 else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else file.size
        with (
            open(part, "ab" if start else "wb", opener=open_own) as out,
            progress(f"downloading {file.name}", total, done=start, unit="bytes") as task,
        ):
            for chunk in response.iter_content(_CHUNK):
                out.write(chunk)
                done += len(chunk)
                task.reach(done)
                if file.size is not None and done > file.size:
                    break
        if length and done < start + int(length):
            raise _CutError(f"the connection ended after {done} of {total} bytes")


_CLUTTER = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)")
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # an unknown compression
    RuntimeError,  # a password
)


def unpack(archive: Path, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
    """Unpack a zip archive into a new folder, which appears only when all of it is there.

    Refused are absolute paths, ``..``, drive letters, links, devices, and archives that grow beyond the limit,
    whatever sizes they claim. Clutter of macOS and Windows is left out.
    """

    def refuse(why: str) -> NoReturn:
        what = f"refused to unpack the archive, which {why}"
        raise UserError(what, str(archive), "get it from its official source")

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not zipfile.is_zipfile(archive):
            raise UserError("not a zip archive", str(archive), "remove it and run again")
        with (
            scratch_folder(folder) as temporary,
            zipfile.ZipFile(archive) as file,
            progress(f"unpacking {archive.name}", unit="bytes") as task,
        ):
            root, left = temporary / folder.name, limit_bytes
            root.mkdir()
            infos = [info for info in file.infolist() if not info.is_dir() and not _CLUTTER.search(info.filename)]
            if len(infos) > LIMIT_FILES:
                refuse(f"holds more than {LIMIT_FILES} files")
            for info in infos:
                name = info.filename
                parts = name.replace("\\", "/").split("/")
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                    refuse(f"holds a link or device, {name!r}")
                if parts[0] == "" or ":" in name or "\0" in name or ".." in parts:
                    refuse(f"holds a path that leaves the folder, {name!r}")
                target = root.joinpath(*(part for part in parts if part not in ("", ".")))
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out, file.open(info) as stream:
                    while chunk := stream.read(1 << 20):
                        left -= len(chunk)  # of what comes out, whatever the archive claims
                        if left < 0:
                            refuse(f"unpacks to more than {limit_bytes} bytes")
                        out.write(chunk)
                task.reach(limit_bytes - left)
            try:
                root.replace(folder)
            except OSError:
                if not folder.is_dir():  # it is there when another process was faster
                    raise
    except _DAMAGED as error:
        raise UserError(f"cannot unpack the archive ({error})", str(archive), "remove it and run again") from error
    except OSError as error:
        what = f"cannot unpack into the folder ({error.strerror or error})"
        raise UserError(what, str(folder), _WRITABLE) from error


def file_of(path: str) -> Path:
    """The file or folder behind a volume's path: ``a.h5:/raw`` lies in ``a.h5``."""
    return Path(split_path(path)[0])


def fingerprint(path: str) -> dict[str, Any]:
    """The path, bytes and sha256 of the file or folder behind a volume's path.

    The checksum of a folder is over the names and checksums of its files; None above `HASH_LIMIT_BYTES`.
    """
    source = file_of(path)
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    found: dict[str, Any] = {"path": path, "bytes": sum(p.stat().st_size for p in files), "sha256": None}
    if found["bytes"] <= HASH_LIMIT_BYTES:
        sums = [_sha256(os.fspath(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        lines = (f"{p.relative_to(source).as_posix()} {one}\n" for p, one in zip(files, sums, strict=True))
        of_folder = hashlib.sha256("".join(lines).encode()).hexdigest()
        found["sha256"] = sums[0] if files == [source] else of_folder
    return found


def checksums(provenance: Mapping[str, Any], part: str = "") -> dict[str, str]:
    """By role and place in the list, the checksums of the files in a data set's `Splits.provenance`.

    ``part`` selects roles by their beginning, such as ``train``. A file without a checksum, see `HASH_LIMIT_BYTES`,
    is known by names, sizes and times.
    """
    files = [file for file in provenance.get("files") or () if str(file["role"]).startswith(part)]
    sums = (file["sha256"] or state_of([file_of(file["path"])]) for file in files)
    return {f"{file['role']} {number}": value for number, (file, value) in enumerate(zip(files, sums, strict=True), 1)}


def changed_files(provenance: Mapping[str, Any]) -> list[str]:
    """Files in a data set's `Splits.provenance` that are there and no longer the same."""
    there = [file for file in provenance.get("files") or () if file_of(file["path"]).exists()]
    return [file["path"] for file in there if not fingerprint(file["path"]).items() <= file.items()]


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Cached for as long as the file looks unchanged: training and testing ask for the same files."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
