"""Images in OME-Zarr groups: where they lie, and which axes and voxel size each of their levels has.

image.ome.zarr          multiscales             level 0
image.ome.zarr/1        an array                level 1, with the axes and the scale that the group above states
slide.zarr              bioformats2raw.layout   its only image, slide.zarr/0
plate.zarr              plate                   its only image, plate.zarr/A/1/0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.stored import load_metadata
from mitoseg.volumes.units import voxel_size_nm

MARKS = ("zarr.json", ".zarray", ".zgroup")
_DEPTH = 3
"""How deep images lie in a group at most: plate, row, column, field."""
_MANY = 9


@dataclass(frozen=True)
class LevelHeader:
    """What an image says of one of its levels.

    Attributes:
        path: Of the array, from the image's group.
        axes: A letter for each stored axis, or None.
        voxel_size: (z, y, x) in nm, or None.
        metadata: What mitoseg wrote.
        scaled: Whether it states a scale, with a unit or without.
    """

    path: str
    axes: str | None
    voxel_size: VoxelSize | None
    metadata: Mapping[str, Any]
    scaled: bool = True


def find_image(group: zarr.Group, path: str) -> zarr.Group | None:
    """The group itself where it is an image, or the only image that lies in it; None without one."""
    if is_image(group):
        return group
    found: list[tuple[str, zarr.Group]] = []
    for item in _images_below(group, "", _DEPTH):
        found.append(item)
        if len(found) == _MANY:
            break
    if len(found) > 1:
        names = ", ".join(f"{path}/{name}" for name, _ in found[: _MANY - 1])
        more = " and more" if len(found) == _MANY else ""
        raise UserError("the group holds several images", path, f"name one: {names}{more}")
    return found[0][1] if found else None


def is_image(group: zarr.Group) -> bool:
    """Whether a group is an OME-Zarr image."""
    return _multiscales(group) is not None


def _images_below(group: zarr.Group, prefix: str, depth: int) -> Iterator[tuple[str, zarr.Group]]:
    for name, child in sorted(group.groups()):
        if is_image(child):
            yield f"{prefix}{name}", child
        elif depth > 1:
            yield from _images_below(child, f"{prefix}{name}/", depth - 1)


def _multiscales(group: zarr.Group) -> Mapping[str, Any] | None:
    """The first image of a group's metadata, of version 0.4 or 0.5."""
    attributes = group.attrs.asdict()
    ome = attributes.get("ome", attributes)
    images = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if isinstance(images, Sequence) and images and isinstance(images[0], Mapping):
        return images[0]
    return None


def level_header(group: zarr.Group, path: str | None = None) -> LevelHeader | None:
    """What an image says of its finest level, or of the level with this path; None where it has no such level."""
    image = _multiscales(group)
    assert image is not None
    for level in image["datasets"]:
        if path is None or str(level["path"]).strip("/") == path:
            axes, size = _space(image, level)
            metadata = load_metadata(group.attrs.asdict())
            return LevelHeader(str(level["path"]), axes, size, metadata, bool(_scales(image, level)))
    return None


def level_paths(group: zarr.Group) -> list[str]:
    """Where the levels of an image lie, from its group, the finest first."""
    image = _multiscales(group)
    assert image is not None
    return [str(level["path"]).strip("/") for level in image["datasets"]]


def find_levels(path: str) -> list[str]:
    """Paths of the levels of an OME-Zarr image below a folder, the finest first; none where it is no image."""
    folder = Path(path).absolute()
    if not any((folder / mark).is_file() for mark in MARKS):
        return []
    group = zarr.open(store=folder, mode="r")
    image = find_image(group, path) if isinstance(group, zarr.Group) else None
    if image is None:
        return []
    above = f"{image.path}/" if image.path else ""
    return [above + level for level in level_paths(image)]


def header_from_above(folder: Path) -> LevelHeader | None:
    """What the image around an array's folder says of it; None without an image around it that lists it."""
    folder = folder.absolute()
    for parent in folder.parents:
        if not any((parent / mark).is_file() for mark in MARKS):
            return None
        group = zarr.open(store=parent, mode="r")
        if isinstance(group, zarr.Group) and is_image(group):
            return level_header(group, folder.relative_to(parent).as_posix())
    return None


def _space(image: Mapping[str, Any], level: Mapping[str, Any]) -> tuple[str | None, VoxelSize | None]:
    """Axes and voxel size of a level: its own scale times that of all levels."""
    axes = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in image.get("axes", ())]
    letters = "".join(str(axis.get("name", "?"))[:1].lower() for axis in axes) or None
    scales = _scales(image, level)
    if letters is None or not scales or not set("yx") <= set(letters):
        return letters, None
    scale = np.prod(np.broadcast_arrays(*scales, np.ones(len(letters))), axis=0)
    places = [letters.find(a) for a in "zyx"]
    sizes, units = zip(*((scale[i], axes[i].get("unit", "")) if i >= 0 else (None, "") for i in places), strict=True)
    return letters, voxel_size_nm(sizes, units, flat="z" not in letters)


def _scales(image: Mapping[str, Any], level: Mapping[str, Any]) -> list[npt.NDArray[np.float64]]:
    """The scales of a level and of all levels, as far as they are stated."""
    transforms = [*level.get("coordinateTransformations", ()), *image.get("coordinateTransformations", ())]
    return [np.asarray(t["scale"], float) for t in transforms if t.get("type") == "scale" and "scale" in t]
