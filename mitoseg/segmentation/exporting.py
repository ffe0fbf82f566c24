"""Meshes and skeletons of a whole volume, object by object, into a folder that appears when all are there."""

from __future__ import annotations

import colorsys
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.errors import UserError, import_extra, is_number
from mitoseg.geometry import Box
from mitoseg.segmentation.blockwise import STARTS, STOPS, count_instances
from mitoseg.segmentation.centreline import CONST, SCALE, skeletonize, swc
from mitoseg.segmentation.meshes import SMOOTHING, mesh_object
from mitoseg.storage import atomic_output, check_folder, write_json
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import ArrayVolume, Volume, VoxelSize

Progress = Callable[[int, int], None]  # takes how many objects are done, and of how many
MESH_LIST, SKELETON_LIST = "meshes.json", "skeletons.json"
"""What a folder holds, in itself; a folder without one is never replaced."""


@dataclass(frozen=True)
class MeshRecord:
    """What ``meshes.json`` says of a mesh; one that the volume's border cuts (``touches_border``) is closed there."""

    id: int
    vertices: int
    faces: int
    volume_nm3: float
    surface_nm2: float  # cut faces included
    touches_border: bool
    is_closed: bool  # watertight


@dataclass(frozen=True)
class SkeletonRecord:
    """What ``skeletons.json`` says of a skeleton."""

    id: int
    points: int
    ends: int  # points with one neighbour
    junctions: int  # points with more than two
    length_nm: float  # of all lines
    touches_border: bool


def export_meshes(
    instances: Volume,
    folder: Path | str,
    *,
    formats: Sequence[str] = ("ply",),
    voxel_size: Sequence[float] | None = None,
    ids: Iterable[int] | None = None,
    reduction: float = 10.0,
    smoothing: int = SMOOTHING,
    min_volume: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[MeshRecord]:
    """Write the surface of every instance (or of ``ids``) of at least ``min_volume`` nm^3.

    The folder, which appears when all files are written, gets ``<id>.ply`` and ``<id>.obj``, one ``instances.glb``, as
    ``formats`` asks, and ``meshes.json`` with a `MeshRecord` of each. One object is in memory at a time; for GLB the
    simplified meshes are kept until the end. ``voxel_size`` (z, y, x) in nm replaces the volume's; ``reduction`` is
    how many times fewer faces, 1 keeps all; after 0 rounds of ``smoothing`` the steps of the voxels stay.
    ``overwrite`` replaces an earlier folder of meshes alone.
    """
    formats = check_meshes(formats, reduction)
    _check_number("min_volume", min_volume, 0)
    if type(smoothing) is not int or smoothing < 0:
        raise UserError("smoothing is not a number of rounds", smoothing, "give 0 or more, such as smoothing=10")
    trimesh = import_extra("trimesh", "trimesh", "mesh")
    size = known_voxel_size(instances, voxel_size)
    options = {"formats": formats, "reduction": reduction, "smoothing": smoothing, "min_volume_nm3": min_volume}
    # Vertices are float32, in nm: glTF itself speaks of metres, so a viewer may want a scale of 0.001 or less.
    scene = trimesh.Scene(metadata={"unit": "nm"})
    with _new_folder(instances, Path(folder), MESH_LIST, overwrite, size, options) as (place, records):
        for one, mask_zyx, cut in _objects(instances, size, ids, min_volume, progress):
            mesh = mesh_object(mask_zyx, size, start=one.box.start, smoothing=smoothing, reduction=reduction)
            body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
            if "obj" in formats:
                head: dict[str, Any] = {"header": f"instance {one.id}, nm", "include_normals": False}
                body.export(place / f"{one.id}.obj", file_type="obj", include_color=False, **head)
            if "ply" in formats:  # binary, float32
                body.visual.vertex_colors = _rgba(one.id)
                body.export(place / f"{one.id}.ply", file_type="ply", encoding="binary", vertex_normal=False)
            if "glb" in formats:  # a node and a mesh for each object, named by its number, with its colour
                part, name = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False), str(one.id)
                look = {"baseColorFactor": _rgba(one.id), "metallicFactor": 0.0, "roughnessFactor": 0.6}
                material = trimesh.visual.material.PBRMaterial(name=name, **look)
                part.visual = trimesh.visual.TextureVisuals(material=material)
                scene.add_geometry(part, node_name=name, geom_name=name)
            counts = (len(mesh.vertices), len(mesh.faces))
            records.append(MeshRecord(one.id, *counts, mesh.volume, mesh.area, cut, mesh.is_closed))
        if "glb" in formats:
            scene.export(place / "instances.glb", file_type="glb", include_normals=True)
    return records


