"""Volumes in a browser: layers, colours and the first view, chunks and surfaces made when asked for, and the server.

The library speaks of x, y, z; a volume of ours is z, y, x. The order is turned in this file and nowhere else.

A box at any halving is read from the coarser levels that an OME-Zarr image has:

factors (z, y, x)     read from                        then
(1, 1, 1)             the volume
(2, 2, 2)             level 1, where it has these      nothing
(4, 4, 4)             level 1                          halved once: the mean, of labels every second voxel
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import neuroglancer
import numpy as np
from neuroglancer.chunks import encode_npz
from neuroglancer.local_volume import InvalidObjectIdForMesh, MeshesNotSupportedForVolume

from mitoseg.errors import UserError, import_extra
from mitoseg.geometry import Box
from mitoseg.segmentation.exporting import FoundObject, find_objects
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.viewers.shown import KINDS, Shown
from mitoseg.volumes import Array, ArrayVolume, Volume, VoxelSize, open_volume
from mitoseg.volumes.base import CroppedVolume, mask_volume
from mitoseg.volumes.labels import map_labels
from mitoseg.volumes.opening import stored_in
from mitoseg.volumes.predicted import decide
from mitoseg.volumes.stored import opening
from mitoseg.volumes.zarrs import Sizes, coarser, find_levels

log = logging.getLogger(__name__)

DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles of a sample of the image that are shown as black and as white
_SURVEYED = 2**28  # voxels of labels up to which all are looked at to tell what their values mean
MOST_SEGMENTS = 1000  # instances whose surfaces are shown from the beginning: the largest
PANEL = (500, 320)  # pixels of a panel, across and down, that the volume fills at first
COARSEST_VIEW = 4.0  # voxels to a pixel at first, at most: more would read much of a large volume at once
TILTED = (0.46, 0.3, 0.13, 0.82)  # quaternion (x, y, z, w) of the view in 3D: from above and aside
FLAT_HALVINGS = 64  # how many stored voxels at most become one while a chunk is read: 4 x 4 x 4
MOST_VOXELS = 2**22  # voxels of an object's box at which its surface is made of every second voxel, and so on
LARGEST_BOX = 2**28  # an object in a larger box has no surface here: the box would be read at once
REDUCTION = 4.0
_GREYS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
"""Types of voxels that the browser takes for grey values."""
COLOURS = {"probability": "#ff3b30", "uncertainty": "#ffb000", "mask": "#ff7a1a", "truth": "#2fbf71"}
OVERLAY = 0.35
GREY = """#uicontrol invlerp grey
void main() { emitGrayscale(grey()); }
"""

TINTED = """#uicontrol invlerp value
#uicontrol vec3 colour color(default="%s")
#uicontrol float least slider(min=0, max=1, default=0, step=0.01)
void main() {
  float v = value();
  emitRGBA(vec4(colour, v < least ? 0.0 : v));
}
"""


def make_scene(shown: Shown, *, surfaces: bool = True) -> neuroglancer.ViewerState:
    """What a browser shows at first; `surfaces` says whether instances get surfaces in 3D.

    A probability brings the mask of its threshold, which is made while it is read. Of several results only the last
    in the order probability, mask, instances is switched on; truth is switched off.
    """
    levels = {kind: open_levels(volume, shown.axes.get(volume.path)) for kind, volume in shown.volumes.items()}
    if "probability" in levels and "mask" not in levels:
        decision = decide(levels["probability"][0].volume, kind="probability")
        least = decision.threshold * decision.scale
        levels["mask"] = _each(levels["probability"], lambda one: mask_volume(one, lambda values: values >= least))
    on_top = next((kind for kind in ("instances", "mask", "probability") if kind in shown.volumes), None)
    state = neuroglancer.ViewerState()
    state.title = " ".join(dict.fromkeys(Path(volume.path).name for volume in shown.volumes.values()))
    for kind in filter(levels.__contains__, KINDS):
        if kind in ("image", "probability", "uncertainty"):
            layer = _picture(kind, levels[kind], shown.voxel_size)
        else:
            found = Levels(_truth(levels[kind]) if kind == "truth" else levels[kind], labels=True)
            layer = _segments(kind, found, shown.voxel_size, surfaces=surfaces and kind == "instances")
        state.layers.append(name=kind, layer=layer, visible=kind in {"image", on_top} or len(levels) == 1)
    _look(state, shown)
    return state


def _look(state: neuroglancer.ViewerState, shown: Shown) -> None:
    """Look at the middle, so that a slice fills its panel."""
    smallest = min(shown.voxel_size)
    z, y, x = (n * size / smallest for n, size in zip(shown.shape, shown.voxel_size, strict=True))
    whole = max(x / PANEL[0], y / PANEL[1], z / PANEL[1])
    state.dimensions = space(shown.voxel_size)
    state.position = [n // 2 + 0.5 for n in shown.shape[::-1]]
    state.cross_section_scale = min(whole, COARSEST_VIEW)
    state.projection_scale = 1.2 * max(z, y, x)
    state.projection_orientation = TILTED
    state.layout = "4panel"
    state.cross_section_background_color = "#000000"
    state.hide_cross_section_background_3d = True
    state.show_slices = whole <= COARSEST_VIEW


def _picture(kind: str, levels: list[Level], size: VoxelSize) -> neuroglancer.ImageLayer:
    """Grey values in grey, or a share from 0 to 1 as a tint that is the denser the larger it is."""
    volume = levels[0].volume
    source = _source(ServedVolume(Levels(levels, labels=False), size, labels=False), "default", "bounds")
    if kind == "image":
        low, high = percentiles(sample(volume), DARKEST, BRIGHTEST)
        return neuroglancer.ImageLayer(
            source=source, shader=GREY, shader_controls={"grey": {"range": [low, high]}}, opacity=1.0
        )
    controls = {"value": {"range": [0.0, decide(volume, kind="probability").scale]}}
    return neuroglancer.ImageLayer(
        source=source, shader=TINTED % COLOURS[kind], shader_controls=controls, opacity=0.6, blend="default"
    )


def _segments(kind: str, levels: Levels, size: VoxelSize, *, surfaces: bool) -> neuroglancer.SegmentationLayer:
    made = Surfaces(levels, size) if surfaces and levels.finest.dtype.kind in "iu" else None
    source = ServedVolume(levels, size, labels=True, surfaces=made)
    layer = neuroglancer.SegmentationLayer(
        source=_source(source, "default", *(["meshes"] if made else [])), selected_alpha=OVERLAY
    )
    if kind in COLOURS and source.data_type == "uint8":
        layer.segment_colors = {1: COLOURS[kind]}
    if made is not None and math.prod(levels.finest.shape) <= LARGEST_BOX:  # else they are not looked for yet
        layer.segments = made.largest(MOST_SEGMENTS)
        layer.not_selected_alpha = OVERLAY / 2
    return layer


def sample(volume: Volume, *, slices: int = 5, side: int = 512) -> Array:
    """The middles of some evenly spaced slices (z, y, x), ``side`` voxels wide, of a volume too large to be read."""
    places = np.unique(np.linspace(0, volume.shape[0] - 1, slices + 2).round().astype(int)[1:-1])
    (y0, y1), (x0, x1) = ((max(0, (n - side) // 2), min(n, (n + side) // 2)) for n in volume.shape[1:])
    return np.concatenate([volume.read(Box((z, y0, x0), (z + 1, y1, x1))) for z in places.tolist()])


def percentiles(values: Array, low: float, high: float) -> tuple[float, float]:
    """Two percentiles of the finite values, the second above the first also where all are equal.

    >>> percentiles(np.arange(101), 1, 99), percentiles(np.full(3, 7), 1, 99), percentiles(np.array([np.nan]), 1, 99)
    ((1.0, 99.0), (7.0, 8.0), (0.0, 1.0))
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0, 1.0
    a, b = (float(value) for value in np.percentile(finite, (low, high)))
    return (a, b) if b > a else (a, a + 1.0)


