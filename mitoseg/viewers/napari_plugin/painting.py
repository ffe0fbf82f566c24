"""What is painted on an image, slice by slice in memory, and kept in a Zarr beside the image."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from mitoseg.errors import UserError
from mitoseg.storage import check_output, explain_storage_error, make_folders
from mitoseg.viewers.napari_plugin.layers import Layer, layer_name
from mitoseg.volumes.opening import stored_in

Plane = npt.NDArray[np.uint8]


def painted_path(image: Layer) -> Path:
    """Where the paint of an image lies: beside its file, or in ``~/mitoseg`` if it has none or nobody may write there.

    The options of the command that take it are ``labels=`` this path, and ``reviewed=`` what its attributes name.
    """
    name = re.sub(r"[^\w .-]", "_", image.name)
    if source := image.source.path:
        file = stored_in(source)
        root = next((part for part in reversed(file.parents) if part.suffix in (".zarr", ".n5")), file)
        name = layer_name(source) if root == file else f"{layer_name(str(root))} {file.name}"
        if os.access(root.absolute().parent, os.W_OK):
            return root.absolute().parent / f"{name}_painted.zarr"
        name += f"_{zlib.crc32(source.encode()):08x}"  # several folders may hold images of that name
    return Path.home() / "mitoseg" / f"{name}_painted.zarr"


class Paint:
    """Labels (z, y, x) of which only painted slices take memory and space; an array to napari.

    ``changed`` is called when something is to be saved. A slice is one file of the Zarr, written whole or not at all;
    empty slices have none.
    """

    ndim, dtype = 3, np.dtype(np.uint8)

    def __init__(self, path: Path, shape: tuple[int, ...], changed: Callable[[], None] = lambda: None) -> None:
        self.path, self.shape, self.changed = path, shape, changed
        self.reviewed: set[int] = set()
        self._planes: dict[int, Plane] = {}
        self._unsaved: set[int] = set()
        self._stored: Any = None
        if not path.exists():
            check_output(path, overwrite=True)
            return
        try:
            self._stored = zarr.open_array(path, mode="r+")
            slices = [int(file.parts[-3]) for file in path.glob("c/*/0/0")]
            self._planes = {z: self._stored[z] for z in slices}
            self.reviewed = {int(z) for z in self._stored.attrs.get("reviewed", [])}
        except Exception as error:  # Zarr raises of many kinds where it cannot read
            raise UserError("cannot read what was painted", path, "move it to another folder") from error
        if self._stored.shape != shape or self._stored.dtype != self.dtype:
            what = f"what was painted is of another image, of {self._stored.shape} voxels"
            raise UserError(what, path, "rename the image layer, or move that folder")

    @property
    def slices(self) -> list[int]:
        """The painted ones."""
        return sorted(z for z, plane in self._planes.items() if plane.any())

    def review(self, z: int) -> None:
        """A slice is complete, or no longer."""
        self.reviewed ^= {z}
        self.changed()

    def save(self) -> None:
        """Write the slices that have changed, and which ones are reviewed."""
        try:
            if self._stored is None:
                if not (self._unsaved or self.reviewed):
                    return
                make_folders(self.path.parent)
                chunks = (1, *self.shape[1:])
                self._stored = zarr.create_array(self.path, shape=self.shape, chunks=chunks, dtype="u1", fill_value=0)
            while self._unsaved:
                z = min(self._unsaved)
                self._stored[z] = self._planes[z]
                self._unsaved.discard(z)
            if self._stored.attrs.get("reviewed") != sorted(self.reviewed):
                self._stored.attrs["reviewed"] = sorted(self.reviewed)
        except OSError as error:
            raise explain_storage_error(error, self.path) from error

    def __getitem__(self, index: Any) -> Plane:  # noqa: ANN401 (numbers, slices or arrays)
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(first, slice):
            return np.stack([self._plane(z)[rest] for z in range(self.shape[0])[first]])
        if np.ndim(first) == 0:
            return self._plane(int(first))[rest].copy()
        found = np.zeros(np.shape(first), self.dtype)
        for z in np.unique(first):
            found[first == z] = self._plane(int(z))[tuple(axis[first == z] for axis in rest)]
        return found

    def __setitem__(self, index: Any, values: Any) -> None:  # noqa: ANN401 (as above)
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) else (index, ())
        if isinstance(first, slice):
            for i, z in enumerate(range(self.shape[0])[first]):
                self._set(z, rest, values[i] if np.ndim(values) == 3 else values)
        elif np.ndim(first) == 0:
            self._set(int(first), rest, values)
        else:
            each = np.broadcast_to(values, np.shape(first))
            for z in np.unique(first):
                self._set(int(z), tuple(axis[first == z] for axis in rest), each[first == z])
        self.changed()

    def _plane(self, z: int) -> Plane:
        return self._planes[z] if z in self._planes else np.broadcast_to(np.uint8(0), self.shape[1:])

    def _set(self, z: int, place: tuple[Any, ...], values: Any) -> None:  # noqa: ANN401 (a number or an array)
        self._planes.setdefault(z, np.zeros(self.shape[1:], self.dtype))[place] = values
        self._unsaved.add(z)
