"""What TIFF headers say of axes, voxel size and mitoseg's metadata: ImageJ, OME-XML and plain ones."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

import tifffile

from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.stored import load_metadata
from mitoseg.volumes.units import voxel_size_nm

_KNOWN = "TZCYXS"


def tiff_axes(axes: str) -> str:
    """Tifffile's letters as `resolve_axes` takes them; I, Q and others say nothing."""
    return "".join(a if a in _KNOWN else "?" for a in axes)


def tiff_voxel_size(tif: tifffile.TiffFile) -> VoxelSize | None:
    """(z, y, x) in nm from ImageJ's spacing, unit and resolution, or OME's PhysicalSize; None without all three.

    The resolution of other TIFFs is one for printing and is left alone.
    """
    if tif.ome_metadata:
        return _ome_voxel_size(tif.ome_metadata)
    imagej = tif.imagej_metadata
    if not imagej:
        return None
    unit = imagej.get("unit", "")
    units = [imagej.get(key, unit) for key in ("zunit", "yunit", "unit")]
    tags = tif.pages.first.tags
    sizes = [imagej.get("spacing"), _per_unit(tags.valueof("YResolution")), _per_unit(tags.valueof("XResolution"))]
    return voxel_size_nm(sizes, units)


def _per_unit(resolution: object) -> float | None:
    """A pixel's length from a resolution in pixels per unit, a fraction."""
    try:
        pixels, units = resolution if isinstance(resolution, tuple) else (0, 0)
        return float(units) / float(pixels)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _ome_voxel_size(text: str) -> VoxelSize | None:
    """(z, y, x) in nm from the first image of an OME-XML text."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    names = [f"PhysicalSize{a}" for a in "ZYX"]
    return voxel_size_nm([pixels.get(n) for n in names], [pixels.get(f"{n}Unit", "\u00b5m") for n in names])


def check_companion(path: str, tif: tifffile.TiffFile) -> None:
    """Refuse an OME-TIFF that leaves what it holds, and in which order, to another file.

    Raises:
        UserError: It does.
    """
    if tif.ome_metadata and "BinaryOnly" in tif.ome_metadata:
        root = ElementTree.fromstring(tif.ome_metadata)
        names = [e.get("MetadataFile") for e in root.iter() if e.tag.rpartition("}")[2] == "BinaryOnly"]
        if names:
            what = f"the OME-TIFF is described in another file ({names[0]}), which is not read"
            raise UserError(what, path, "save the image as one OME-TIFF or OME-Zarr, for example with bfconvert")


def tiff_metadata(tif: tifffile.TiffFile) -> dict[str, Any]:
    """Mitoseg's metadata: in ImageJ's Info, or an annotation of OME-XML."""
    imagej: Mapping[str, Any] = tif.imagej_metadata or {}
    if "Info" in imagej:
        return load_metadata(imagej["Info"])
    if tif.ome_metadata and "mitoseg" in tif.ome_metadata:
        root = ElementTree.fromstring(tif.ome_metadata)
        for element in root.iter():
            if element.tag.rpartition("}")[2] == "M" and element.get("K") == "mitoseg":
                return load_metadata(element.text)
    return {}
