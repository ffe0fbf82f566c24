"""Meshes and skeletons of a whole volume, object by object, into a folder that appears when all are there.

Meshes are PLY and OBJ with one object each, or GLB with all of them, named and coloured.
"""

from __future__ import annotations

import colorsys
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mitoseg.errors import UserError
from mitoseg.extras import import_extra
from mitoseg.geometry import Box
from mitoseg.segmentation.blockwise import STARTS, STOPS, count_instances
from mitoseg.segmentation.meshes import SMOOTHING, Mesh, mesh_object
from mitoseg.segmentation.skeletons import CONST, SCALE, skeletonize, swc
from mitoseg.storage import atomic_output, check_output, read_json, write_json
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import ArrayVolume, Volume, VoxelSize

Progress = Callable[[int, int], None]  # takes how many objects are done, and of how many

MESH_LIST, SKELETON_LIST = "meshes.json", "skeletons.json"
"""What a folder holds, in itself; a folder without one is never replaced."""

SCENE = "instances.glb"


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


Record = MeshRecord | SkeletonRecord


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
    """Write the surface of every instance.

    The folder gets ``<id>.ply`` and ``<id>.obj``, one ``instances.glb``, and ``meshes.json`` with a `MeshRecord` of
    each. One object is in memory at a time; for GLB the simplified meshes are kept until the end.

    Args:
        instances: Numbers from 1, 0 for background.
        folder: It appears when all files are written.
        formats: Of ``ply``, ``obj``, ``glb``.
        voxel_size: (z, y, x) in nm; None: the volume's.
        ids: Only these instances; None for all.
        reduction: How many times fewer faces; 1 keeps all.
        smoothing: Rounds of smoothing; 0 keeps the steps of the voxels.
        min_volume: In nm^3; smaller objects are left out.
        overwrite: Whether an earlier folder of meshes may be replaced.
        progress: Called after each object.
    """
    formats = check_meshes(formats, reduction)
    _check_number("min_volume", min_volume, 0)
    if type(smoothing) is not int or smoothing < 0:
        raise UserError("smoothing is not a number of rounds", smoothing, "give 0 or more, such as smoothing=10")
    size = known_voxel_size(instances, voxel_size)
    records: list[MeshRecord] = []
    scene: dict[int, Mesh] = {}
    with _new_folder(Path(folder), MESH_LIST, overwrite) as place:
        for one, source in _objects(instances, size, ids, min_volume, progress):
            mask_zyx = source.read(one.box) == one.id
            mesh = mesh_object(mask_zyx, size, start=one.box.start, smoothing=smoothing, reduction=reduction)
            for name in (f for f in formats if f in ONE_EACH):
                write_mesh(place / f"{one.id}.{name}", mesh, one.id)
            if "glb" in formats:
                scene[one.id] = mesh
            cut, counts = one.touches_border(instances.shape), (len(mesh.vertices), len(mesh.faces))
            records.append(MeshRecord(one.id, *counts, mesh.volume, mesh.area, cut, mesh.is_closed))
        if scene:
            write_scene(place / SCENE, scene)
        options = {"formats": formats, "reduction": reduction, "smoothing": smoothing, "min_volume_nm3": min_volume}
        _write_list(place / MESH_LIST, instances, size, options, records)
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
    records: list[SkeletonRecord] = []
    with _new_folder(Path(folder), SKELETON_LIST, overwrite) as place:
        for one, source in _objects(instances, size, ids, min_volume, progress):
            mask_zyx = source.read(one.box) == one.id
            skeleton = skeletonize(mask_zyx, size, start=one.box.start, scale=scale, const=const)
            text = swc(skeleton, one.id)
            (place / f"{one.id}.swc").write_text(text, encoding="ascii", newline="\n")
            degree, cut = skeleton.degree, one.touches_border(instances.shape)
            counts = (len(skeleton.points), int((degree == 1).sum()), int((degree > 2).sum()))
            records.append(SkeletonRecord(one.id, *counts, skeleton.length, cut))
        options = {"scale": scale, "const_nm": const, "min_volume_nm3": min_volume}
        _write_list(place / SKELETON_LIST, instances, size, options, records)
    return records


def _objects(
    instances: Volume, size: VoxelSize, ids: Iterable[int] | None, min_volume: float, progress: Progress | None
) -> Iterator[tuple[FoundObject, Volume]]:
    """The objects one by one, with the volume to read them from; tells the progress after each."""
    source = held(instances)
    chosen = choose_objects(find_objects(source), ids, min_volume / math.prod(size) - 1e-9)
    if not chosen:
        raise UserError("no instance to write", instances.path, "check ids, min_volume and that it holds instances")
    for done, one in enumerate(chosen, 1):
        yield one, source
        if progress is not None:
            progress(done, len(chosen))


def check_folder(folder: Path, its_list: str, overwrite: bool) -> None:
    """Refuse to write a folder of meshes or skeletons over anything but an earlier one, which has the list."""
    check_output(folder, overwrite)
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or read_json(folder / its_list))):
        raise UserError("other things are there", str(folder), "give a new name: they would be replaced as a whole")


@contextlib.contextmanager
def _new_folder(folder: Path, its_list: str, overwrite: bool) -> Iterator[Path]:
    """An empty folder that takes its name at the end; with ``overwrite`` it replaces only one of its own kind."""
    check_folder(folder, its_list, overwrite)
    with atomic_output(folder, overwrite=overwrite) as place:
        place.mkdir()
        yield place


