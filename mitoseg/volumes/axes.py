"""Which stored axis is z, y, x: taken from the file or from the user, never guessed.

stored (T, Z, C, Y, X) of a hyperstack, axes "tzcyx"      box [z0:z1, y0:y1, x0:x1]
1  165  1  768 1024                                          |
0  z0:z1 0 y0:y1 x0:x1   <------------ index ----------------+
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array
from mitoseg.volumes.units import decoded

logger = logging.getLogger(__name__)
_SPACE = "zyx"
_COLOUR = (3, 4)
_WORDS = {
    "depth": "z", "plane": "z", "section": "z", "slice": "z", "height": "y", "row": "y", "rows": "y", "width": "x",
    "col": "x", "column": "x", "columns": "x", "channel": "c", "channels": "c", "time": "t",
}  # fmt: skip
_ASK = "say which axis is which, for example axes=zyx or axes=zyxc"


@dataclass(frozen=True)
class Layout:
    """Where z, y, x and colour lie among the stored axes.

    Attributes:
        shape: As stored.
        axes: One letter for each stored axis: ``z``, ``y``, ``x``, ``c`` for colour, ``-`` for a singleton to drop.
    """

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
        """What was read at `index`, as ``image_zyx``; ``reduce`` takes the colours away, None: `grey`."""
        dropped = tuple(i for i, a in enumerate(self.axes) if a == "-")
        letters = self.axes.replace("-", "")
        array = stored.squeeze(dropped)
        if "c" in letters:
            array = (reduce or grey)(np.moveaxis(array, letters.index("c"), -1))
            letters = letters.replace("c", "")
        array = array.transpose([letters.index(a) for a in _SPACE if a in letters])
        return array if len(letters) == 3 else array[None]


def grey(image_yxc: Array) -> Array:
    """Reduce colour to grey: the largest of red, green and blue; alpha is left out.

    Equal channels keep their value, and whatever is not black stays above zero, which is what labels need.

    Args:
        image_yxc: 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA) channels last, any leading axes.
    """
    return np.asarray(image_yxc[..., 0] if image_yxc.shape[-1] < 3 else image_yxc[..., :3].max(-1))


def colour_codes(image_yxc: Array) -> Array:
    """Labels in colour as whole numbers, each colour another one: a grey is itself, any other 2**24 + 0xRRGGBB.

    What is wholly transparent is 0, unless all of the image is.

    Args:
        image_yxc: As of `grey`.
    """
    colours = image_yxc[..., :3] if image_yxc.shape[-1] > 2 else image_yxc[..., [0, 0, 0]]
    coloured = (colours != colours[..., :1]).any(-1)
    codes = colours[..., 0].astype(np.uint32)
    if coloured.any():
        if image_yxc.dtype != np.uint8:
            remedy = "save them with 8 bits a channel, or as whole numbers"
            raise UserError("labels in colours of more than 8 bits", image_yxc.dtype.name, remedy)
        red, green, blue = (colours[coloured, i].astype(np.uint32) for i in range(3))
        codes[coloured] = 2**24 + (red << 16 | green << 8 | blue)
    if image_yxc.shape[-1] in (2, 4) and image_yxc[..., -1].any():
        codes[image_yxc[..., -1] == 0] = 0
    return codes


def stated_axes(attributes: Mapping[str, Any], count: int, *first: object) -> str | None:
    """The letters of an array's axes, as the metadata of programs name them.

    Args:
        attributes: Of the array: ``_ARRAY_DIMENSIONS`` of xarray, ``axis_names`` of funlib, ``axes``, ``transform`` of
            COSEM.
        count: How many axes it has.
        *first: Names that come before those.

    Returns:
        A letter of ``tczyx`` for each axis; None where nothing names all of them.

    >>> stated_axes({"axes": ["width", "height", "depth"]}, 3), stated_axes({"axes": '["c^","y","x"]'}, 3)
    ('xyz', 'cyx')
    >>> stated_axes({"axes": "x, y, z"}, 3), stated_axes({"axes": [{"name": "z"}, {"name": "y"}]}, 3)
    ('xyz', None)
    """
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
    """Decide which stored axis is which.

    A 3-D stack is z, y, x and a 2-D one y, x, unless the file says otherwise; anything with a first or last axis of 3
    or 4, or with four axes longer than 1, needs either the file's own statement of z, y and x or the user's. The
    samples of a pixel, which only TIFF tells from channels, are colour.

    Args:
        path: For the message.
        shape: As stored, all axes.
        stated: What the file says, a letter for each axis, ``s`` for the samples of a pixel, ``?`` where it does not
            say; None where it says nothing.
        asked: What the user says (``axes=``); singletons may be left out.
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
    if len(axes) - axes.count("-") == 4:  # one slice of z with six "channels" is how tifffile writes six slices
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
            logger.warning("%s: the axis that the file calls time is taken for z; give axes=zyx to say so", path)
        return Layout(shape, _fill(axes, _SPACE))
    raise UserError(f"the axes of a volume of shape {shape} are ambiguous", path, _ASK)


def _fill(axes: str, letters: str) -> str:
    """``axes`` with its kept places named in turn."""
    names = iter(letters)
    return "".join("-" if a == "-" else next(names) for a in axes)


def _as_asked(path: str, shape: tuple[int, ...], said: str, asked: str) -> Layout:
    """The layout that the user names, dropping singletons that she left out."""
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
            raise UserError(what, path, "give a volume of one channel and one time, or RGB(A) colour")
    return Layout(shape, "".join(axes))
