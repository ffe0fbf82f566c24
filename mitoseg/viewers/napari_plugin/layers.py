"""Between napari's layers and volumes: reading and writing what napari asks for, and where to save.

Images are read no further than what is looked at. Files are written whole or not at all, and never over something
else unless that is wanted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.viewers.napari_plugin.jobs import show_mistake
from mitoseg.volumes import Array, ArrayVolume, Volume, VoxelSize, create_volume, open_volume
from mitoseg.volumes.axes import voxel_size_nm
from mitoseg.volumes.normalize import sample_greys
from mitoseg.volumes.opening import container_format, stored_in
from mitoseg.volumes.zarrs import find_levels, holds_labels

if TYPE_CHECKING:
    import dask.array


Layer = Any  # an image or labels layer; typed so that nothing here imports napari
LayerData = tuple[Any, dict[str, Any], str]
KEY = "mitoseg"  # the entry of a layer's metadata with those of the volume
PREDICTED_SIZE = "voxel size in nm"  # the entry with that of a prediction whose image states none
IN_MEMORY = 0.25  # share of the free memory up to which labels are read at once: only then can they be corrected
BRICK = (64, 256, 256)  # voxels (z, y, x) that are read together from chunked formats; others give whole slices
BLOCK = (64, 512, 512)  # voxels (z, y, x) that are written at once
NOTHING: list[Any] = [(None,)]  # napari's word for: this was a file of ours, and there is no layer
LABELS = np.dtype(np.uint32)


def layer_volume(layer: Layer | None, voxel_size: VoxelSize | None = None) -> ArrayVolume:
    """The volume of an image layer; `voxel_size` (z, y, x) in nm replaces the layer's own."""
    if layer is None:
        raise UserError("there is no image layer", None, "open an image first")
    if getattr(layer, "rgb", False):
        raise UserError("the layer is in colour", layer.name, "give a grey image")
    data = layer.data[0] if layer.multiscale else layer.data  # the finest level
    if len(data.shape) != 3:
        remedy = "mitoseg needs a volume with the axes z, y, x"
        raise UserError(f"the layer has {len(data.shape)} axes, not 3", layer.name, remedy)
    size = voxel_size or layer_voxel_size(layer)
    return ArrayVolume(data, size, layer.name, layer.metadata.get(KEY, {}))


def labels_array(layer: Layer | None) -> Array:
    """The labels of a layer, which can be changed in place."""
    if layer is None:
        raise UserError("there is no labels layer", None, "predict first, or open instances")
    if layer.multiscale or not isinstance(layer.data, np.ndarray):
        raise UserError("the labels are too large for memory", layer.name, "they can be viewed but not corrected")
    if layer.data.ndim != 3:
        raise UserError(f"the labels have {layer.data.ndim} axes, not 3", layer.name, "mitoseg needs z, y, x")
    labels_zyx: Array = layer.data
    return labels_zyx


def layer_voxel_size(layer: Layer) -> VoxelSize | None:
    """(z, y, x) in nm, from the layer's scale and units, else that which it was predicted with; None if not known."""
    return size_of(layer.scale, layer.units) or layer.metadata.get(PREDICTED_SIZE)


def size_of(scale: Sequence[float] | None, units: Sequence[object] | None) -> VoxelSize | None:
    """The same, from scale and units, napari's or their names."""
    if scale is None or units is None or len(scale) != 3:
        return None
    return voxel_size_nm([float(s) for s in scale], [str(unit) for unit in units])


def same_place(layer: Layer) -> dict[str, Any]:
    """Options that put a new layer where another one lies."""
    names = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
    return {name: getattr(layer, name) for name in names}


def is_kind(layer: Layer, *kinds: str) -> bool:
    """Whether a layer says that it holds something of these kinds."""
    return layer.metadata.get(KEY, {}).get("kind") in kinds


def is_probability(layer: Layer) -> bool:
    """Whether a layer says that it holds probabilities."""
    return is_kind(layer, "probability")


