"""Physical sizes of voxels: from the units that files use to nm."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mitoseg.errors import UserError
from mitoseg.volumes.base import VoxelSize

logger = logging.getLogger(__name__)
_NM = {
    "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0, "nanometers": 1.0, "nanometres": 1.0,
    "um": 1e3, "\u00b5m": 1e3, "\u03bcm": 1e3, "\\u00b5m": 1e3, "micron": 1e3, "microns": 1e3,
    "micrometer": 1e3, "micrometre": 1e3, "micrometers": 1e3, "micrometres": 1e3,
    "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "cm": 1e7, "m": 1e9, "meter": 1e9, "metre": 1e9,
    "pm": 1e-3, "picometer": 1e-3, "picometre": 1e-3, "angstrom": 0.1, "angstroms": 0.1, "\u00e5ngstr\u00f6m": 0.1,
    "\u00e5": 0.1, "\u212b": 0.1, "\\u00e5": 0.1, "\\u00c5": 0.1, "\\u212b": 0.1, "\\u03bcm": 1e3,
}  # fmt: skip
_SMALLEST_NM, _LARGEST_NM = 0.045, 1e5
"""Other sizes are no electron micrograph's: 0.1 mm is a resolution for printing, 0.005 nm one in micrometres."""
_CLOSE = 1e-3
"""How far two statements of one voxel size may differ, as a share of it."""


def in_nm(value: object, unit: object) -> float | None:
    """A length in nm, or None where the unit is unknown or the number cannot be a voxel's size.

    >>> in_nm(0.005, "micron"), in_nm(72, "inch"), in_nm(0, "nm")
    (5.0, None, None)
    """
    factor = _NM.get(str(unit).strip().lower())
    try:
        length = float(value) * factor if factor else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return float(f"{length:.12g}") if _SMALLEST_NM < length < _LARGEST_NM else None


def voxel_size_nm(
    sizes: Sequence[object], units: Sequence[object] | str = "nm", *, flat: bool = False
) -> VoxelSize | None:
    """A voxel size in nm, or None unless all of z, y and x are known.

    Args:
        sizes: Along z, y, x.
        units: One for all, or one for each.
        flat: Whether there is one slice only: one without a thickness is taken to be as thick as a pixel is wide.
    """
    each = [units] * 3 if isinstance(units, str) else list(units)
    if len(sizes) != 3 or len(each) != 3:
        return None
    z, y, x = (in_nm(size, unit) for size, unit in zip(sizes, each, strict=True))
    if flat and z is None and y is not None and x is not None:
        logger.warning("one slice of unknown thickness is taken to be as thick as its pixels are wide, %g nm", x)
        z = x
    return None if z is None or y is None or x is None else (z, y, x)


def stated_sizes(
    attributes: Mapping[str, object], letters: str, pixel_axes: str | None = None
) -> dict[str, VoxelSize]:
    """The voxel sizes that the attributes of an array or group state, by the names of their conventions.

    voxel_size_nm, element_size_um      z, y, x                           mitoseg; ImageJ's HDF5 plugin, ilastik
    transform                           axes, scale, units                COSEM
    pixelResolution                     x, y, z; with a unit or in um     n5-viewer, COSEM (in N5: as stored)
    resolution, voxel_size              as stored; in units, or in nm     CREMI, funlib, Paintera
    """
    found: dict[str, VoxelSize] = {}

    def add(name: str, values: object, units: object, axes: str) -> None:
        sizes, each = as_list(parsed(values)), as_list(parsed(units))
        if len(sizes) == len(letters) != len(axes):
            axes = letters
        elif len(sizes) < len(axes) and "z" not in letters:
            axes = axes.replace("z", "")
        each = each * len(sizes) if len(each) == 1 else each
        if not set("yx") <= set(axes) or not len(sizes) == len(each) == len(axes):
            return
        of = dict(zip(axes, zip(sizes, each, strict=True), strict=True))
        size, unit = zip(*(of.get(a, (None, "")) for a in "zyx"), strict=True)
        nm = voxel_size_nm(size, unit, flat="z" not in letters)
        if nm is not None:
            found[name] = nm

    space = "".join(a for a in letters if a in "zyx")
    pixel_axes = pixel_axes or space[::-1]
    add("voxel_size_nm", attributes.get("voxel_size_nm"), "nm", "zyx")
    add("element_size_um", attributes.get("element_size_um"), "um", "zyx")
    transform, pixel = parsed(attributes.get("transform")), parsed(attributes.get("pixelResolution"))
    units = attributes.get("units", attributes.get("unit", "nm"))
    if isinstance(transform, Mapping):
        names = "".join(str(a)[:1].lower() for a in as_list(transform.get("axes")))
        add("transform", transform.get("scale"), transform.get("units", "nm"), names)
    if isinstance(pixel, Mapping):
        add("pixelResolution", pixel.get("dimensions"), pixel.get("unit", "um"), pixel_axes)
    else:
        add("pixelResolution", pixel, units, pixel_axes)
    add("resolution", attributes.get("resolution"), units, space)
    add("voxel_size", attributes.get("voxel_size"), units, space)
    return found


