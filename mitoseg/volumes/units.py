"""Physical sizes of voxels: from the units that files use to nm."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

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
_SMALLEST_NM, _LARGEST_NM = 0.01, 1e5
"""Other sizes are no electron micrograph's: 0.1 mm is a resolution for printing, 0.005 nm one in micrometres."""


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


def check_voxel_size(voxel_size: Sequence[float] | str) -> VoxelSize:
    """The voxel size that a user gives, (z, y, x) in nm.

    Raises:
        UserError: Not three positive numbers.
    """
    try:
        z, y, x = (float(size) for size in ([] if isinstance(voxel_size, str) else voxel_size))
    except (TypeError, ValueError):
        z = y = x = math.nan
    if not all(math.isfinite(size) and size > 0 for size in (z, y, x)):
        raise UserError("cannot read the voxel size", voxel_size, "give z, y, x in nm, for example voxel_size=[5,5,5]")
    return z, y, x
