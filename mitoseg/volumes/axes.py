"""Axes and voxel sizes as stated by files; axes come from the file or the user and are never guessed.

stored (T, Z, C, Y, X) of a hyperstack, axes "tzcyx"      box [z0:z1, y0:y1, x0:x1]
1  165  1  768 1024                                          |
0  z0:z1 0 y0:y1 x0:x1   <------------ index ----------------+
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, VoxelSize

logger = logging.getLogger(__name__)
_SPACE = "zyx"
_COLOUR = (3, 4)
_WORDS = {
    "depth": "z", "plane": "z", "section": "z", "slice": "z", "height": "y", "row": "y", "rows": "y", "width": "x",
    "col": "x", "column": "x", "columns": "x", "channel": "c", "channels": "c", "time": "t",
}  # fmt: skip
_NM = {
    "nm": 1.0, "nanometer": 1.0, "nanometre": 1.0, "nanometers": 1.0, "nanometres": 1.0,
    "um": 1e3, "\u00b5m": 1e3, "\u03bcm": 1e3, "\\u00b5m": 1e3, "micron": 1e3, "microns": 1e3,
    "micrometer": 1e3, "micrometre": 1e3, "micrometers": 1e3, "micrometres": 1e3,
    "mm": 1e6, "millimeter": 1e6, "millimetre": 1e6, "cm": 1e7, "m": 1e9, "meter": 1e9, "metre": 1e9,
    "pm": 1e-3, "picometer": 1e-3, "picometre": 1e-3, "angstrom": 0.1, "angstroms": 0.1, "\u00e5ngstr\u00f6m": 0.1,
    "\u00e5": 0.1, "\u212b": 0.1, "\\u00e5": 0.1, "\\u00c5": 0.1, "\\u212b": 0.1, "\\u03bcm": 1e3,
}  # fmt: skip
# Other sizes are not those of electron micrographs: 0.1 mm is a resolution for printing, 0.005 nm one in micrometres.
_SMALLEST_NM, _LARGEST_NM = 0.045, 1e5
_CLOSE = 1e-3  # relative difference up to which two stated voxel sizes agree


@dataclass(frozen=True)
class Layout:
    """The meaning of each stored axis: ``z``, ``y``, ``x``, ``c`` (colour), or ``-`` for a singleton to drop."""

    shape: tuple[int, ...]
    axes: str

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """(z, y, x); an axis that is not stored has length 1."""
        z, y, x = (self.shape[self.axes.index(a)] if a in self.axes else 1 for a in _SPACE)
        return z, y, x

    @property
    def colour(self) -> bool:
        """Whether voxels are RGB or RGBA, to be reduced to grey."""
        return "c" in self.axes

    def index(self, box: Box) -> tuple[slice, ...]:
        """The box (z, y, x) as slices of the stored axes."""
        of = dict(zip(_SPACE, box.slices, strict=True))
        return tuple(of.get(a, slice(0, n)) for a, n in zip(self.axes, self.shape, strict=True))

    def arrange(self, stored: Array, reduce: Callable[[Array], Array] | None = None) -> Array:
        """Rearrange what was read at `index` into ``image_zyx``; ``reduce`` removes the colour axis (None: `grey`)."""
        letters = self.axes.replace("-", "")
        array = stored.squeeze(tuple(i for i, a in enumerate(self.axes) if a == "-"))
        if "c" in letters:
            array = (reduce or grey)(np.moveaxis(array, letters.index("c"), -1))
            letters = letters.replace("c", "")
        array = array.transpose([letters.index(a) for a in _SPACE if a in letters])
        return array if len(letters) == 3 else array[None]


def grey(image_yxc: Array) -> Array:
    """Reduce 1 (grey), 2 (with alpha), 3 (RGB) or 4 (RGBA) channels to the largest of red, green and blue.

    Equal channels keep their value, and anything not black stays above zero, as labels require.
    """
    return np.asarray(image_yxc[..., 0] if image_yxc.shape[-1] < 3 else image_yxc[..., :3].max(-1))


def colour_codes(image_yxc: Array) -> Array:
    """Colour labels as numbers: greys are unchanged, others are 2**24 + 0xRRGGBB; transparent is 0 unless all is."""
    colours = image_yxc[..., :3] if image_yxc.shape[-1] > 2 else image_yxc[..., [0, 0, 0]]
    coloured = (colours != colours[..., :1]).any(-1)
    codes = colours[..., 0].astype(np.uint32)
    if coloured.any():
        if image_yxc.dtype != np.uint8:
            remedy = "save them with 8 bits a channel, or as whole numbers"
            raise UserError("the labels are in colours of more than 8 bits", image_yxc.dtype.name, remedy)
        red, green, blue = (colours[coloured, i].astype(np.uint32) for i in range(3))
        codes[coloured] = 2**24 + (red << 16 | green << 8 | blue)
    if image_yxc.shape[-1] in (2, 4) and image_yxc[..., -1].any():
        codes[image_yxc[..., -1] == 0] = 0
    return codes


def stated_axes(attributes: Mapping[str, Any], count: int, *first: object) -> str | None:
    """A letter of ``tczyx`` per axis, from ``first`` or the metadata of xarray, funlib or COSEM; None if unstated."""
    transform = attributes.get("transform")
    cosem = transform.get("axes") if isinstance(transform, Mapping) else None
    for named in (*first, *(attributes.get(key) for key in ("_ARRAY_DIMENSIONS", "axis_names", "axes")), cosem):
        names = decoded(named)
        if isinstance(names, str):
            with contextlib.suppress(ValueError):
                names = json.loads(names)
        if isinstance(names, str):
            names = [name for name in re.split(r"[\s,;]+", names) if name]
        names = [decoded(name) for name in (np.ravel(np.asarray(names)) if names is not None else ())]
        names = [str(name.get("name") if isinstance(name, Mapping) else name).lower().strip("^ ") for name in names]
        names = list(names[0]) if len(names) == 1 and count > 1 else names
        letters = [name if len(name) == 1 else _WORDS.get(name, "?") for name in names]
        if len(letters) == count and set(letters) <= set("tczyx"):
            return "".join(letters)
    return None


def resolve_axes(path: str, shape: Sequence[int], stated: str | None = None, asked: str | None = None) -> Layout:
    """Decide which stored axis is which, from the user's letters (``asked``) or the file's, one per axis.

    ``s``: the samples of a pixel, which are colour (only TIFF distinguishes them from channels); ``?``: unknown.
    Without letters a 3-D array is z, y, x and a 2-D one y, x, unless its first or last axis may be colour.
    """
    shape = tuple(int(n) for n in shape)
    if 0 in shape:
        raise UserError(f"the volume is empty, its shape is {shape}", path, "give one with voxels")
    said = (stated or "?" * len(shape)).lower()
    if asked is not None:
        return _as_asked(path, shape, said.replace("s", "c"), asked)
    axes = "".join("-" if n == 1 and a in "tcs?" and stated else a for a, n in zip(said, shape, strict=True))
    samples = axes.find("s")
    if samples >= 0:
        rest = shape[:samples] + shape[samples + 1 :]
        layout = resolve_axes(path, rest, (axes[:samples] + axes[samples + 1 :]).replace("-", "c"))
        return Layout(shape, f"{layout.axes[:samples]}c{layout.axes[samples:]}")
    if len(axes) - axes.count("-") == 4:  # tifffile writes six slices as one slice with six "channels"
        axes = "".join("-" if n == 1 and a == "z" else a for a, n in zip(axes, shape, strict=True))
    kept = [(a, n) for a, n in zip(axes, shape, strict=True) if a != "-"]
    letters = "".join(a for a, _ in kept)
    if len(kept) == 2 and set(letters) <= set("yx?"):
        return Layout(shape, _fill(axes, letters if set(letters) == set("yx") else "yx"))
    if sorted(letters) == sorted(_SPACE):
        return Layout(shape, axes)
    in_order = all(a in "?t" or a == b for a, b in zip(letters, _SPACE, strict=False))
    if len(kept) == 3 and in_order and kept[0][1] not in _COLOUR and kept[-1][1] not in _COLOUR:
        if "t" in letters:
            logger.warning("%s: the axis that the file calls time is taken as z; give axes=zyx to confirm", path)
        return Layout(shape, _fill(axes, _SPACE))
    remedy = "say which axis is which, for example axes=zyx or axes=zyxc"
    raise UserError(f"the axes of a volume of shape {shape} are ambiguous", path, remedy)


def _fill(axes: str, letters: str) -> str:
    names = iter(letters)
    return "".join("-" if a == "-" else next(names) for a in axes)


def _as_asked(path: str, shape: tuple[int, ...], said: str, asked: str) -> Layout:
    """The layout given by the user; singleton axes may be left out."""
    letters = str(asked).lower().replace("s", "c")
    if not {"y", "x"} <= set(letters) or set(letters) - set("zyxct") or len(set(letters)) < len(letters):
        raise UserError("cannot read the axes", asked, "give each of z, y, x once, for example axes=zyx or axes=zyxc")
    if len(shape) == 2 and "z" in letters:  # a stack of one slice
        letters = letters.replace("z", "")
    axes, spare = list(said), len(shape) - len(letters)
    droppable = [i for i, n in enumerate(shape) if n == 1 and said[i] not in "yx"]
    for i in sorted(droppable, key=lambda i: said[i] in letters)[: max(spare, 0)]:
        axes[i], spare = "-", spare - 1
    if spare:
        raise UserError(f"axes={asked} does not fit a volume of shape {shape}", path, "give one letter for each axis")
    axes = list(_fill("".join(axes), letters))
    for i, n in enumerate(shape):
        if axes[i] in "tc" and n == 1:
            axes[i] = "-"
        elif axes[i] == "t" or (axes[i] == "c" and n not in _COLOUR):
            what = f"axis {axes[i]} of shape {shape} holds {n} images"
            raise UserError(what, path, "give a volume of one channel and one time point, or RGB(A) colour")
    return Layout(shape, "".join(axes))


def in_nm(value: object, unit: object) -> float | None:
    """A length in nm, or None if the unit is unknown or the number cannot be a voxel size."""
    factor = _NM.get(str(unit).strip().lower())
    try:
        length = float(value) * factor if factor else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return float(f"{length:.12g}") if _SMALLEST_NM < length < _LARGEST_NM else None


def voxel_size_nm(
    sizes: Sequence[object], units: Sequence[object] | str = "nm", *, flat: bool = False
) -> VoxelSize | None:
    """A voxel size in nm from sizes along z, y, x and one or three units; None unless all are known.

    A single slice (``flat``) of unknown thickness is assumed to be as thick as its pixels are wide.
    """
    each = [units] * 3 if isinstance(units, str) else list(units)
    if len(sizes) != 3 or len(each) != 3:
        return None
    z, y, x = (in_nm(size, unit) for size, unit in zip(sizes, each, strict=True))
    if flat and z is None and y is not None and x is not None:
        logger.warning("one slice of unknown thickness is assumed as thick as its pixels are wide, %g nm", x)
        z = x
    return None if z is None or y is None or x is None else (z, y, x)


def stated_sizes(
    attributes: Mapping[str, object], letters: str, pixel_axes: str | None = None
) -> dict[str, VoxelSize]:
    """The voxel sizes stated by the attributes of an array or group, keyed by convention.

    voxel_size_nm, element_size_um      z, y, x                           mitoseg; ImageJ's HDF5 plugin, ilastik
    transform                           axes, scale, units                COSEM
    pixelResolution                     x, y, z; with a unit or in um     n5-viewer, COSEM (in N5: as stored)
    resolution, voxel_size              as stored; in units, or in nm     CREMI, funlib, Paintera
    """
    found: dict[str, VoxelSize] = {}

    def add(name: str, values: object, units: object, axes: str) -> None:
        sizes, each = _as_list(_parsed(values)), _as_list(_parsed(units))
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
    transform, pixel = _parsed(attributes.get("transform")), _parsed(attributes.get("pixelResolution"))
    units = attributes.get("units", attributes.get("unit", "nm"))
    add("voxel_size_nm", attributes.get("voxel_size_nm"), "nm", "zyx")
    add("element_size_um", attributes.get("element_size_um"), "um", "zyx")
    if isinstance(transform, Mapping):
        names = "".join(str(a)[:1].lower() for a in _as_list(transform.get("axes")))
        add("transform", transform.get("scale"), transform.get("units", "nm"), names)
    stated = (pixel.get("dimensions"), pixel.get("unit", "um")) if isinstance(pixel, Mapping) else (pixel, units)
    add("pixelResolution", stated[0], stated[1], pixel_axes)
    add("resolution", attributes.get("resolution"), units, space)
    add("voxel_size", attributes.get("voxel_size"), units, space)
    return found


def warn_of_packing(path: str, attributes: Mapping[str, object]) -> None:
    """Warn if attributes state a scale or offset of the stored values (CF, xarray, HDF5), which are not applied."""
    plain = {"scale_factor": 1, "add_offset": 0, "IMAGE_WHITE_IS_ZERO": 0}
    stated = {key: attributes[key] for key, value in plain.items() if np.any(attributes.get(key, value) != value)}
    if stated:
        logger.warning("%s: values are read as they are stored, although attributes say otherwise: %s", path, stated)


def _as_list(value: object) -> list[object]:
    """An attribute as a list; empty if it is missing or a mapping."""
    return [] if value is None or isinstance(value, Mapping) else [decoded(v) for v in np.ravel(np.asarray(value))]


def _parsed(value: object) -> object:
    """An attribute, which some programs (such as N5 in HDF5) write as JSON text or comma-separated numbers."""
    value = decoded(value)
    if isinstance(value, str) and "," in value:
        with contextlib.suppress(ValueError):
            return json.loads(value if value.strip()[:1] in ("[", "{") else f"[{value}]")
    return value


def decoded(value: object) -> object:
    """An attribute, decoded to text if it is bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def same_size(a: VoxelSize, b: VoxelSize) -> bool:
    """Whether two stated voxel sizes agree."""
    return all(math.isclose(p, q, rel_tol=_CLOSE) for p, q in zip(a, b, strict=True))


