"""The common part of all volumes in files: checks at opening, boxes to stored indices, metadata that mitoseg wrote."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.axes import Layout, colour_codes, grey, resolve_axes
from mitoseg.volumes.base import Array, Volume, VolumeInfo, VoxelSize
from mitoseg.volumes.reading import reading
from mitoseg.volumes.units import check_voxel_size

logger = logging.getLogger(__name__)
_LARGE_PART = 64 * 2**20
"""Smaller parts are among what a reader takes anyhow."""
REFILL = "restore them, or give missing_chunks=fill if they are meant to be empty"
"""What to do about chunks that are missing."""

MANY_FILES, SAMPLED_FILES = 200_000, 20_000
"""Of a volume of more files than the first, only so many are looked at to notice a change; see `state_of`."""


@dataclass(frozen=True)
class Header:
    """What a file says of its volume, in the file's own order of axes.

    Attributes:
        shape: As stored, all axes.
        dtype: As stored.
        axes: What the file says its axes are (`resolve_axes`), or None.
        voxel_size: (z, y, x) in nm, or None.
        metadata: What mitoseg wrote.
        flipped: The bits of a voxel, an unsigned number or a boolean, that the file stores inverted.
        part_bytes: What the smallest part takes that is decoded as a whole: a chunk, a block, a strip; 0 for none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axes: str | None = None
    voxel_size: VoxelSize | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    flipped: int = 0
    part_bytes: int = 0


class StoredVolume(Volume):
    """A volume in a file; subclasses read a box of the stored array.

    Args:
        path: As the user wrote it.
        header: What the file says.
        axes: What the user says of the axes, or None.
        voxel_size: What the user says, (z, y, x) in nm; it comes before the file's.

    Raises:
        UserError: The volume is empty, its axes are ambiguous, or its voxels are no real numbers.
    """

    def __init__(
        self, path: str, header: Header, *, axes: str | None = None, voxel_size: Sequence[float] | None = None
    ) -> None:
        check_dtype(path, header.dtype)
        self._layout: Layout = resolve_axes(path, header.shape, header.axes, axes)
        self._reduce = grey
        size = header.voxel_size if voxel_size is None else check_voxel_size(voxel_size)
        dtype = header.dtype.newbyteorder("=")
        self._part_bytes = header.part_bytes
        self._flipped = dtype.type(header.flipped) if header.flipped else None
        super().__init__(VolumeInfo(path, self._layout.shape_zyx, dtype, size, dict(header.metadata)))
        if self._layout.colour:
            logger.info("%s: colour reduced to grey, the largest of red, green and blue", path)

    def scratch_bytes(self, box: Box) -> int:
        """A chunk or strip and what it is copied to, where it is large; see `Volume.scratch_bytes`."""
        return 2 * self._part_bytes if self._part_bytes > _LARGE_PART else 0

    def as_labels(self) -> Volume:
        """See `Volume.as_labels`."""
        if not self._layout.colour or self.dtype.kind != "u":
            return self
        labels = copy(self)
        labels._reduce = colour_codes
        labels.info = replace(self.info, dtype=np.dtype(np.uint32))
        return labels

    def read(self, box: Box | None = None) -> Array:
        """Read one box; see `Volume.read`."""
        box = self.check_box(box)
        if not box.size:
            return np.empty(box.shape, self.dtype)
        with reading(self.path):
            stored = self._read_stored(self._layout.index(box))
            stored = stored if self._flipped is None else stored ^ self._flipped
            image_zyx = self._layout.arrange(stored, self._reduce)
        return np.ascontiguousarray(image_zyx, dtype=self.dtype)

    def files(self) -> list[Path]:
        """Files, and folders with all that is in them, that hold the voxels or say what they mean."""
        return [Path(self.path)]

    def state(self) -> str:
        """A checksum over names, sizes and times of all `files`; see `Volume.state`.

        Raises:
            UserError: They cannot be read.
        """
        with reading(self.path):
            return state_of(self.files())

    @abstractmethod
    def _read_stored(self, index: tuple[slice, ...]) -> Array:
        """Read part of the stored array: slices with bounds, in the stored order of axes."""


def state_of(places: Iterable[Path]) -> str:
    """A checksum over names, sizes and times of files, and of all files below folders; hidden ones are left out.

    Of more than `MANY_FILES`, which take minutes to ask for on a network, these count: the names of all, the times of
    all folders (in which a file appears, goes or is replaced), files of metadata, and `SAMPLED_FILES` of the others,
    always the same ones.
    """
    files: list[str] = []
    for place in {os.path.abspath(place) for place in places}:
        files += [] if os.path.isdir(place) else [place]
        for folder, _, names in os.walk(place, followlinks=True):
            files += [os.path.join(folder, name) for name in names if name[0] != "." or name[:2] == ".z"]
    files = looked = sorted(files)
    if len(files) > MANY_FILES:
        metadata = [file for file in files if file.endswith(("json", ".zarray", ".zattrs", ".zgroup"))]
        folders = sorted({os.path.dirname(file) for file in files})
        looked = [*folders, *metadata, *random.Random(0).sample(files, SAMPLED_FILES)]
    digest = hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape"))
    for file in looked:
        digest.update(_look(file).encode())
    return digest.hexdigest()[:16]


def _look(file: str) -> str:
    """Size and time; that it is not there is told as well."""
    try:
        state = os.stat(file)
    except FileNotFoundError:
        return "missing\n"
    return f"{state.st_size} {state.st_mtime_ns}\n"


def check_dtype(path: str, dtype: np.dtype[Any]) -> None:
    """Refuse voxels that are no real numbers.

    Raises:
        UserError: Complex numbers, texts, records.
    """
    if dtype.kind == "c":
        raise UserError("the voxels are complex numbers", path, "give their magnitude or real part")
    if dtype.kind not in "buif":
        raise UserError(f"the voxels are no numbers but {dtype}", path, "give 8 or 16 bit integers or floats")


def check_multiset(path: str, attributes: Mapping[str, Any]) -> None:
    """Refuse Paintera's label multisets, whose blocks hold lists of labels and not voxels.

    Raises:
        UserError: They are that.
    """
    if attributes.get("isLabelMultiset"):
        remedy = "export them with paintera-conversion-helper as scalar labels (uint64)"
        raise UserError("the labels are a multiset of Paintera", path, remedy)


def dump_metadata(metadata: Mapping[str, Any]) -> str:
    """Mitoseg's metadata as text for a file's header."""
    return json.dumps({"mitoseg": dict(metadata)})


def load_metadata(text: object) -> dict[str, Any]:
    """Mitoseg's metadata from a file's header; empty where the text is something else."""
    try:
        data = json.loads(text) if isinstance(text, str | bytes) else text
    except ValueError:
        return {}
    found = data.get("mitoseg") if isinstance(data, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}
