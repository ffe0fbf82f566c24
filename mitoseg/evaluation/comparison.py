"""One crop under several methods: image, truth, and each result with its errors in colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mitoseg.evaluation.figures import (
    ERROR_KEY,
    LEFT_OUT,
    TRUTH_KEY,
    Layer,
    blend,
    error_layers,
    patches,
    scale_bar,
    stretch,
    truth_layers,
)
from mitoseg.metrics import IGNORE
from mitoseg.volumes.base import Array

_PANEL = 3.4  # inches, the longer side of one panel
_GAP, _TOP, _BOTTOM = 0.06, 0.32, 0.40  # inches; _TOP is above each row


def comparison_figure(
    image_yx: Array,
    truth_yx: npt.NDArray[np.uint8],
    results: Mapping[str, npt.NDArray[np.bool_]],
    *,
    title: str = "image",
    voxel_size: Sequence[float] | None = None,
    dpi: float = 160,
) -> Figure:
    """Panels in rows: the image, its truth, and every result.

    Args:
        image_yx: Grey levels of any type; contrast is stretched for display.
        truth_yx: 0 background, 1 foreground, 255 ignored.
        results: Foreground by what stands above its panel.
        title: Above the image.
        voxel_size: In nm; the last two are y and x. Without it the scale bar counts pixels.
        dpi: Of the figure.

    Returns:
        A figure on an Agg canvas.

    Raises:
        ValueError: The shapes differ.
    """
    shapes = {name: result.shape for name, result in {"image": image_yx, "truth": truth_yx, **results}.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")
    pixel_y, pixel_x = (1.0, 1.0) if voxel_size is None else (float(s) for s in voxel_size[-2:])
    panels: list[tuple[str, list[Layer]]] = [(title, []), ("truth", truth_layers(truth_yx))]
    panels += [(name, error_layers(truth_yx, result_yx)) for name, result_yx in results.items()]
    figure, axes = _grid(len(panels), image_yx.shape[0] * pixel_y, image_yx.shape[1] * pixel_x, dpi)
    grey_yx = stretch(image_yx)
    for ax, (name, layers) in zip(axes, panels, strict=True):
        ax.imshow(blend(grey_yx, layers), aspect=pixel_y / pixel_x, interpolation="antialiased")
        ax.set_title(name, fontsize=9, pad=3)
        ax.set_axis_off()
    scale_bar(axes[0], image_yx.shape, None if voxel_size is None else pixel_x)
    left_out = [("not counted", LEFT_OUT)] if (truth_yx == IGNORE).any() else []
    handles = patches([*TRUTH_KEY, *ERROR_KEY, *left_out])
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def columns(panels: int) -> int:
    """How many panels stand side by side: up to five, so that the last row is as full as can be.

    >>> [columns(n) for n in (2, 4, 6, 7, 9, 10)]
    [2, 4, 3, 4, 3, 5]
    """
    return min(range(min(panels, 5), min(panels, 3) - 1, -1), key=lambda n: -panels % n)


def _grid(panels: int, height: float, width: float, dpi: float) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels of one shape, row by row."""
    across = columns(panels)
    rows = -(-panels // across)
    scale = _PANEL / max(height, width)
    h, w = max(height * scale, 0.5), max(width * scale, 0.5)
    total_w, total_h = across * (w + _GAP) + _GAP, rows * (h + _TOP) + _BOTTOM
    figure = Figure(figsize=(total_w, total_h), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    axes = []
    for i in range(panels):
        row, column = divmod(i, across)
        left, bottom = _GAP + column * (w + _GAP), _BOTTOM + (rows - 1 - row) * (h + _TOP)
        axes.append(figure.add_axes((left / total_w, bottom / total_h, w / total_w, h / total_h)))
    return figure, axes
