"""Published files: downloaded, unpacked without trusting them, and told apart by size and sha256.

Pooch checks a file and places it; the downloader here, unlike pooch's, resumes after a cut connection. Pooch unpacks
whatever an archive holds, links and terabytes of zeros included, so that is done here as well.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import os
import re
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import pooch
import requests
from filelock import FileLock

from mitoseg.errors import UserError
from mitoseg.progress import progress as show_progress
from mitoseg.storage import open_own, scratch_folder
from mitoseg.volumes.formats import split_path
from mitoseg.volumes.stored import state_of

_log = logging.getLogger(__name__)

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that may be gone at the next try."""

_CHUNK = 1 << 16
"""Bytes that a cut connection may cost: a chunk that is not complete is lost."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that somebody publishes.

    Attributes:
        name: Name on disk.
        url: Where it is.
        sha256: Published checksum, or None.
        size: Bytes; what is checked where no checksum is published.
    """

    name: str
    url: str
    sha256: str | None = None
    size: int | None = None

    @property
    def is_archive(self) -> bool:
        """Whether the file is to be unpacked."""
        return self.name.endswith((".zip", ".tar", ".tar.gz"))

    def difference(self, size: int, sha256: str | None) -> str | None:
        """How a file at hand differs from the published one, in words; None if it does not as far as is known."""
        if self.size is not None and size != self.size:
            return f"{size} bytes instead of {self.size}"
        if self.sha256 is not None and sha256 is not None and sha256 != self.sha256:
            return f"sha256 {sha256[:12]}... instead of {self.sha256[:12]}..."
        return None


class _CutError(Exception):
    """The transfer stopped early; another try may resume from there."""


@dataclass
class ResumingDownloader:
    """A downloader for pooch that keeps what arrived in ``part`` and resumes from there (HTTP Range).

    A server that ignores the range is read from the start again. Tries that bring the file no further are counted,
    so a connection cut often, but after some progress each time, gets there.

    Attributes:
        part: Where the bytes gather; survives a failure, gone after success.
        size: Expected bytes, or None; a body of another size is removed and refused.
        retries: Tries without progress before giving up.
        wait_s: Seconds before the first new try; doubled with each further one.
        timeout_s: Seconds of silence that count as a cut connection.
        progress: Show a bar on standard error.
        resumed: True once bytes of an earlier try were kept.
    """

    part: Path
    size: int | None = None
    retries: int = 5
    wait_s: float = 1.0
    timeout_s: float = 30.0
    progress: bool = True
    resumed: bool = field(default=False, init=False)

    def __call__(self, url: str, output_file: str | os.PathLike[str], pooch: object, check_only: bool = False) -> None:
        """Download ``url`` to ``output_file``; the protocol that pooch asks for.

        Raises:
            UserError: The server refuses, does not answer, or sends another size than expected.
        """
        failures, furthest = 0, self._have()
        while True:
            try:
                self._try(url)
                break
            except (requests.RequestException, _CutError) as error:
                failures = 0 if self._have() > furthest else failures + 1
                furthest = max(furthest, self._have())
                if failures > self.retries:
                    remedy = (
                        "check the connection and run again (what arrived is kept), or name a copy with data.root="
                    )
                    raise UserError(f"the download failed ({_short(error)})", url, remedy) from error
                _log.info("%s was interrupted at %d bytes (%s); trying again", url, self._have(), _short(error))
                time.sleep(min(self.wait_s * 2 ** max(failures - 1, 0), 60))
        if self.size is not None and self._have() != self.size:
            got = self._have()
            self.part.unlink()
            remedy = f"the publisher's file has {self.size} bytes: run again, or name a copy with data.root="
            raise UserError(f"the download has {got} bytes and was removed", url, remedy)
        os.replace(self.part, output_file)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _try(self, url: str) -> None:
        """One request: append to the part, or start it again where the server sends everything."""
        have = self._have()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout_s) as response:
            if response.status_code == 416 and have:
                if self.size == have or response.headers.get("Content-Range") == f"bytes */{have}":
                    return  # the part was complete already
                self.part.unlink()
                raise _CutError("the server cannot continue the file")
            if response.status_code in _TRANSIENT:
                raise _CutError(f"HTTP {response.status_code} {response.reason}")
            if response.status_code not in (200, 206):
                what = f"the server refuses the download (HTTP {response.status_code} {response.reason})"
                raise UserError(what, url, "download the files by hand and name their folder with data.root=")
            start = _range_start(response)
            if start not in (0, have):
                self.part.unlink()
                raise _CutError("the server continues the file elsewhere")
            self.resumed |= start > 0
            self._receive(response, start)

    def _receive(self, response: requests.Response, start: int) -> None:
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else self.size
        what, show = f"downloading {self.part.name.removesuffix('.part')}", self.progress
        with (
            open(self.part, "ab" if start else "wb", opener=open_own) as file,
            show_progress(what, total, done=start, unit="bytes", show=show) as task,
        ):
            done = start
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                task.reach(done)
                if self.size is not None and done > self.size:
                    break
        if length and done < start + int(length):
            raise _CutError(f"the connection ended after {done} of {total} bytes")


