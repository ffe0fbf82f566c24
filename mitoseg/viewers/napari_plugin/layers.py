"""What a layer of napari is to mitoseg: a volume with a voxel size, or a reason why it is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.viewers.napari_plugin.layer_data import KEY
from mitoseg.viewers.napari_plugin.lazy import LayerVolume
from mitoseg.volumes import Array, VoxelSize
from mitoseg.volumes.units import voxel_size_nm

Layer = Any
"""An image or labels layer; typed so that nothing here imports napari."""


def layer_volume(layer: Layer | None, voxel_size: VoxelSize | None = None) -> LayerVolume:
    """The volume of an image layer.

    Args:
        layer: Of napari; None where the user has chosen none.
        voxel_size: (z, y, x) in nm; None: the layer's own.

    Raises:
        UserError: It is no volume of grey values.
    """
    if layer is None:
        raise UserError("there is no image layer", None, "open an image first")
    if getattr(layer, "rgb", False):
        raise UserError("the layer is in colour", layer.name, "give a grey image")
    data = finest(layer.data, layer.multiscale)
    if len(data.shape) != 3:
        remedy = "mitoseg needs a volume with the axes z, y, x"
        raise UserError(f"the layer has {len(data.shape)} axes, not 3", layer.name, remedy)
    size = voxel_size or layer_voxel_size(layer)
    return LayerVolume(data, size, layer.name, layer.metadata.get(KEY, {}))


def labels_array(layer: Layer | None) -> Array:
    """The labels of a layer, which can be changed in place.

    Raises:
        UserError: There are none, or they are not in memory.
    """
    if layer is None:
        raise UserError("there is no labels layer", None, "predict first, or open instances")
    if layer.multiscale or not isinstance(layer.data, np.ndarray):
        raise UserError("the labels are too large for memory", layer.name, "they can be looked at, not corrected")
    if layer.data.ndim != 3:
        raise UserError(f"the labels have {layer.data.ndim} axes, not 3", layer.name, "mitoseg needs z, y, x")
    labels_zyx: Array = layer.data
    return labels_zyx


def layer_voxel_size(layer: Layer) -> VoxelSize | None:
    """(z, y, x) in nm, from the layer's scale and units; None where the units are no lengths."""
    return size_of(layer.scale, layer.units)


def size_of(scale: Sequence[float] | None, units: Sequence[object] | None) -> VoxelSize | None:
    """The same, from scale and units; units are napari's or their names."""
    if scale is None or units is None or len(scale) != 3:
        return None
    return voxel_size_nm([float(s) for s in scale], [str(unit) for unit in units])


def finest(data: Any, multiscale: bool) -> Any:  # noqa: ANN401 (any array)
    """The array of a layer, the finest of several levels."""
    return data[0] if multiscale else data


def same_place(layer: Layer) -> dict[str, Any]:
    """Options that put a new layer where another one lies."""
    names = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
    return {name: getattr(layer, name) for name in names}


def is_probability(layer: Layer) -> bool:
    """Whether a layer says that it holds probabilities."""
    return bool(layer.metadata.get(KEY, {}).get("kind") == "probability")


def fitting_volume(layer: Layer | None, shape: Sequence[int]) -> LayerVolume | None:
    """The volume of an image layer, if there is one of that shape."""
    try:
        volume = layer_volume(layer)
    except UserError:
        return None
    return volume if volume.shape == tuple(shape) else None


def voxels_of_points(points: Layer, layer: Layer | None) -> Array:
    """Where the points of one layer lie in the voxels of another, (n, 3).

    Raises:
        UserError: They are no points in three dimensions.
    """
    if points.ndim != 3:
        raise UserError("the seed points have not three axes", points.name, "press “Seed points” for a layer that has")
    assert layer is not None
    found = [layer.world_to_data(points.data_to_world(point)) for point in points.data]
    return np.reshape(np.asarray(found, float), (-1, 3))
