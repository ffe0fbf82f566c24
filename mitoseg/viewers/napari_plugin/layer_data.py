"""A volume as what napari makes a layer of: data, how it is drawn, and of which type the layer is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError
from mitoseg.viewers.napari_plugin.lazy import as_dask
from mitoseg.volumes import Volume, VoxelSize, open_volume
from mitoseg.volumes.drift import sample_greys
from mitoseg.volumes.ome_image import find_levels
from mitoseg.volumes.pyramid import holds_labels

KEY = "mitoseg"
"""The entry of a layer's metadata with those of the volume."""
PROBABILITIES = ("probability", "uncertainty")
IN_MEMORY = 0.25
"""Share of the free memory up to which labels are read at once: only then can they be corrected."""
UNIT = "nm"
LayerData = tuple[Any, dict[str, Any], str]


def read_layer(path: str) -> LayerData:
    """The layer of a file or folder.

    Args:
        path: As `mitoseg.volumes.open_volume` takes it.

    Returns:
        ``(data, options, type)``: probabilities are an image from 0 to 1, masks and instances are labels. Images stay
        on the disk; an OME-Zarr image comes with all its levels.

    Raises:
        UserError: The volume cannot be opened.
    """
    volume = open_volume(path)
    options = {"name": layer_name(path), **placing(volume.voxel_size), "metadata": {KEY: dict(volume.info.metadata)}}
    if holds_labels(volume.dtype, volume.info.metadata) or volume.dtype.kind == "b":
        return _label_array(volume), options, "labels"
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


def placing(voxel_size: VoxelSize | None) -> dict[str, Any]:
    """Scale and units of a layer; nothing where the voxel size is not known."""
    return {} if voxel_size is None else {"scale": voxel_size, "units": (UNIT,) * 3}


def drawing(volume: Volume) -> dict[str, Any]:
    """Colours and contrast of a volume that is no labels."""
    metadata = volume.info.metadata
    if metadata.get("kind") in PROBABILITIES:
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


def _label_array(volume: Volume) -> Any:  # noqa: ANN401 (dask's or numpy's)
    """Labels in memory, where they fit, so that they can be corrected."""
    if np.prod(volume.shape) * volume.dtype.itemsize > IN_MEMORY * memory_available():
        lazy = as_dask(volume)
        return lazy if volume.dtype.kind != "b" else lazy.astype(np.uint8)  # type: ignore[no-untyped-call]
    labels_zyx = volume.read()
    return labels_zyx.astype(np.uint8) if labels_zyx.dtype.kind == "b" else labels_zyx
