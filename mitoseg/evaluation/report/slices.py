"""Slices with what was found on them, one beside the other along z."""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt

from mitoseg.evaluation.figures import FALSE, HIT, LEFT_OUT, MISSED, TRUTH, Colour, nice_length, stretch
from mitoseg.evaluation.report.markup import Html, data_block, element, join, pack, picture
from mitoseg.evaluation.report.options import Content
from mitoseg.evaluation.report.reducing import picture_shape, small_image, small_labels
from mitoseg.geometry import Box
from mitoseg.metrics import IGNORE
from mitoseg.volumes.base import Volume

RESULT: Colour = (0.86, 0.47, 0.78)
COLOURS = {"truth": TRUTH, "result": RESULT, "hit": HIT, "false": FALSE, "missed": MISSED, "ignored": LEFT_OUT}
IN_TRUTH, IN_RESULT, NOT_COUNTED = 1, 2, 4
"""Bits of a pixel's code."""


def slices_section(content: Content) -> Html | None:
    """The viewer of slices; None without an image, labels or a result."""
    box, volumes = content.box, content.volumes
    if box is None:
        return None
    data = slice_data(content, box)
    tools = element("div", *_layer_boxes(volumes), *_sliders(len(data["z"])), class_="tools")  # type: ignore[arg-type]
    stage = element(
        "div",
        element(
            "canvas",
            id="slice",
            role="img",
            tabindex="0",
            aria_label="A slice of the volume with the chosen overlays; arrow keys change the slice",
        ),
        element("div", element("span", ""), id="bar", class_="bar"),
        element("div", id="mark", class_="mark", hidden=True),
        id="stage",
        class_="stage",
    )
    hint = (
        "Arrow keys or the slider move through z. Drag to move, + and \N{MINUS SIGN} or Ctrl and the wheel to zoom, "
        "click to pick a mitochondrion."
    )
    return join(
        tools,
        stage,
        element("p", element("output", id="where"), " ", element("span", id="under", class_="soft"), class_="where"),
        element("p", hint, class_="soft noprint"),
        data_block("slice-data", data),
    )


def slice_data(content: Content, box: Box) -> dict[str, object]:
    """What the viewer shows, for its script.

    Returns:
        ``width`` and ``height`` in pixels, ``start`` and ``size`` in voxels (z, y, x), ``voxel_nm`` or None, ``z`` of
        each picture in voxels, ``images`` (WebP in base64), ``codes`` (a byte a pixel, bits `IN_TRUTH`, `IN_RESULT`
        and `NOT_COUNTED`) and ``ids`` (uint32), both packed (`pack`), ``layers`` that can be shown, ``colours`` and
        ``bar``: its length in voxels of x, and its text.
    """
    volumes, options = content.volumes, content.options
    shape_yx = picture_shape(box.shape[1:], options.pixels)
    at = slice_positions(box, options.slices)
    images: list[str] = []
    if "image" in volumes:
        grey_zyx = stretch(np.stack([small_image(volumes["image"], z, box, shape_yx) for z in at]))
        shown_zyx = (255 * grey_zyx + 0.5).astype(np.uint8)
        images = [base64.b64encode(picture(grey_yx, options.quality)).decode("ascii") for grey_yx in shown_zyx]
    codes, ids = [], []
    for z in at:
        codes.append(pack(_codes(volumes, z, box, shape_yx)))
        if "instances" in volumes:
            ids.append(pack(small_labels(volumes["instances"], z, box, shape_yx).astype(np.uint32)))
    return {
        "width": shape_yx[1],
        "height": shape_yx[0],
        "start": box.start,
        "size": box.shape,
        "voxel_nm": content.spacing,
        "z": at,
        "images": images,
        "codes": codes,
        "ids": ids,
        "layers": layers(volumes),
        "colours": {name: [round(255 * c) for c in colour] for name, colour in COLOURS.items()},
        "bar": scale_bar(box.shape[2], None if content.spacing is None else content.spacing[2]),
    }


def slice_positions(box: Box, count: int) -> list[int]:
    """Slices from first to last, evenly spread.

    >>> slice_positions(Box((10, 0, 0), (20, 5, 5)), 4)
    [10, 13, 16, 19]
    """
    first, last = box.start[0], box.stop[0] - 1
    return [int(z) for z in np.unique(np.linspace(first, last, max(1, min(count, box.shape[0]))).round().astype(int))]


def scale_bar(width: int, pixel_nm: float | None) -> dict[str, object]:
    """A bar of a round length, at most a quarter of the width: ``voxels`` and ``text``."""
    length = nice_length(0.25 * width * (pixel_nm or 1))
    if pixel_nm is None:
        return {"voxels": length, "text": f"{length:g} px"}
    text = f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"
    return {"voxels": length / pixel_nm, "text": text}


def layers(volumes: dict[str, Volume]) -> list[str]:
    """What can be drawn over the image."""
    found = [name for name in ("truth", "result") if name in volumes]
    return [
        *(["errors"] if len(found) == 2 else []),
        *(["instances"] if "instances" in volumes else []),
        *found,
    ]


def _codes(volumes: dict[str, Volume], z: int, box: Box, shape_yx: tuple[int, int]) -> npt.NDArray[np.uint8]:
    code_yx = np.zeros(shape_yx, np.uint8)
    if "truth" in volumes:
        truth_yx = small_labels(volumes["truth"], z, box, shape_yx)
        code_yx |= np.where(truth_yx == 1, np.uint8(IN_TRUTH), np.uint8(0))
        code_yx |= np.where(truth_yx == IGNORE, np.uint8(NOT_COUNTED), np.uint8(0))
    if "result" in volumes:
        code_yx |= np.where(small_labels(volumes["result"], z, box, shape_yx) != 0, np.uint8(IN_RESULT), np.uint8(0))
    return code_yx


def _swatch(name: str) -> Html:
    red, green, blue = (round(255 * c) for c in COLOURS[name])
    return element("i", class_="swatch", style=f"background:rgb({red},{green},{blue})")


_NAMES = {
    "errors": join(_swatch("hit"), "found ", _swatch("false"), "false ", _swatch("missed"), "missed"),
    "instances": join(element("i", class_="swatch many"), "instances"),
    "truth": join(_swatch("truth"), "truth"),
    "result": join(_swatch("result"), "result"),
}


def _layer_boxes(volumes: dict[str, Volume]) -> list[Html]:
    names = layers(volumes)
    boxes = [
        element(
            "label", element("input", type="checkbox", data_layer=name, checked=name == names[0]), " ", _NAMES[name]
        )
        for name in names
    ]
    legend = element("legend", "Overlays")
    outline = element("label", element("input", type="checkbox", id="outline"), " outlines")
    opacity = element(
        "label", "opacity ", element("input", type="range", id="opacity", min=0, max=100, value=45, step=1)
    )
    return [element("fieldset", legend, *boxes, outline, opacity)] if boxes else []


def _sliders(count: int) -> list[Html]:
    slider = element("input", type="range", id="z", min=0, max=count - 1, value=count // 2, step=1)
    zoom = [
        element("button", sign, type="button", data_zoom=step, aria_label=name)
        for sign, step, name in (
            ("+", 1, "zoom in"),
            ("\N{MINUS SIGN}", -1, "zoom out"),
            ("1:1", 0, "show the whole slice"),
        )
    ]
    return [element("label", "slice ", slider, class_="wide"), element("span", *zoom, class_="buttons")]