def check_meshes(formats: Sequence[str], reduction: float) -> list[str]:
    """The formats, each once; refuse others, a reduction out of range, and to write without the libraries."""
    formats = [formats] if isinstance(formats, str) else list(dict.fromkeys(formats))
    if not formats or any(name not in FORMATS for name in formats):
        raise UserError("unknown formats of meshes", formats, f"choose of {', '.join(FORMATS)}")
    _check_number("reduction", reduction, 1)
    import_extra("trimesh", "trimesh", "mesh")
    if reduction > 1:
        import_extra("zmesh", "zmesh", "mesh")
    return formats


def export_skeletons(
    instances: Volume,
    folder: Path | str,
    *,
    voxel_size: Sequence[float] | None = None,
    ids: Iterable[int] | None = None,
    min_volume: float = 0.0,
    scale: float = SCALE,
    const: float = CONST,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[SkeletonRecord]:
    """Write the centre line of every instance: ``<id>.swc`` in nm, and ``skeletons.json`` with a record of each.

    For ``scale`` and ``const`` (nm) see `mitoseg.segmentation.skeletonize`, for all else `export_meshes`.
    """
    for name, value in (("min_volume", min_volume), ("scale", scale), ("const", const)):
        _check_number(name, value, 0)
    import_extra("kimimaro", "kimimaro", "mesh")
    size = known_voxel_size(instances, voxel_size)
    options = {"scale": scale, "const_nm": const, "min_volume_nm3": min_volume}
    with _new_folder(instances, Path(folder), SKELETON_LIST, overwrite, size, options) as (place, records):
        for one, mask_zyx, cut in _objects(instances, size, ids, min_volume, progress):
            skeleton = skeletonize(mask_zyx, size, start=one.box.start, scale=scale, const=const)
            text = swc(skeleton, one.id)
            (place / f"{one.id}.swc").write_text(text, encoding="ascii", newline="\n")
            degree = skeleton.degree
            counts = (len(skeleton.points), int((degree == 1).sum()), int((degree > 2).sum()))
            records.append(SkeletonRecord(one.id, *counts, skeleton.length, cut))
    return records


@contextlib.contextmanager
def _new_folder(
    instances: Volume, folder: Path, listing: str, overwrite: bool, size: VoxelSize, options: Mapping[str, object]
) -> Iterator[tuple[Path, list[Any]]]:
    """An empty folder, which takes its name at the end, when the records that were appended are listed in it.

    With ``overwrite`` it replaces only a folder of its own kind.
    """
    check_folder(folder, listing, overwrite)
    with atomic_output(folder, overwrite=overwrite) as place:
        place.mkdir()
        records: list[Any] = []
        yield place, records
        head = {"unit": "nm", "axes": "x, y, z", "voxel_size_zyx": size, "shape_zyx": instances.shape}
        objects = [asdict(record) for record in records]
        write_json(place / listing, {**head, "source": instances.path, **options, "objects": objects})


def _objects(
    instances: Volume, size: VoxelSize, ids: Iterable[int] | None, min_volume: float, progress: Progress | None
) -> Iterator[tuple[FoundObject, npt.NDArray[np.bool_], bool]]:
    """The objects one by one, each in its box, and whether the volume's border cuts it."""
    source, chosen = choose_objects(instances, size, ids, min_volume)
    for done, one in enumerate(chosen, 1):
        cut = any(a == 0 or b == n for a, b, n in zip(one.box.start, one.box.stop, instances.shape, strict=True))
        yield one, source.read(one.box) == one.id, cut
        if progress is not None:
            progress(done, len(chosen))


def known_voxel_size(instances: Volume, voxel_size: Sequence[float] | None) -> VoxelSize:
    """The voxel size (z, y, x) in nm that is given, or else the volume's."""
    if voxel_size is None and instances.voxel_size is None:
        raise UserError("the voxel size is unknown", instances.path, "give voxel_size=[z,y,x] in nm")
    return check_voxel_size(instances.voxel_size if voxel_size is None else voxel_size)  # type: ignore[arg-type]


def _check_number(name: str, value: object, least: float) -> None:
    if not is_number(value) or not least <= value < math.inf:  # type: ignore[operator]
        raise UserError(f"{name} is out of range", value, f"give a number from {least:g} up")


_IN_MEMORY = 2**30  # bytes up to which a volume is read once and kept; a larger one is read object by object


@dataclass(frozen=True)
class FoundObject:
    """The number of an instance, the smallest box that holds it, and its voxels."""

    id: int
    box: Box
    voxels: int


def find_objects(instances: Volume) -> dict[int, FoundObject]:
    """All instances, found by their numbers (sparse, as large as their type allows), in ascending order."""
    kind = instances.info.metadata.get("kind", "instances")
    if kind != "instances" or not np.issubdtype(instances.dtype, np.integer):
        kind = kind if kind != "instances" else str(instances.dtype)
        raise UserError(f"instances are needed, not {kind}", instances.path, "give the output of save=instances")
    rows = count_instances(instances)[["instance", "voxels", *STARTS, *STOPS]].itertuples(index=False)
    return {i: FoundObject(i, Box(tuple(box[:3]), tuple(box[3:])), voxels) for i, voxels, *box in rows}


def choose_objects(
    instances: Volume, size: VoxelSize, ids: Iterable[int] | None, min_volume: float
) -> tuple[Volume, list[FoundObject]]:
    """The objects that are asked for (None: all) of at least ``min_volume`` nm3, and the volume to cut them from.

    That is in memory where it is small, so that no file is read again.
    """
    if not isinstance(instances, ArrayVolume) and math.prod(instances.shape) * instances.dtype.itemsize <= _IN_MEMORY:
        instances = ArrayVolume(instances.read(), instances.voxel_size, instances.path, instances.info.metadata)
    found = find_objects(instances)
    wanted = list(found) if ids is None else list(dict.fromkeys(ids))
    if unknown := [i for i in wanted if i not in found]:
        known = f"{len(found)} of them, from {min(found)} to {max(found)}" if found else "none"
        raise UserError("no instance has the number", unknown[0], f"the volume contains {known}")
    chosen = [found[i] for i in wanted if found[i].voxels >= min_volume / math.prod(size) - 1e-9]
    if not chosen:
        raise UserError("no instance is left", instances.path, "check ids, min_volume, and its contents")
    return instances, chosen


FORMATS = ("ply", "obj", "glb")  # that can be written, the first two with one object in a file


def colour_of(number: int) -> tuple[float, float, float]:
    """The colour of an instance, the same in every file and picture; neighbouring numbers look different.

    Hues step by the golden ratio, which fills the circle evenly for any count of them.
    """
    hue = number * 0.618033988749895 % 1
    saturation, value = (0.55, 0.75, 0.65)[number % 3], (0.95, 0.85, 0.9)[number % 3]
    return colorsys.hsv_to_rgb(hue, saturation, value)


def _rgba(number: int) -> list[int]:
    return [*(int(np.round(255 * part)) for part in colour_of(number)), 255]
