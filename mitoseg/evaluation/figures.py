"""The abstract's Figure 1: a slice, its truth, and the result with its errors in colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from mitoseg.evaluation.decision import decide
from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box, slabs
from mitoseg.metrics import IGNORE
from mitoseg.storage import atomic_output
from mitoseg.volumes.base import Array, Volume

Colour = tuple[float, float, float]
Layer = tuple[npt.NDArray[np.bool_], Colour, float]
"""Where, in what colour, and how opaque."""

# Okabe and Ito's palette, which colour-blind readers can tell apart (jfly.uni-koeln.de/color).
HIT: Colour = (0.0, 0.72, 0.50)
FALSE: Colour = (0.90, 0.29, 0.0)
MISSED: Colour = (0.34, 0.71, 0.95)
TRUTH: Colour = (0.94, 0.89, 0.26)
LEFT_OUT: Colour = (0.5, 0.5, 0.5)

TRUTH_KEY = (("mitochondria", TRUTH),)
ERROR_KEY = (("found (TP)", HIT), ("false (FP)", FALSE), ("missed (FN)", MISSED))
"""What the colours mean."""

_PANEL = 5.0  # inches, the longer side of one panel
_MARGIN, _TOP, _BOTTOM = 0.06, 0.34, 0.36  # inches


def stretch(image_yx: Array, percentiles: tuple[float, float] = (0.3, 99.7)) -> npt.NDArray[np.float32]:
    """Grey levels in [0, 1] for display, the given percentiles becoming black and white."""
    low, high = (float(v) for v in np.percentile(image_yx, percentiles))
    grey = (image_yx.astype(np.float32) - low) / max(high - low, 1e-6)
    result: npt.NDArray[np.float32] = np.clip(grey, 0, 1)
    return result


def overlay_figure(
    image_yx: Array,
    truth_yx: npt.NDArray[np.uint8],
    result_yx: npt.NDArray[np.bool_],
    *,
    title: str = "",
    voxel_size: Sequence[float] | None = None,
    dpi: float = 200,
) -> Figure:
    """Three panels side by side: image, truth, and result with its errors in colour.

    Args:
        image_yx: Grey levels of any type; contrast is stretched for display.
        truth_yx: 0 background, 1 foreground, 255 ignored.
        result_yx: Foreground.
        title: Put over the image.
        voxel_size: In nm; the last two are y and x. Without it the scale bar counts pixels.
        dpi: Of the figure, 5 inches to a panel.

    Returns:
        A figure on an Agg canvas (no window, no pyplot), for ``savefig`` or a TensorBoard logger.

    Raises:
        ValueError: The shapes differ.
    """
    if not image_yx.shape == truth_yx.shape == result_yx.shape:
        raise ValueError(f"shapes differ: {image_yx.shape}, {truth_yx.shape}, {result_yx.shape}")
    pixel_y, pixel_x = (1.0, 1.0) if voxel_size is None else (float(s) for s in voxel_size[-2:])
    figure, axes = _panels(image_yx.shape[0] * pixel_y, image_yx.shape[1] * pixel_x, dpi)
    grey = stretch(image_yx)
    panels: tuple[list[Layer], ...] = ([], truth_layers(truth_yx), error_layers(truth_yx, result_yx))
    for ax, name, layers in zip(axes, (title or "image", "truth", "result"), panels, strict=True):
        ax.imshow(blend(grey, layers), aspect=pixel_y / pixel_x, interpolation="antialiased")
        ax.set_title(name, fontsize=10, pad=4)
        ax.set_axis_off()
    scale_bar(axes[0], image_yx.shape, None if voxel_size is None else pixel_x)
    _legends(axes, bool((truth_yx == IGNORE).any()))
    return figure


def truth_layers(truth_yx: npt.NDArray[np.uint8]) -> list[Layer]:
    """Mitochondria, and what is not counted."""
    return [(truth_yx == 1, TRUTH, 0.45), (truth_yx == IGNORE, LEFT_OUT, 0.6)]


def error_layers(truth_yx: npt.NDArray[np.uint8], result_yx: npt.NDArray[np.bool_]) -> list[Layer]:
    """What was found, made up and missed, and what is not counted."""
    truth, result, ignored = truth_yx == 1, np.asarray(result_yx, bool), truth_yx == IGNORE
    wrong = result & ~truth & ~ignored
    return [
        (truth & result, HIT, 0.5),
        (wrong, FALSE, 0.95),
        (truth & ~result, MISSED, 0.95),
        (ignored, LEFT_OUT, 0.6),
    ]


def save_overlays(
    folder: Path | str,
    image: Volume,
    truth: Volume,
    prediction: Volume,
    *,
    threshold: float | None = None,
    count: int = 5,
    crop: Box | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
) -> list[Path]:
    """Write `overlay_figure` of slices that hold mitochondria, evenly spread along z.

    Args:
        folder: Where the PNG files go, ``z0012.png`` and so on; made if missing.
        image: The image volume.
        truth: Mapped labels.
        prediction: Probabilities, a mask or instances.
        threshold: Overrides the one in the prediction's metadata.
        count: How many at most; if no slice holds a mitochondrion, any will do.
        crop: The part to show.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: In nm; None: the image's, else the truth's.

    Returns:
        The files.

    Raises:
        UserError: The shapes differ, or a file cannot be written.
    """
    check_shapes(image=image, truth=truth, prediction=prediction)
    crop = crop or truth.box
    decision = decide(prediction, threshold, kind)
    spacing = voxel_size or image.voxel_size or truth.voxel_size
    paths = []
    for z in _slices_to_show(truth, crop, count):
        box = Box((z, *crop.start[1:]), (z + 1, *crop.stop[1:]))
        result_yx = decision.foreground(prediction.read(box))[0]
        figure = overlay_figure(
            image.read(box)[0], truth.read(box)[0], result_yx, title=f"image, z = {z}", voxel_size=spacing
        )
        paths.append(Path(folder) / f"z{z:04d}.png")
        with atomic_output(paths[-1], overwrite=True) as temporary:
            figure.savefig(temporary, format="png")
    return paths


def _slices_to_show(truth: Volume, crop: Box, count: int) -> list[int]:
    with_foreground = [slab.start[0] for slab in slabs(crop, 1) if (truth.read(slab) == 1).any()]
    candidates = with_foreground or list(range(crop.start[0], crop.stop[0]))
    # The middle of each of `count` equal shares, so that neither the first nor the last slice stands for a volume.
    at = (np.arange(min(count, len(candidates))) + 0.5) * len(candidates) / max(min(count, len(candidates)), 1)
    return [candidates[int(i)] for i in at]


def _panels(height: float, width: float, dpi: float) -> tuple[Figure, list[Axes]]:
    scale = _PANEL / max(height, width)
    h, w = max(height * scale, 0.5), max(width * scale, 0.5)
    total_w, total_h = 3 * w + 4 * _MARGIN, h + _TOP + _BOTTOM
    figure = Figure(figsize=(total_w, total_h), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    lefts = (_MARGIN + i * (w + _MARGIN) for i in range(3))
    axes = [figure.add_axes((left / total_w, _BOTTOM / total_h, w / total_w, h / total_h)) for left in lefts]
    return figure, axes


def blend(grey_yx: npt.NDArray[np.float32], layers: Sequence[Layer]) -> npt.NDArray[np.float32]:
    """Grey levels in [0, 1] under layers of colour, as RGB."""
    dimmed_yx = 0.1 + 0.72 * grey_yx if layers else grey_yx  # colours stand out from softer greys
    rgb_yxc = np.repeat(dimmed_yx[..., None], 3, axis=-1)
    for mask_yx, colour, alpha in layers:
        rgb_yxc[mask_yx] = (1 - alpha) * rgb_yxc[mask_yx] + alpha * np.array(colour, np.float32)
    return rgb_yxc


def nice_length(longest: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not longer.

    >>> nice_length(1024), nice_length(4999), nice_length(0.3)
    (1000.0, 2000.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(longest))
    return next(round(step * power, 12) for step in (5, 2, 1) if step * power <= longest * (1 + 1e-9))


def scale_bar(ax: Axes, shape_yx: tuple[int, ...], pixel_nm: float | None) -> None:
    """Draw a bar of a round length; without a pixel size it counts pixels."""
    height, width = shape_yx
    length = nice_length(0.25 * width * (pixel_nm or 1))
    text, unit = (f"{length / 1000:g}", "µm") if pixel_nm and length >= 1000 else (f"{length:g}", "nm")
    text = f"{text} {unit if pixel_nm else 'px'}"
    x, y, thick = 0.03 * width, 0.955 * height, max(0.012 * height, 1)
    bar = length / (pixel_nm or 1)
    ax.add_patch(Rectangle((x, y - thick), bar, thick, facecolor="white", edgecolor="black", linewidth=0.6))
    label = ax.text(x + bar / 2, y - 1.8 * thick, text, color="white", fontsize=9, ha="center", va="bottom")
    label.set_path_effects([withStroke(linewidth=1.8, foreground="black")])


def patches(entries: Sequence[tuple[str, Colour]]) -> list[Patch]:
    """Handles of a legend."""
    return [Patch(facecolor=colour, edgecolor="none", label=name) for name, colour in entries]


def _legends(axes: Sequence[Axes], ignored: bool) -> None:
    left_out = [("not counted", LEFT_OUT)] if ignored else []
    for ax, entries in zip(axes[1:], ([*TRUTH_KEY, *left_out], [*ERROR_KEY, *left_out]), strict=True):
        ax.legend(
            handles=patches(entries),
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=len(entries),
            frameon=False,
            fontsize=9,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.4,
            borderaxespad=0.25,
        )