def _source(volume: ServedVolume, *parts: str) -> neuroglancer.LayerDataSource:
    """A volume with some of what the browser makes of one: voxels (default), a frame (bounds), surfaces (meshes)."""
    return neuroglancer.LayerDataSource(
        url=volume, subsources=dict.fromkeys(parts, True), enable_default_subsources=False
    )


def _truth(levels: list[Level]) -> list[Level]:
    """Labels as numbers, or as one mask, as `map_labels` reads them; of large ones a sample."""
    whole = levels[0].volume.as_labels()
    levels = levels if whole is levels[0].volume else _each(levels, lambda one: one.as_labels())
    large = math.prod(whole.shape) > _SURVEYED
    looked_at = ArrayVolume(sample(whole, side=1024), path=whole.path) if large else whole
    try:
        labels = map_labels(looked_at, require_foreground=False)
    except UserError as error:
        log.warning("the truth is shown with its stored values: %s", error)
        return levels
    return levels if labels.numbered else _each(levels, labels.alike)


def _each(levels: list[Level], change: Callable[[Volume], Volume]) -> list[Level]:
    return [replace(level, volume=change(level.volume)) for level in levels]


def space(voxel_size: VoxelSize) -> neuroglancer.CoordinateSpace:
    """x, y and z in nm."""
    return neuroglancer.CoordinateSpace(names=["x", "y", "z"], units="nm", scales=list(voxel_size[::-1]))