def fetch(file: RemoteFile, folder: Path, *, progress: bool = True, retries: int = 5, wait_s: float = 1.0) -> Path:
    """Download a published file into a folder, unless it is there and whole, and check it.

    Processes that want the same file wait for each other.

    Args:
        file: What to get.
        folder: Where to; made if it does not exist.
        progress: Show a bar on standard error.
        retries: Tries without progress before giving up.
        wait_s: Seconds before the first new try.

    Returns:
        The path of the file, whose checksum (or size, where none is published) is the published one.

    Raises:
        UserError: The download fails, does not match (it is removed then), or cannot be written.
    """
    target = folder / file.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):
            if target.exists() and file.difference(target.stat().st_size, None):
                target.unlink()
            _retrieve(file, folder, progress=progress, retries=retries, wait_s=wait_s)
    except OSError as error:
        remedy = "free some space, or choose a folder that can be written with data.root="
        raise UserError(f"cannot store the download ({error.strerror or error})", str(target), remedy) from error
    return target


def _retrieve(file: RemoteFile, folder: Path, *, progress: bool, retries: int, wait_s: float) -> None:
    pooch.get_logger().setLevel("WARNING")  # it would tell the user to copy a hash into the code
    known_hash = f"sha256:{file.sha256}" if file.sha256 else None
    for last in (False, True):
        part = folder / f"{file.name}.part"
        downloader = ResumingDownloader(part, file.size, retries=retries, wait_s=wait_s, progress=progress)
        if not (folder / file.name).exists():
            _log.info("downloading %s", file.url)
        try:
            pooch.retrieve(file.url, known_hash, fname=file.name, path=folder, downloader=downloader)
            return
        except ValueError as error:  # pooch's word for a wrong checksum; it has removed the file
            if last or not downloader.resumed:
                remedy = f"expected sha256 {file.sha256}: run again, or name a copy with data.root="
                raise UserError("the download has a wrong checksum and was removed", file.url, remedy) from error
        _log.info("%s was continued from an older part that does not fit; starting again", file.name)


def _range_start(response: requests.Response) -> int:
    """First byte of the body: 0 for the whole file."""
    if response.status_code == 200:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _short(error: Exception) -> str:
    """An exception in a few words; those of requests run to lines."""
    name = type(error).__name__ if isinstance(error, requests.RequestException) else str(error)
    return {"ConnectTimeout": "no answer", "ReadTimeout": "no answer", "ConnectionError": "no connection"}.get(
        name, "the connection was cut" if name == "ChunkedEncodingError" else name
    )