def agreed_size(path: str, found: Mapping[str, VoxelSize | None]) -> VoxelSize | None:
    """The voxel size that all statements agree on; None without any."""
    sizes = {name: size for name, size in found.items() if size}
    first = next(iter(sizes.values()), None)
    if first is None or all(same_size(first, size) for size in sizes.values()):
        return first
    stated = ", ".join(f"{name} {' x '.join(f'{n:g}' for n in size)}" for name, size in sizes.items())
    what = f"the volume states contradictory voxel sizes, in nm (z, y, x): {stated}"
    raise UserError(what, path, "give voxel_size=[z,y,x] in nm")


def coarser_size(size: VoxelSize, factors: Sequence[float]) -> VoxelSize:
    """The voxel size of a level, from that at full resolution and the level's factors along z, y, x."""
    z, y, x = (float(f"{a * factor:.12g}") for a, factor in zip(size, factors, strict=True))
    return z, y, x


def bdv_voxel_size(container: Path, setup: int) -> VoxelSize | None:
    """The full-resolution voxel size of a setup, from BigDataViewer's XML file beside its HDF5 or N5 file."""
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
    """The user's voxel size, (z, y, x) in nm; anything but three numbers in a plausible range is refused."""
    try:
        z, y, x = (float(size) for size in ([] if isinstance(voxel_size, str) else voxel_size))
    except (TypeError, ValueError):
        z = y = x = math.nan
    if not all(_SMALLEST_NM < size < _LARGEST_NM for size in (z, y, x)) or max(z, y, x) > 1e3 * min(z, y, x):
        raise UserError("cannot read the voxel size", voxel_size, "give z, y, x in nm, for example voxel_size=[5,5,5]")
    return z, y, x
