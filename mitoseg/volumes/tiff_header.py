"""What TIFF headers say of axes, voxel size and mitoseg's metadata: ImageJ, OME-XML and plain ones."""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

import numpy as np
import tifffile
from tifffile import PHOTOMETRIC

from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize
from mitoseg.volumes.stored import load_metadata
from mitoseg.volumes.units import voxel_size_nm

logger = logging.getLogger(__name__)
_KNOWN = "TZCYXS"
_BY_TIFFFILE = "1.11a"
"""The version of ImageJ that tifffile states in its files."""
_GREY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK)
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
_FULL = 65535
"""Full intensity in a table of colours."""


def tiff_axes(tif: tifffile.TiffFile, axes: str) -> str:
    """Tifffile's letters as `resolve_axes` takes them; I, Q and others say nothing.

    Nor do the channels of a file by tifffile, which counts slices as channels unless it is told otherwise.
    """
    version = (tif.imagej_metadata or {}).get("ImageJ")
    channels = version != _BY_TIFFFILE and 'Creator="tifffile' not in (tif.ome_metadata or "")
    return "".join(a if a in _KNOWN and (a != "C" or channels) else "?" for a in axes)


def flipped_bits(path: str, tif: tifffile.TiffFile, page: tifffile.TiffPage) -> int:
    """The bits that a TIFF stores inverted: all, where 0 is white; none of what ImageJ wrote.

    ImageJ's inverted table of colours says how an image looks; it counts and measures the values as they are stored.

    Raises:
        UserError: The values of a pixel are no grey value and no red, green and blue, or cannot be inverted.
    """
    _check_samples(path, page)
    orientation = page.tags.valueof("Orientation")
    if isinstance(orientation, int) and 1 < orientation <= 8:
        text = "%s: the TIFF states orientation %d; rows and columns are read in the order in which they are stored"
        logger.warning(text, path, orientation)
    if page.photometric == PHOTOMETRIC.PALETTE and page.colormap is not None and not tif.is_imagej:
        _check_table(path, page)
    if page.photometric != PHOTOMETRIC.MINISWHITE or "PhotometricInterpretation" not in page.tags:
        return 0
    if tif.is_imagej:
        text = "%s: ImageJ shows the TIFF inverted; its values are read as ImageJ measures them, not as it shows them"
        logger.warning(text, path)
        return 0
    if np.dtype(page.dtype).kind not in "bu":
        what = f"the TIFF states that its smallest value is white, which {page.dtype} cannot be turned round for"
        raise UserError(what, path, "save it with 0 as black")
    return (1 << page.bitspersample) - 1


def _check_samples(path: str, page: tifffile.TiffPage) -> None:
    """Refuse pixels of several values that are neither grey nor colour, with or without alpha."""
    samples, extra = page.samplesperpixel, tuple(page.extrasamples or ())
    colour = page.photometric == PHOTOMETRIC.RGB or (
        page.photometric == PHOTOMETRIC.YCBCR and page.compression != tifffile.COMPRESSION.NONE
    )
    grey = page.photometric in (*_GREY, PHOTOMETRIC.PALETTE) and (
        samples == 1 or (samples == 2 and extra[:1] in [(alpha,) for alpha in _ALPHA])
    )
    if not grey and not (colour and samples in (3, 4)) and "PhotometricInterpretation" in page.tags:
        kind = getattr(page.photometric, "name", page.photometric)
        raise UserError(f"a pixel of the TIFF holds {samples} values ({kind})", path, "save one grey channel")


def _check_table(path: str, page: tifffile.TiffPage) -> None:
    """Refuse a table that makes other greys of the stored numbers; numbers of colours are labels and stay.

    Raises:
        UserError: It does.
    """
    table = np.asarray(page.colormap).astype(int)
    used = table[:, : 1 + max(np.flatnonzero(table.any(axis=0)), default=0)]
    steps = np.arange(used.shape[1]) * _FULL / (table.shape[1] - 1)
    if (used == used[0]).all() and abs(used[0] - steps).max() > _FULL / 255:
        raise UserError("the TIFF's numbers stand for other greys in a table", path, "save it as a grey image")
    if not (used == used[0]).all():
        logger.warning("%s: a pixel of the TIFF is the number of a colour; numbers are read, as labels need it", path)


def tiff_voxel_size(tif: tifffile.TiffFile, *, flat: bool) -> VoxelSize | None:
    """(z, y, x) in nm from ImageJ's spacing, unit and resolution, or OME's PhysicalSize; None without all three.

    The resolution of other TIFFs is one for printing and is left alone.

    Args:
        tif: The open file.
        flat: Whether it holds one slice only, which needs no thickness.
    """
    if tif.ome_metadata:
        return _ome_voxel_size(tif.ome_metadata, flat)
    imagej = tif.imagej_metadata
    if not imagej:
        return None
    unit = imagej.get("unit", "")
    units = [imagej.get(key, unit) for key in ("zunit", "yunit", "unit")]
    tags = tif.pages.first.tags
    sizes = [imagej.get("spacing"), _per_unit(tags.valueof("YResolution")), _per_unit(tags.valueof("XResolution"))]
    return voxel_size_nm(sizes, units, flat=flat)


def _per_unit(resolution: object) -> float | None:
    """A pixel's length from a resolution in pixels per unit, a fraction."""
    try:
        pixels, units = resolution if isinstance(resolution, tuple) else (0, 0)
        return float(units) / float(pixels)
    except (TypeError, ValueError, ZeroDivisionError):
        return None


def _ome_voxel_size(text: str, flat: bool) -> VoxelSize | None:
    """(z, y, x) in nm from the first image of an OME-XML text."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return None
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return None
    names = [f"PhysicalSize{a}" for a in "ZYX"]
    units = [pixels.get(f"{n}Unit", "\u00b5m") for n in names]
    return voxel_size_nm([pixels.get(n) for n in names], units, flat=flat)


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
