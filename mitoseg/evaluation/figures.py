"""Figures of slices with errors in colour, under one method or several, and of scores; offsets and visible tiles.

Offsets between prediction and truth come from phase correlation; tiles are seen in a map's jumps across their borders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from skimage.registration import phase_cross_correlation

from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box, slabs
from mitoseg.metrics import IGNORE
from mitoseg.storage import atomic_output
from mitoseg.volumes.base import Array, Volume
from mitoseg.volumes.predicted import decide

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


Result = Mapping[str, object]

Rows = Sequence[Mapping[str, float]]

_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # foreground JAC of the lines behind the precision-recall curve

_DPI = 150


def save_curves(folder: Path | str, result: Result, *, title: str = "", reference: float | None = None) -> list[Path]:
    """Write ``boundary.png``, and for probabilities ``precision_recall.png`` and ``reliability.png``.

    Args:
        folder: Where they go; made if missing.
        result: What `mitoseg.evaluation.evaluate` gave, or ``metrics.json`` holds.
        title: Put over each.
        reference: A Jaccard index to draw beside ours in ``boundary.png``, such as a published one.

    Returns:
        The files; a figure with nothing to show is not written.

    Raises:
        UserError: A file cannot be written.
    """
    figures: dict[str, Figure] = {}
    if result["boundary"]:
        figures["boundary"] = boundary_figure(result, title=title, reference=reference)
    if _curve(result, "precision_recall").get("recall"):
        figures["precision_recall"] = precision_recall_figure(result, title=title)
    if _curve(result, "reliability").get("voxels"):
        figures["reliability"] = reliability_figure(result, title=title)
    paths = []
    for name, figure in figures.items():
        paths.append(Path(folder) / f"{name}.png")
        with atomic_output(paths[-1], overwrite=True) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)
    return paths


def boundary_figure(result: Result, *, title: str = "", reference: float | None = None) -> Figure:
    """Jaccard index of the foreground and mean of both classes against the width of the band that is left out."""
    rows: Rows = result["boundary"]  # type: ignore[assignment]
    figure, ax = _figure(title)
    names = (("jaccard_foreground", "mitochondria", HIT), ("jaccard_mean", "mean of both classes", MISSED))
    for key, name, colour in names:
        for dims, style, where in ((3, "o-", "3D"), (2, "s--", "in plane")):
            here = [row for row in rows if row["dims"] == dims]
            widths = [0.0, *(row["distance"] for row in here)]
            values = [_float(result[key]), *(_float(row[key]) for row in here)]
            ax.plot(widths, values, style, color=colour, markersize=4, label=f"{name}, {where}")
    if reference is not None:
        ax.axhline(reference, color="black", linestyle=":", label=f"reference, {reference:g}")
    ax.set_xlabel("voxels left out on both sides of the true border")
    ax.set_ylabel("Jaccard index")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def precision_recall_figure(result: Result, *, title: str = "") -> Figure:
    """Precision over recall, with the threshold that was used and the best one for these voxels."""
    points = _curve(result, "precision_recall")
    figure, ax = _figure(title)
    _draw_levels(ax)
    area = _float(result["average_precision"])
    ax.plot(points["recall"], points["precision"], color=HIT, label=f"area under the curve {area:.3f}")
    threshold, jaccard = result["threshold"], _float(result["jaccard_foreground"])
    used = f"threshold {threshold:.3f}" if isinstance(threshold, float) else "the thresholds used"
    ax.plot(
        _float(result["recall"]), _float(result["precision"]), "o", color="black", label=f"{used}: JAC {jaccard:.3f}"
    )
    best = int(np.argmin(np.abs(np.subtract(points["threshold"], _float(result["threshold_oracle"])))))
    oracle = _float(result["jaccard_foreground_oracle"])
    label = f"oracle, best on these voxels: JAC {oracle:.3f}"
    ax.plot(points["recall"][best], points["precision"][best], "o", color=FALSE, fillstyle="none", label=label)
    ax.set(xlabel="recall (grey lines: equal JAC)", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    ax.legend(fontsize=8, loc="lower left")
    return figure


def reliability_figure(result: Result, *, title: str = "") -> Figure:
    """Share of foreground against mean probability, above the number of voxels in each bin."""
    figure = Figure(figsize=(6.0, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ax.set_title(title, fontsize=10)
    ax.plot([0, 1], [0, 1], color=LEFT_OUT, linestyle=":", label="calibrated")
    names = (
        ("reliability", "bins of equal width", "expected_calibration_error", HIT, "o-"),
        ("reliability_adaptive", "bins of equally many voxels", "adaptive_calibration_error", FALSE, "s"),
    )
    for key, name, error, colour, style in names:
        bins = _curve(result, key)
        label = f"{name}: error {_float(result[error]):.4f}"
        ax.plot(bins["confidence"], bins["share"], style, color=colour, markersize=4, label=label)
    bins = _curve(result, "reliability")
    below.bar(bins["confidence"], bins["voxels"], width=0.04, color=HIT, log=True)
    ax.set(ylabel="share of mitochondria", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    ax.legend(fontsize=8)
    below.set(xlabel="mean probability of the bin", ylabel="voxels")
    return figure


def _draw_levels(ax: Axes) -> None:
    """Lines of equal foreground JAC, each with its value; it is 1 / (1 / precision + 1 / recall - 1)."""
    for level in _LEVELS:
        recall = np.linspace(level, 1, 100)
        precision = 1 / (1 / level + 1 - 1 / recall)
        ax.plot(recall, precision, color=LEFT_OUT, linewidth=0.7, alpha=0.6, zorder=1)
        at = 2 * level / (1 + level)  # where precision and recall are equal
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        ax.text(at, at, f"{level:g}", fontsize=7, color=LEFT_OUT, ha="center", va="center", bbox=box, zorder=1)


def _figure(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.add_subplot()
    ax.set_title(title, fontsize=10)
    return figure, ax


def _curve(result: Result, key: str) -> dict[str, list[float]]:
    """The lists of a curve; empty if the result has none."""
    return result.get(key, {})  # type: ignore[return-value]


def _float(value: object) -> float:
    """A score; NaN where a file holds null."""
    return float(value) if isinstance(value, int | float) else math.nan


_COMPARED_PANEL = 3.4  # inches, the longer side of one panel

_GAP, _COMPARED_TOP, _COMPARED_BOTTOM = 0.06, 0.32, 0.40  # inches; _TOP is above each row


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
    scale = _COMPARED_PANEL / max(height, width)
    h, w = max(height * scale, 0.5), max(width * scale, 0.5)
    total_w, total_h = across * (w + _GAP) + _GAP, rows * (h + _COMPARED_TOP) + _COMPARED_BOTTOM
    figure = Figure(figsize=(total_w, total_h), dpi=dpi, facecolor="white")
    FigureCanvasAgg(figure)
    axes = []
    for i in range(panels):
        row, column = divmod(i, across)
        left, bottom = _GAP + column * (w + _GAP), _COMPARED_BOTTOM + (rows - 1 - row) * (h + _COMPARED_TOP)
        axes.append(figure.add_axes((left / total_w, bottom / total_h, w / total_w, h / total_h)))
    return figure, axes


PLACES = ("first", "middle", "last")
"""Thirds of an axis, in order."""


def placement_offsets(
    prediction: Volume, truth: Volume, *, every: int = 1, upsample: int = 20
) -> dict[str, tuple[float, float]]:
    """How far the predicted mask lies from the true one in each ninth of the slices.

    Both masks are mean-free and the correlation is not whitened (Guizar-Sicairos et al., 2008, Optics Letters
    33(2)): the edges of two masks that differ in shape have no common phase at high frequencies.

    Args:
        prediction: Probabilities or a mask; see `mitoseg.evaluation.decide`.
        truth: Mapped labels of the same shape.
        every: Use every n-th slice.
        upsample: Parts of a pixel that are told apart.

    Returns:
        For each ninth, such as ``"first y, last x"``, the shift (y, x) in pixels that all its slices together agree
        on: positive where the prediction lies below or right of the truth. NaN where one of the masks is empty.
    """
    decision = decide(prediction)
    offsets = {}
    for name, part in _ninths(truth.box):
        boxes = list(slabs(part, 1))[::every]
        true_zyx = np.concatenate([truth.read(box) == 1 for box in boxes]).astype(np.float32)
        mine_zyx = np.concatenate([decision.foreground(prediction.read(box)) for box in boxes]).astype(np.float32)
        offsets[name] = (float("nan"), float("nan"))
        if true_zyx.any() and mine_zyx.any():
            (_, y, x), _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
                mine_zyx - mine_zyx.mean(), true_zyx - true_zyx.mean(), upsample_factor=upsample, normalization=None
            )
            offsets[name] = (float(y), float(x))
    return offsets


def _ninths(box: Box) -> Iterator[tuple[str, Box]]:
    """Thirds of y times thirds of x, by name."""
    (z0, *_), (z1, size_y, size_x) = box.start, box.stop
    for i, name_y in enumerate(PLACES):
        for j, name_x in enumerate(PLACES):
            start = (z0, size_y * i // 3, size_x * j // 3)
            yield f"{name_y} y, {name_x} x", Box(start, (z1, size_y * (i + 1) // 3, size_x * (j + 1) // 3))


def seam_ratio(map_zyx: npt.NDArray[np.floating], borders: Mapping[int, Sequence[int]]) -> float:
    """Mean jump between neighbours across tile borders over the mean jump between other neighbours.

    1 means that tiles cannot be told from the rest of the map; a map made of tiles that do not fit is above it.

    Args:
        map_zyx: Log-odds or probabilities.
        borders: For each axis that is tiled, the positions at which a tile starts or ends (0 and the length of the
            axis do not count).

    Returns:
        The ratio, pooled over the axes; NaN where there is no border, or nothing jumps elsewhere.

    >>> steps = np.repeat([0.0, 1.0], 4)[None, None] + 0.1 * np.arange(8)
    >>> round(seam_ratio(steps, {2: [4]}), 3)
    11.0
    """
    across, elsewhere = [0.0, 0], [0.0, 0]
    for axis, positions in borders.items():
        jump = np.abs(np.diff(map_zyx.astype(np.float64), axis=axis))
        at_border = np.zeros(jump.shape[axis], bool)
        at_border[[p - 1 for p in positions if 0 < p < map_zyx.shape[axis]]] = True
        for total, mask in ((across, at_border), (elsewhere, ~at_border)):
            part = np.compress(mask, jump, axis=axis)
            total[0] += float(part.sum())
            total[1] += part.size
    if not across[1] or not elsewhere[0]:
        return float("nan")
    return (across[0] / across[1]) / (elsewhere[0] / elsewhere[1])
