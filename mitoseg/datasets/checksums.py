"""What exactly was used: size and sha256 of the files behind a volume."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mitoseg.volumes.hdf5 import split_dataset
from mitoseg.volumes.opening import DATASET_SUFFIXES
from mitoseg.volumes.stored import state_of

HASH_LIMIT_BYTES = 16 * 1024**3
"""Volumes larger than this are recorded by size alone: hashing them would take minutes."""


def file_of(path: str) -> Path:
    """The file or folder behind a volume's path: ``a.h5:/raw`` lies in ``a.h5``.

    >>> file_of("folder/a.h5:/raw").name, file_of("C:/a.tif").name
    ('a.h5', 'a.tif')
    """
    parts = split_dataset(path, DATASET_SUFFIXES)
    return Path(parts[0] if parts else path)


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
    return Fingerprint(path, total, _checksum(source, files) if total <= HASH_LIMIT_BYTES else None)


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


def _checksum(source: Path, files: list[Path]) -> str:
    if files == [source]:
        return _sha256(source)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(source).as_posix()} {_sha256(file)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    state = path.stat()
    return _sha256_of_state(os.fspath(path), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256_of_state(path: str, size: int, mtime_ns: int) -> str:
    """Cached for as long as the file looks unchanged: training and testing ask for the same files."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
