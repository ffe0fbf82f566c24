"""Which chunks of a Zarr array are on the disk: one that is not there reads as the fill value, without a word.

The folder is listed once, because zarr's own count looks each chunk up in a list of all.

    array    6 x 4 chunks
    shards   3 x 2, a file each:  [chunk chunk | index]     the index says which chunks a shard lacks
                                  [chunk       | index]
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore

Coordinates = tuple[int, ...]
_EMPTY = 2**64 - 1
_CRC_BYTES = 4


def count_chunks(array: zarr.Array[Any]) -> tuple[int, int]:
    """How many chunks of an array in a folder are on the disk, and how many there should be.

    Of an array in shards, the chunks inside them are counted.
    """
    count = math.prod(_parts(array.shape, array.chunks))
    files = _files(array, _parts(array.shape, array.shards or array.chunks))
    if array.shards is None:
        return sum(1 for _ in files), count
    return sum(_in_shard(array, path, coordinates) for path, coordinates in files), count


def _parts(shape: Coordinates, part: Coordinates) -> Coordinates:
    """How many parts cover a shape, along each axis."""
    return tuple(-(-n // p) for n, p in zip(shape, part, strict=True))


def _files(array: zarr.Array[Any], grid: Coordinates) -> Iterator[tuple[str, Coordinates]]:
    """The files of chunks or shards, with their places in the grid."""
    assert isinstance(array.store, LocalStore)
    root = Path(array.store.root, array.path)
    for folder, _, names in os.walk(root, followlinks=True):
        prefix = Path(folder).relative_to(root).as_posix()
        for name in names:
            key = name if prefix == "." else f"{prefix}/{name}"
            coordinates = tuple(int(number) for number in re.findall(r"\d+", key))
            inside = len(coordinates) == len(grid) and all(i < n for i, n in zip(coordinates, grid, strict=True))
            if inside and array.metadata.encode_chunk_key(coordinates) == key:
                yield os.path.join(folder, name), coordinates


def _in_shard(array: zarr.Array[Any], path: str, coordinates: Coordinates) -> int:
    """How many chunks of a shard are there, of those inside the array; all, where its index is of an unknown kind."""
    assert array.shards is not None
    per, grid = _parts(array.shards, array.chunks), _parts(array.shape, array.chunks)
    inside = tuple(slice(min(p, n - i * p)) for i, p, n in zip(coordinates, per, grid, strict=True))
    index = _index(array, path, per)
    if index is None:
        return math.prod(s.stop for s in inside)
    return int(np.count_nonzero((index != _EMPTY).any(-1)[inside]))


def _index(array: zarr.Array[Any], path: str, per: Coordinates) -> Any:  # noqa: ANN401 (an array or None)
    """Offset and length of each chunk of a shard; no chunks where the file is too short for its index."""
    codec = getattr(array.metadata, "codecs", (None,))[0]
    if not isinstance(codec, ShardingCodec):
        return None
    first, *rest = codec.index_codecs
    if not isinstance(first, BytesCodec) or any(not isinstance(c, Crc32cCodec) for c in rest):
        return None
    size = 16 * math.prod(per)
    total = size + _CRC_BYTES * len(rest)
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        file.seek(0 if codec.index_location.value == "start" else max(length - total, 0))
        data = file.read(size)
    if length < total:
        return np.full((*per, 2), _EMPTY, np.uint64)
    big = first.endian is not None and first.endian.value == "big"
    return np.frombuffer(data, ">u8" if big else "<u8").reshape(*per, 2)