def served_type(dtype: np.dtype[np.generic], *, labels: bool) -> np.dtype[np.generic]:
    """The type in which grey values or, unsigned, numbers are sent.

    >>> [served_type(np.dtype(name), labels=False).name for name in ("uint16", "float16", "bool")]
    ['uint16', 'float32', 'uint8']
    >>> [served_type(np.dtype(name), labels=True).name for name in ("int16", "float32", "bool")]
    ['uint16', 'uint32', 'uint8']
    """
    if dtype == np.bool_:
        return np.dtype(np.uint8)
    if labels:
        return np.dtype(np.uint32) if dtype.kind == "f" else np.dtype(f"uint{8 * dtype.itemsize}")
    return dtype if dtype.name in _GREYS else np.dtype(np.float32)


class ServedVolume(neuroglancer.LocalVolume):  # type: ignore[misc]
    """A volume that is read where the browser looks; ``labels`` are numbers of segments, not grey values."""

    def __init__(
        self, levels: Levels, voxel_size: VoxelSize, *, labels: bool, surfaces: Surfaces | None = None
    ) -> None:
        volume = levels.finest
        self._levels, self._labels, self.surfaces = levels, labels, surfaces
        self._dtype = served_type(volume.dtype, labels=labels)
        super().__init__(
            SimpleNamespace(shape=volume.shape[::-1], dtype=self._dtype),  # all that the library reads by itself
            dimensions=space(voxel_size),
            volume_type="segmentation" if labels else "image",
            max_downsampling=FLAT_HALVINGS * math.prod(levels.stored[-1].factors),
        )

    def get_encoded_subvolume(
        self, data_format: str, start: Sequence[int], end: Sequence[int], scale_key: str
    ) -> tuple[bytes, str]:
        """One chunk and its type, as the library's server asks for it; `ValueError` where that cannot be answered.

        Start and end are (x, y, z) in voxels of this halving; the key is its factors, such as ``2,2,1``, x first.
        """
        try:
            x, y, z = (int(factor) for factor in scale_key.split(","))
            if data_format != "npz" or x * y * z > self.max_downsampling:
                raise ValueError("no such format or halving")
            box = Box(tuple(map(int, start[::-1])), tuple(map(int, end[::-1])))
            chunk_zyx = self._levels.read(box, (z, y, x))
        except UserError as error:
            log.warning("%s", error)
            raise ValueError("the voxels cannot be read") from error
        if self._labels and chunk_zyx.dtype.kind in "if":  # negative numbers mark what nobody labelled
            chunk_zyx = np.maximum(chunk_zyx, 0)
        return encode_npz(chunk_zyx.astype(self._dtype, copy=False).T), "application/octet-stream"

    def get_object_mesh(self, object_id: int) -> bytes:
        """The surface of one segment, see `encode_mesh`; the library's own errors where there is none."""
        if self.surfaces is None:
            raise MeshesNotSupportedForVolume
        try:
            mesh = self.surfaces.surface(object_id)
        except UserError as error:
            log.warning("%s", error)
            raise ValueError("the voxels cannot be read") from error
        if mesh is None:
            raise InvalidObjectIdForMesh
        return encode_mesh(mesh)


@dataclass(frozen=True)
class Level:
    """One level of a volume; ``factors`` are the voxels of the finest level (z, y, x) of one of its voxels."""

    factors: Sizes
    volume: Volume