def fitting_volume(layer: Layer | None, shape: Sequence[int]) -> ArrayVolume | None:
    """The volume of an image layer, if there is one of that shape."""
    try:
        volume = layer_volume(layer)
    except UserError:
        return None
    return volume if volume.shape == tuple(shape) else None


def voxels_of_points(points: Layer, layer: Layer | None) -> Array:
    """Where the points of one layer lie in the voxels of another, (n, 3)."""
    if points.ndim != 3:
        raise UserError("the points do not have three axes", points.name, "use a layer made by “Seed points”")
    assert layer is not None
    found = [layer.world_to_data(points.data_to_world(point)) for point in points.data]
    return np.reshape(np.asarray(found, float), (-1, 3))


def read_layer(path: str) -> LayerData:
    """The layer ``(data, options, type)`` of a file or folder, as `mitoseg.volumes.open_volume` takes it.

    Probabilities are an image from 0 to 1, masks and instances are labels. Images stay on the disk; an OME-Zarr image
    comes with all its levels.
    """
    volume = open_volume(path)
    size = volume.voxel_size
    placing = {} if size is None else {"scale": size, "units": ("nm",) * 3}
    options = {"name": layer_name(path), **placing, "metadata": {KEY: dict(volume.info.metadata)}}
    if holds_labels(volume.dtype, volume.info.metadata) or volume.dtype.kind == "b":
        labels: Any = as_dask(volume)
        if volume.box.size * volume.dtype.itemsize <= IN_MEMORY * memory_available():  # so they can be corrected
            labels = volume.read()
        return (labels.astype(np.uint8) if volume.dtype.kind == "b" else labels), options, "labels"
    levels = [volume, *(open_volume(f"{path}/{name}") for name in find_levels(path)[1:])]
    data = [as_dask(level) for level in levels]
    options |= drawing(volume)
    return (data if len(data) > 1 else data[0]), options | {"multiscale": len(data) > 1}, "image"


def layer_name(path: str) -> str:
    """The name of a layer from a path.

    >>> layer_name("a/cells.ome.zarr"), layer_name("a/b.h5:/raw/em"), layer_name("a.tif")
    ('cells', 'b em', 'a')
    """
    file, _, dataset = path.replace("\\", "/").rstrip("/").partition(":/")
    if not dataset or len(file) == 1:  # a drive of Windows
        return Path(path).name.split(".")[0] or path
    return f"{Path(file).name.split('.')[0]} {Path(dataset).name}"


def drawing(volume: Volume) -> dict[str, Any]:
    """Colours and contrast of a volume that is no labels."""
    metadata = volume.info.metadata
    if metadata.get("kind") in ("probability", "uncertainty"):
        return probability_style(float(metadata.get("scale") or 1.0))
    try:
        greys = sample_greys(volume)
    except UserError:  # NaN; napari looks for itself
        return {"colormap": "gray"}
    low, high = np.quantile(greys, [0.002, 0.998]) if greys.size else (0, 0)
    limits = {"contrast_limits": (float(low), float(high))} if low < high else {}
    return {"colormap": "gray", **limits}


def probability_style(scale: float = 1.0) -> dict[str, Any]:
    """How probabilities are drawn, over the image; ``scale`` is the stored value of probability 1."""
    return {"colormap": "inferno", "contrast_limits": (0.0, scale), "blending": "additive", "opacity": 0.6}


class VolumeArray:
    """A volume as what dask cuts: shape, type and slices."""

    ndim = 3

    def __init__(self, volume: Volume) -> None:
        self.volume, self.shape, self.dtype = volume, volume.shape, volume.dtype

    def __getitem__(self, index: tuple[slice | int, ...]) -> Array:
        """Read what three slices or numbers point at; of slices with steps, what lies between as well."""
        places = [
            range(n)[part] if isinstance(part, slice) else range(part, part + 1)
            for part, n in zip(index, self.shape, strict=True)
        ]
        ends = [(min(place), max(place) + 1) if len(place) else (0, 0) for place in places]
        inside = tuple(slice(None, None, part.step) if isinstance(part, slice) else 0 for part in index)
        return self.volume.read(Box(tuple(a for a, _ in ends), tuple(b for _, b in ends)))[inside]


