"""Pictures of the worst errors, each at its largest slice, with the outlines of truth and result."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_erosion

from mitoseg.evaluation.figures import FALSE, MISSED, TRUTH, stretch
from mitoseg.evaluation.report.errors import Fault, worst_faults
from mitoseg.evaluation.report.markup import Html, data_uri, element, join, number, picture
from mitoseg.evaluation.report.options import Content
from mitoseg.evaluation.report.slices import RESULT
from mitoseg.geometry import Box
from mitoseg.volumes.base import Array, Volume

_LEAST, _MOST = 96, 288  # pixels of a crop's side
_SIDE = 288  # pixels of a picture's side, about
_QUALITY = 80


def gallery_section(content: Content) -> Html | None:
    """The worst errors; None without truth and result."""
    box, volumes = content.box, content.volumes
    if box is None or "truth" not in volumes or "result" not in volumes:
        return None
    faults = worst_faults(volumes["result"], volumes["truth"], box, content.options.errors)
    parts: list[Html] = []
    for kind, title in (("false", "False: found where there is none"), ("missed", "Missed")):
        cards = [_card(fault, content, box) for fault in faults if fault.kind == kind]
        if cards:
            parts += [element("h3", title), element("div", *cards, class_="gallery")]
    if not parts:
        return element("p", "There are no errors.")
    key = element(
        "p",
        _key(TRUTH),
        "outline of the truth ",
        _key(RESULT),
        "outline of the result. Connected runs of wrong voxels; whole objects first, then the largest. ",
        "A picture is the slice on which the error, tinted, is largest; a click shows it among the slices.",
        class_="soft",
    )
    return join(key, *parts)


def _key(colour: tuple[float, float, float]) -> Html:
    red, green, blue = (round(255 * c) for c in colour)
    return element("i", class_="swatch", style=f"background:rgb({red},{green},{blue})")


def _card(fault: Fault, content: Content, box: Box) -> Html:
    z, y, x = fault.at
    what = (
        ("false object" if fault.whole else "false part")
        if fault.kind == "false"
        else ("missed object" if fault.whole else "missed part")
    )
    size = f"{fault.voxels:,} voxels"
    if content.spacing is not None:
        size += f", {number(fault.voxels * float(np.prod(content.spacing)) * 1e-9, 3)} µm³"
    text = f"{what} at z {z}, y {y}, x {x}: {size}"
    data = picture(crop_picture(fault, content, box), _QUALITY)
    shown = element("img", src=data_uri("image/webp", data), alt=text)
    button = element(
        "button", shown, type="button", data_z=z, data_y=y, data_x=x, aria_label=f"show in the slices: {text}"
    )
    place = element("span", f"z {z}, y {y}, x {x}", class_="soft")
    return element(
        "figure", button, element("figcaption", element("b", what), element("br"), size, element("br"), place)
    )


def crop_picture(fault: Fault, content: Content, box: Box) -> npt.NDArray[np.uint8]:
    """The surroundings of an error as RGB, enlarged by a whole number: it is tinted, truth and result outlined."""
    volumes = content.volumes
    window = crop_window(fault, box)
    truth_yx = volumes["truth"].read(window)[0] == 1
    result_yx = volumes["result"].read(window)[0] != 0
    grey_yx = _grey(volumes.get("image"), window, truth_yx.shape)
    scale = max(1, round(_SIDE / max(grey_yx.shape)))
    square = np.ones((scale, scale), bool)
    rgb = np.repeat(np.kron(grey_yx, square)[..., None], 3, axis=-1).astype(np.float32)
    wrong_yx = (result_yx & ~truth_yx) if fault.kind == "false" else (truth_yx & ~result_yx)
    wrong_yx &= _within(fault.box, window)
    tint = np.kron(wrong_yx, square).astype(bool)
    rgb[tint] = 0.72 * rgb[tint] + 0.28 * np.array(FALSE if fault.kind == "false" else MISSED)
    for mask_yx, colour, depth in ((result_yx, RESULT, 2), (truth_yx, TRUTH, 1)):
        rgb[outline(np.kron(mask_yx, square).astype(bool), depth)] = colour
    return (255 * rgb + 0.5).astype(np.uint8)


def _within(box: Box, window: Box) -> npt.NDArray[np.bool_]:
    """The part of a window's slice that a box covers."""
    inside = np.zeros(window.shape[1:], bool)
    inside[box.clip(window).inside(window).slices[1:]] = True
    return inside


def outline(mask_yx: npt.NDArray[np.bool_], depth: int) -> npt.NDArray[np.bool_]:
    """The pixels of a mask that lie within ``depth`` pixels of its border; the picture's frame is no border."""
    inner: npt.NDArray[np.bool_] = binary_erosion(mask_yx, iterations=depth, border_value=1)
    return mask_yx & ~inner


def crop_window(fault: Fault, box: Box) -> Box:
    """A square of one slice round an error, inside the box."""
    extent = max(fault.box.shape[1:])
    z, *middle = fault.at
    side = int(min(max(1.6 * extent, _LEAST), _MOST))
    start, stop = [z], [z + 1]
    for centre, low, high in zip(middle, box.start[1:], box.stop[1:], strict=True):
        first = max(low, min(centre - side // 2, high - side))
        start.append(first)
        stop.append(min(first + side, high))
    return Box(tuple(start), tuple(stop))


def _grey(image: Volume | None, window: Box, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if image is None:
        return np.full(shape, 0.25, np.float32)
    image_yx: Array = image.read(window)[0]
    return stretch(image_yx)