class Levels:
    """A volume at any halving, from its levels, the finest first; ``labels`` are names, which have no mean."""

    def __init__(self, levels: Sequence[Level], *, labels: bool) -> None:
        self.stored, self._labels = list(levels), labels
        self.finest = self.stored[0].volume

    def read(self, box: Box, factors: Sizes = (1, 1, 1)) -> Array:
        """Read a box of the volume whose voxels are ``factors`` (powers of two) as long.

        The box is in the coarser voxels (z, y, x), of which i covers fine voxels [i f, (i + 1) f), and may end at one
        that is cut.
        """
        whole = Box.of_shape([-(-n // f) for n, f in zip(self.finest.shape, factors, strict=True)])
        if any(f < 1 or f & (f - 1) for f in factors) or box.clip(whole) != box:
            raise ValueError(f"no box {box} of a volume of {whole} at {factors}")
        fitting = [one for one in self.stored if not any(f % own for f, own in zip(factors, one.factors, strict=True))]
        level = max(fitting, key=lambda one: math.prod(one.factors))
        rest = [f // own for f, own in zip(factors, level.factors, strict=True)]
        start = tuple(a * step for a, step in zip(box.start, rest, strict=True))
        stop = tuple(b * step for b, step in zip(box.stop, rest, strict=True))
        values_zyx = level.volume.read(Box(start, stop).clip(level.volume.box))
        if self._labels:
            return values_zyx[tuple(slice(None, None, step) for step in rest)]
        while max(rest) > 1:
            z, y, x = (2 if step > 1 else 1 for step in rest)
            values_zyx = coarser(values_zyx, (z, y, x), labels=False)
            rest = [max(1, step // 2) for step in rest]
        return values_zyx


def open_levels(volume: Volume, axes: str | None = None) -> list[Level]:
    """A volume that was opened by its path, and the coarser levels of the OME-Zarr image that it is of.

    Levels that are no halvings of the finest one are left out. ``axes`` are those that it was opened with.
    """
    found = [Level((1, 1, 1), volume)]
    if isinstance(volume, CroppedVolume):  # whose levels begin elsewhere
        return found
    folder = stored_in(volume.path)
    with opening(volume.path):
        names = find_levels(str(folder))[1:]
    for name in names:
        level = open_volume(str(folder / name), axes=axes)
        z, y, x = (1 << max(0, round(math.log2(n / m))) for n, m in zip(volume.shape, level.shape, strict=True))
        covers = [-(-n // f) for n, f in zip(volume.shape, (z, y, x), strict=True)]
        if tuple(covers) == level.shape and max(z, y, x) > 1 and level.dtype == volume.dtype:
            found.append(Level((z, y, x), level))
    return found


@contextmanager
def serving(
    state: neuroglancer.ViewerState, *, bind: str = "127.0.0.1", port: int = 0
) -> Iterator[neuroglancer.Viewer]:
    """Serve a scene to browsers until the block is left; ``get_viewer_url()`` of the viewer is its link.

    ``bind=0.0.0.0`` listens on every address of this machine, for whoever has the link; port 0 chooses a free one.
    """
    try:
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        socket.create_server((bind, port), family=family).close()  # where that fails the library leaves sockets open
        neuroglancer.set_server_bind_address(bind, port)
        viewer = neuroglancer.Viewer()
    except OSError as error:
        free = "or port=0 for a free one"
        remedies = {
            errno.EADDRINUSE: ("the port is taken", port, f"choose another, {free}"),
            errno.EACCES: ("the port needs special permission", port, f"choose one above 1023, {free}"),
        }
        other = ("cannot listen on that address", bind, "give bind=127.0.0.1, or an address of this machine")
        raise UserError(*remedies.get(error.errno or 0, other)) from error
    try:
        viewer.set_state(state)
        yield viewer
    finally:
        neuroglancer.stop()


class Surfaces:
    """The surfaces of a volume's instances."""

    def __init__(self, levels: Levels, voxel_size: VoxelSize) -> None:
        self._levels, self._size = levels, voxel_size
        self._lock = Lock()

    @cached_property
    def objects(self) -> dict[int, FoundObject]:
        """All instances by their number; found in one pass over the volume when first needed."""
        return find_objects(self._levels.finest)

    def largest(self, count: int) -> list[int]:
        """The numbers of the largest instances, in ascending order."""
        by_size = sorted(self.objects.values(), key=lambda one: (-one.voxels, one.id))
        return sorted(one.id for one in by_size[:count])

    def surface(self, number: int) -> Mesh | None:
        """The surface of one instance; None where there is no such instance, or its box is too large."""
        with self._lock:
            one = self.objects.get(number)
        if one is None or one.box.size > LARGEST_BOX:
            return None
        step = 1
        while one.box.size > MOST_VOXELS * step**3:
            step *= 2
        start = tuple(a // step for a in one.box.start)
        part = Box(start, tuple(-(-b // step) for b in one.box.stop))
        mask_zyx = self._levels.read(part, (step, step, step)) == number
        if not mask_zyx.any():  # a thread between the voxels that were looked at
            return None
        z, y, x = (step * size for size in self._size)
        try:
            import_extra("zmesh", "zmesh", "mesh")
            reduction = REDUCTION
        except UserError:  # the library that takes faces away is not there
            reduction = 1.0
        return mesh_object(mask_zyx, (z, y, x), start=start, reduction=reduction)


def encode_mesh(mesh: Mesh) -> bytes:
    """A surface as neuroglancer takes it from a server: the number of vertices, x, y, z of each in m, then the faces.

    Little-endian uint32, float32 and uint32. The library's own client divides by the scales of the coordinate space,
    which it keeps in m.
    """
    vertices = (mesh.vertices / 1e9).astype("<f4")
    return struct.pack("<I", len(vertices)) + vertices.tobytes() + mesh.faces.astype("<u4").tobytes()