def _write_list(
    path: Path, instances: Volume, size: VoxelSize, options: Mapping[str, object], records: Sequence[Record]
) -> None:
    head = {"unit": "nm", "axes": "x, y, z", "voxel_size_zyx": size, "shape_zyx": instances.shape}
    write_json(path, {**head, "source": instances.path, **options, "objects": [asdict(r) for r in records]})


def known_voxel_size(instances: Volume, voxel_size: Sequence[float] | None) -> VoxelSize:
    """The voxel size (z, y, x) in nm that is given, or else the volume's."""
    if voxel_size is None and instances.voxel_size is None:
        raise UserError("the voxel size is unknown", instances.path, "give voxel_size=[z,y,x] in nm")
    return check_voxel_size(instances.voxel_size if voxel_size is None else voxel_size)  # type: ignore[arg-type]


def _check_number(name: str, value: object, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise UserError(f"{name} is out of range", value, f"give a number from {least:g} up")


_IN_MEMORY = 2**30  # bytes up to which a volume is read once and kept; a larger one is read object by object


@dataclass(frozen=True)
class FoundObject:
    """The number of an instance, the smallest box that holds it, and its voxels."""

    id: int
    box: Box
    voxels: int

    def touches_border(self, shape: tuple[int, ...]) -> bool:
        """Whether it reaches a face of a volume of that shape."""
        return any(a == 0 or b == n for a, b, n in zip(self.box.start, self.box.stop, shape, strict=True))


def held(instances: Volume) -> Volume:
    """The volume, in memory where it is small, so that objects are cut from it without reading a file again."""
    size = int(np.prod(instances.shape)) * instances.dtype.itemsize
    if isinstance(instances, ArrayVolume) or size > _IN_MEMORY:
        return instances
    return ArrayVolume(instances.read(), instances.voxel_size, instances.path, instances.info.metadata)


def find_objects(instances: Volume) -> dict[int, FoundObject]:
    """All instances, found by their numbers (sparse, as large as their type allows), in ascending order."""
    kind = instances.info.metadata.get("kind", "instances")
    if kind != "instances" or not np.issubdtype(instances.dtype, np.integer):
        kind = kind if kind != "instances" else str(instances.dtype)
        raise UserError(f"instances are needed, not {kind}", instances.path, "give what save=instances wrote")
    table = count_instances(instances)
    corners = zip(table[STARTS].to_numpy().tolist(), table[STOPS].to_numpy().tolist(), strict=True)
    rows = zip(table["instance"].tolist(), corners, table["voxels"].tolist(), strict=True)
    return {i: FoundObject(i, Box(tuple(start), tuple(stop)), voxels) for i, (start, stop), voxels in rows}


def choose_objects(found: dict[int, FoundObject], ids: Iterable[int] | None, least_voxels: float) -> list[FoundObject]:
    """The objects that are asked for (None: all), without those of fewer voxels."""
    wanted = list(found) if ids is None else list(dict.fromkeys(ids))
    if unknown := [i for i in wanted if i not in found]:
        held = f"{len(found)} of them, from {min(found)} to {max(found)}" if found else "none"
        raise UserError("no instance has the number", unknown[0], f"the volume holds {held}")
    return [found[i] for i in wanted if found[i].voxels >= least_voxels]


ONE_EACH = ("ply", "obj")  # formats that hold one object in a file
FORMATS = (*ONE_EACH, "glb")  # all that can be written


def colour_of(number: int) -> tuple[float, float, float]:
    """The colour of an instance, the same in every file and picture; neighbouring numbers look different.

    Hues step by the golden ratio, which fills the circle evenly for any count of them.
    """
    hue = number * 0.618033988749895 % 1
    saturation, value = (0.55, 0.75, 0.65)[number % 3], (0.95, 0.85, 0.9)[number % 3]
    return colorsys.hsv_to_rgb(hue, saturation, value)


def write_mesh(path: Path, mesh: Mesh, number: int) -> None:
    """Write one object, PLY (binary, float32, with the number's colour) or OBJ (text), by the suffix."""
    trimesh = import_extra("trimesh", "trimesh", "mesh")
    body = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    if path.suffix == ".obj":
        body.export(path, file_type="obj", include_color=False, include_normals=False, header=f"instance {number}, nm")
        return
    body.visual.vertex_colors = _rgba(number)
    body.export(path, file_type="ply", encoding="binary", vertex_normal=False)


def write_scene(path: Path, meshes: Mapping[int, Mesh]) -> None:
    """Write all objects as one binary glTF 2.0 file: a node and a mesh for each, named by its number, with its colour.

    Vertices are float32, in nm: glTF itself speaks of metres, so a viewer may want a scale of 0.001 or less.
    """
    trimesh = import_extra("trimesh", "trimesh", "mesh")
    scene = trimesh.Scene(metadata={"unit": "nm"})
    for number, mesh in meshes.items():
        body, name = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False), str(number)
        material = trimesh.visual.material.PBRMaterial(
            name=name, baseColorFactor=_rgba(number), metallicFactor=0.0, roughnessFactor=0.6
        )
        body.visual = trimesh.visual.TextureVisuals(material=material)
        scene.add_geometry(body, node_name=name, geom_name=name)
    scene.export(path, file_type="glb", include_normals=True)


def _rgba(number: int) -> list[int]:
    return [*(int(np.round(255 * part)) for part in colour_of(number)), 255]