LIMIT_BYTES = 8 * 1024**3
"""Unpacked bytes that an archive may have unless said otherwise."""

LIMIT_FILES = 100_000
"""Files that an archive may have."""

_CLUTTER = re.compile(r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$)")

_UNPACK_CHUNK = 1 << 20

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
            with _members(archive) as members, show_progress(f"unpacking {archive.name}", unit="bytes") as task:
                for count, (name, stream) in enumerate(members):
                    if count >= LIMIT_FILES:
                        raise _refusal(archive, f"holds more than {LIMIT_FILES} files")
                    target = root / _safe_name(name, archive)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("xb") as out:
                        while chunk := stream.read(_UNPACK_CHUNK):
                            left -= len(chunk)  # of what comes out, whatever the archive claims
                            if left < 0:
                                raise _refusal(archive, f"unpacks to more than {limit_bytes} bytes")
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
        remedy = "free some space, or choose a folder that can be written with data.root="
        raise UserError(f"cannot unpack into the folder ({error.strerror or error})", str(folder), remedy) from error


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


def _refusal(archive: Path, why: str) -> UserError:
    return UserError(f"refused to unpack the archive, which {why}", str(archive), "get it from its official source")


HASH_LIMIT_BYTES = 16 * 1024**3
"""Volumes larger than this are recorded by size alone: hashing them would take minutes."""


def file_of(path: str) -> Path:
    """The file or folder behind a volume's path: ``a.h5:/raw`` lies in ``a.h5``.

    >>> file_of("folder/a.h5:/raw").name, file_of("C:/a.tif").name
    ('a.h5', 'a.tif')
    """
    return Path(split_path(path)[0])


@dataclass(frozen=True)
class Fingerprint:
    """Size and checksum of what lies behind a volume's path.

    Attributes:
        path: As given to `mitoseg.volumes.open_volume`.
        bytes: Of the file, or of all files of the folder.
        sha256: Of the file, or over the names and checksums of the folder's files; None above `HASH_LIMIT_BYTES`.
    """

    path: str
    bytes: int
    sha256: str | None


def fingerprint(path: str) -> Fingerprint:
    """Measure what lies behind a volume's path.

    Raises:
        OSError: The file cannot be read.
    """
    source = file_of(path)
    files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
    total = sum(p.stat().st_size for p in files)
    if total > HASH_LIMIT_BYTES:
        return Fingerprint(path, total, None)
    sums = [_sha256(os.fspath(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    if files == [source]:
        return Fingerprint(path, total, sums[0])
    lines = (f"{p.relative_to(source).as_posix()} {found}\n" for p, found in zip(files, sums, strict=True))
    return Fingerprint(path, total, hashlib.sha256("".join(lines).encode()).hexdigest())


def checksums(provenance: Mapping[str, Any], part: str = "") -> dict[str, str]:
    """By role and place in the list, the checksums of the files of a data set, as `Splits.provenance` tells them.

    A file without one, see `HASH_LIMIT_BYTES`, is known by names, sizes and times.

    Args:
        provenance: Of the data set.
        part: Of it, such as ``train``; all of it unless given.
    """
    files = [file for file in provenance.get("files") or () if str(file["role"]).startswith(part)]
    sums = (file["sha256"] or state_of([file_of(file["path"])]) for file in files)
    return {f"{file['role']} {number}": value for number, (file, value) in enumerate(zip(files, sums, strict=True), 1)}


def changed_files(provenance: Mapping[str, Any]) -> list[str]:
    """Files of a data set, as `Splits.provenance` tells them, that are there and no longer the same."""
    found = []
    for file in provenance.get("files") or ():
        if file_of(file["path"]).exists():
            now = fingerprint(file["path"])
            found += [file["path"]] if (now.bytes, now.sha256) != (file["bytes"], file["sha256"]) else []
    return found


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, mtime_ns: int) -> str:
    """Cached for as long as the file looks unchanged: training and testing ask for the same files."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