def as_dask(volume: Volume) -> dask.array.Array:
    """A volume as a lazy (z, y, x) array of dask, which keeps what was looked at last."""
    import dask.array

    chunks = BRICK if container_format(volume.path) else (1, *volume.shape[1:])
    sizes = tuple(min(n, size) for n, size in zip(chunks, volume.shape, strict=True))
    array: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
        VolumeArray(volume),
        chunks=sizes,
        name=f"mitoseg-{uuid.uuid4().hex}",
        lock=True,  # a volume is read by one thread at a time
        asarray=False,
        meta=np.empty((0, 0, 0), volume.dtype),
    )
    return array


def get_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[Any]] | None:
    """The reader of one path; None for a stack of files, which napari's own reader takes."""
    return None if not isinstance(path, str) and len(path) != 1 else read


def read(path: str | Sequence[str]) -> list[Any]:
    """The layers of a path; one message and none where it cannot be opened."""
    try:
        return [read_layer(path if isinstance(path, str) else path[0])]
    except UserError as error:
        show_mistake(error)
        return NOTHING


def _write(path: str, data: Any, meta: Mapping[str, Any], *, kind: str | None) -> list[str]:  # noqa: ANN401
    """Save a layer, of this kind unless it says what it is; nothing and one message where it cannot be saved."""
    try:
        array = data[0] if meta.get("multiscale") else data
        if meta.get("rgb") or len(array.shape) != 3:
            raise UserError("not a volume of grey values or labels", meta.get("name"), "it needs three axes: z, y, x")
        about = dict(meta.get("metadata", {}).get(KEY, {}))
        if kind is not None:
            about.setdefault("kind", kind)
        volume = ArrayVolume(array, size_of(meta.get("scale"), meta.get("units")), str(meta.get("name")))
        save_volume(path, volume, about, overwrite=may_replace(path))
    except UserError as error:
        show_mistake(error)
        return []
    return [path]


write_labels = partial(_write, kind="instances")
write_image = partial(_write, kind=None)


def save_volume(path: str, volume: Volume, metadata: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write a volume in the format of the path's suffix, with metadata; instances and masks in their own types."""
    kind = metadata.get("kind")
    types: dict[object, np.dtype[Any]] = {"instances": LABELS, "mask": np.dtype(np.uint8)}
    dtype, size = types.get(kind, volume.dtype), volume.voxel_size
    with create_volume(path, volume.shape, dtype, voxel_size=size, metadata=metadata, overwrite=overwrite) as writer:
        for box in tiles(volume.box, BLOCK):
            values_zyx = volume.read(box)
            if kind == "instances" and values_zyx.size and not 0 <= values_zyx.min() <= values_zyx.max() < 2**32:
                raise UserError("an instance number exceeds 32 bits", int(values_zyx.max()), "number them from 1")
            writer.write(box, values_zyx.astype(dtype, copy=False))


def may_replace(path: str) -> bool:
    """Whether something that lies under this name may be replaced; without a window nobody can say yes."""
    if not stored_in(path).exists():
        return False
    from qtpy.QtWidgets import QApplication, QMessageBox

    if QApplication.instance() is None:
        return False
    answer = QMessageBox.question(None, "mitoseg", f"{path}\nexists. Replace it?")
    return bool(answer == QMessageBox.StandardButton.Yes)


def ask_path(parent: Any, title: str, kinds: str, suffix: str) -> str | None:  # noqa: ANN401 (any widget)
    """Where to save; None where the user would rather not. `suffix` is put to a name without one."""
    from qtpy.QtWidgets import QFileDialog

    options = QFileDialog.Option.DontConfirmOverwrite  # asked below, for folders as well
    path, _ = QFileDialog.getSaveFileName(parent, title, "", kinds, options=options)
    if not path:
        return None
    path = path if "." in path.replace("\\", "/").rsplit("/", 1)[-1] else path + suffix
    return path if not stored_in(path).exists() or may_replace(path) else None
