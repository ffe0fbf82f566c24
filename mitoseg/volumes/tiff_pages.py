"""Reading TIFF stacks that cannot be mapped into memory, strip by strip (or tile by tile)."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import RLock

import numpy as np
import tifffile

from mitoseg.volumes.base import Array
from mitoseg.volumes.reading import PageCache
from mitoseg.volumes.stored import Header, StoredVolume
from mitoseg.volumes.tiff_stack import Rows, Stack

_THREADS = min(4, os.cpu_count() or 1)


@dataclass
class _Handle:
    """An open file: of one process, one thread at a time."""

    tif: tifffile.TiffFile
    stack: Stack
    pid: int = field(default_factory=os.getpid)
    lock: RLock = field(default_factory=RLock)


class PagedTiff(StoredVolume):
    """A compressed or scattered TIFF; what was decoded last is kept, so that slabs do not decode a page twice."""

    def __init__(
        self,
        path: str,
        header: Header,
        files: Sequence[str],
        *,
        axes: str | None = None,
        voxel_size: Sequence[float] | None = None,
    ) -> None:
        super().__init__(path, header, axes=axes, voxel_size=voxel_size)
        self._file, self._files = os.path.abspath(path), [os.path.abspath(file) for file in files]
        self._cache = PageCache()
        self._opened: _Handle | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    def files(self) -> list[Path]:
        """All files of a set, as OME-TIFF knows them."""
        return [Path(file) for file in self._files]

    def _handle(self) -> _Handle:
        """The open file; a forked process shares the position in it, so every process opens its own."""
        handle = self._opened
        if handle is None or handle.pid != os.getpid():
            tif = tifffile.TiffFile(self._file)
            weakref.finalize(self, tif.close)
            handle = self._opened = _Handle(tif, Stack(tif))
        return handle

    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        handle = self._handle()
        stack = handle.stack
        k = stack.split
        counted = np.ix_(*(np.arange(s.start, s.stop) for s in index[:k]))
        numbers = np.ravel_multi_index(counted, stack.shape[:k]) if k else np.zeros((), int)
        inside = tuple(s.stop - s.start for s in index[k:])
        result = np.empty((numbers.size, *inside), stack.dtype)
        if stack.grey:
            of = dict(zip(stack.axes[k:], index[k:], strict=True))
            rows = Rows(of["Y"].start, of["Y"].stop, of["X"].start, of["X"].stop)
            planes = result.reshape(numbers.size, rows.y1 - rows.y0, rows.x1 - rows.x0)
            self._read_grey(handle, numbers.ravel().tolist(), rows, planes)
        else:
            for part, number in zip(result, numbers.ravel().tolist(), strict=True):
                with handle.lock:
                    page = self._cache.get(number, partial(stack.read_page, number))
                part[...] = page.reshape(stack.shape[k:])[index[k:]]
        return result.reshape(*numbers.shape, *inside)

    def _read_grey(self, handle: _Handle, numbers: Sequence[int], rows: Rows, planes: Array) -> None:
        """Fill ``planes`` with a rectangle of some grey pages."""
        segments: list[tuple[Array, int, int, int]] = []
        height, width = handle.stack.keyframe.chunks[:2]
        for plane, number in zip(planes, numbers, strict=True):
            with handle.lock:
                found = handle.stack.read_rows(number, rows)
            if found is not None:
                plane[...] = found
                continue
            segments += [
                (plane, number, j, i)
                for j in range(rows.y0 // height, math.ceil(rows.y1 / height))
                for i in range(rows.x0 // width, math.ceil(rows.x1 / width))
            ]
        fill = partial(self._fill, handle, rows)
        if sum((number, j, i) not in self._cache for _, number, j, i in segments) < 4 or _THREADS == 1:
            for segment in segments:
                fill(segment)
            return
        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(fill, segments):  # raises what a thread raised
                pass

    def _fill(self, handle: _Handle, rows: Rows, segment: tuple[Array, int, int, int]) -> None:
        """Decode the strip or tile (j, i) of a page and put its part of the rectangle into the page's plane."""
        plane, number, j, i = segment
        height, width = handle.stack.keyframe.chunks[:2]
        image_yx = self._cache.get((number, j, i), partial(self._decode, handle, number, j, i))
        y, x = max(rows.y0, j * height), max(rows.x0, i * width)
        part = image_yx[y - j * height : rows.y1 - j * height, x - i * width : rows.x1 - i * width]
        plane[y - rows.y0 :, x - rows.x0 :][: part.shape[0], : part.shape[1]] = part

    def _decode(self, handle: _Handle, number: int, j: int, i: int) -> Array:
        index = j * handle.stack.keyframe.chunked[1] + i
        with handle.lock:
            found = handle.stack.read_segment(number, index)
        return handle.stack.decode_segment(found, index)