def warn_of_packing(path: str, attributes: Mapping[str, object]) -> None:
    """One warning where attributes say that stored values mean others (CF's, xarray's and HDF5's own convention)."""
    plain = {"scale_factor": 1, "add_offset": 0, "IMAGE_WHITE_IS_ZERO": 0}
    stated = {key: attributes[key] for key, value in plain.items() if np.any(attributes.get(key, value) != value)}
    if stated:
        logger.warning("%s: values are read as they are stored, although attributes say otherwise: %s", path, stated)


def as_list(value: object) -> list[object]:
    """An attribute as a list; empty where it is missing or a mapping."""
    return [] if value is None or isinstance(value, Mapping) else [decoded(v) for v in np.ravel(np.asarray(value))]


def parsed(value: object) -> object:
    """An attribute, which N5 in HDF5 and others write as a text of JSON, or as numbers with commas."""
    value = decoded(value)
    if isinstance(value, str) and "," in value:
        with contextlib.suppress(ValueError):
            return json.loads(value if value.strip()[:1] in ("[", "{") else f"[{value}]")
    return value


def decoded(value: object) -> object:
    """An attribute, as a text where it is one in bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def same_size(a: VoxelSize, b: VoxelSize) -> bool:
    """Whether two statements of a voxel size agree."""
    return all(math.isclose(p, q, rel_tol=_CLOSE) for p, q in zip(a, b, strict=True))


def agreed_size(path: str, found: Mapping[str, VoxelSize]) -> VoxelSize | None:
    """The voxel size that all statements agree on; None without any."""
    first = next(iter(found.values()), None)
    if first is None or all(same_size(first, size) for size in found.values()):
        return first
    stated = ", ".join(f"{name} {' x '.join(f'{n:g}' for n in size)}" for name, size in found.items())
    what = f"the volume states voxel sizes that contradict one another, in nm (z, y, x): {stated}"
    raise UserError(what, path, "give voxel_size=[z,y,x] in nm")


def bdv_voxel_size(container: Path, setup: int) -> VoxelSize | None:
    """What BigDataViewer's XML file beside its HDF5 or N5 file says of a setup's full resolution."""
    file = container.with_suffix(".xml")
    try:
        root = ElementTree.parse(file).getroot() if file.is_file() else None
    except ElementTree.ParseError:
        return None
    for view in root.iter("ViewSetup") if root is not None else ():
        if (view.findtext("id") or "").strip() == str(setup):
            sizes = (view.findtext("voxelSize/size") or "").split()
            return voxel_size_nm(sizes[::-1], (view.findtext("voxelSize/unit") or "").strip())
    return None


def check_voxel_size(voxel_size: Sequence[float] | str) -> VoxelSize:
    """The voxel size that a user gives, (z, y, x) in nm.

    Raises:
        UserError: Not three numbers of the size of voxels, in nm.
    """
    try:
        z, y, x = (float(size) for size in ([] if isinstance(voxel_size, str) else voxel_size))
    except (TypeError, ValueError):
        z = y = x = math.nan
    if not all(_SMALLEST_NM < size < _LARGEST_NM for size in (z, y, x)) or max(z, y, x) > 1e3 * min(z, y, x):
        raise UserError("cannot read the voxel size", voxel_size, "give z, y, x in nm, for example voxel_size=[5,5,5]")
    return z, y, x
