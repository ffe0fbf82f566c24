"""Figures of slices with errors in colour, under one method or several, and of scores; without a window or pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box, slabs
from mitoseg.metrics import IGNORE
from mitoseg.storage import atomic_output
from mitoseg.volumes.base import Array, Volume
from mitoseg.volumes.predicted import decide

Colour = tuple[float, float, float]
Labels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Layer = tuple[Mask, Colour, float]  # where, in what colour, and how opaque

# Okabe and Ito's palette, which colour-blind readers can tell apart (jfly.uni-koeln.de/color).
HIT: Colour = (0.0, 0.72, 0.50)
FALSE: Colour = (0.90, 0.29, 0.0)
MISSED: Colour = (0.34, 0.71, 0.95)
TRUTH: Colour = (0.94, 0.89, 0.26)
LEFT_OUT: Colour = (0.5, 0.5, 0.5)

_KEY = (("mitochondria", TRUTH), ("found (TP)", HIT), ("false (FP)", FALSE), ("missed (FN)", MISSED))

JACCARD_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the lines behind a precision-recall curve
_GAP, _TOP, _BOTTOM = 0.06, 0.32, 0.4  # inches between panels, above each, and below all
_WHOLE = 20  # values of whole numbers that have a bin each


def new_figure(width: float, height: float, dpi: float | None = None, layout: str | None = None) -> Figure:
    """A white figure of so many inches on an Agg canvas, for ``savefig`` or a TensorBoard logger."""
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, *, overwrite: bool = True, dpi: float | None = None) -> None:
    """Write a PNG, whole or not at all."""
    with atomic_output(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi or "figure")


def overlay_figure(image_yx: Array, truth_yx: Labels, result_yx: Mask, **options: Any) -> Figure:  # noqa: ANN401
    """`comparison_figure` of one result: image, truth, and the result with its errors in colour."""
    return comparison_figure(image_yx, truth_yx, {"result": result_yx}, **options)


def comparison_figure(
    image_yx: Array,
    truth_yx: Labels,
    results: Mapping[str, Mask],
    *,
    title: str = "image",
    voxel_size: Sequence[float] | None = None,
    dpi: float | None = None,
) -> Figure:
    """Panels in rows: the image, its truth (0, 1, 255 ignored), and every result under its name, errors in colour.

    The contrast of the image is stretched. The last two of ``voxel_size`` are y and x in nm; without it the scale bar
    counts pixels.
    """
    shapes = {name: array.shape for name, array in {"image": image_yx, "truth": truth_yx, **results}.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {shapes}")
    truth, ignored = truth_yx == 1, truth_yx == IGNORE
    unknown = (ignored, LEFT_OUT, 0.6)
    panels: list[tuple[str, list[tuple[Mask, Colour, float]]]] = [
        (title, []),
        ("truth", [(truth, TRUTH, 0.45), unknown]),
    ]
    for name, result_yx in results.items():
        result = np.asarray(result_yx, bool)
        wrong, missed = result & ~truth & ~ignored, truth & ~result
        panels.append((name, [(truth & result, HIT, 0.5), (wrong, FALSE, 0.95), (missed, MISSED, 0.95), unknown]))
    few = len(results) < 2
    pixel_y, pixel_x = (1.0, 1.0) if voxel_size is None else (float(s) for s in voxel_size[-2:])
    height, width = image_yx.shape[0] * pixel_y, image_yx.shape[1] * pixel_x
    side, font = (5.0, 10) if few else (3.4, 9)  # inches of the longer side
    h, w = (max(length * side / max(height, width), 0.5) for length in (height, width))
    count = len(panels)
    across = min(range(min(count, 5), min(count, 3) - 1, -1), key=lambda n: -count % n)  # a last row that is full
    rows = -(-count // across)
    total_w, total_h = across * (w + _GAP) + _GAP, rows * (h + _TOP) + _BOTTOM
    figure, grey_yx = new_figure(total_w, total_h, dpi or (200 if few else 160)), stretch(image_yx)
    for i, (name, layers) in enumerate(panels):
        row, column = divmod(i, across)
        left, low = _GAP + column * (w + _GAP), _BOTTOM + (rows - 1 - row) * (h + _TOP)
        ax = figure.add_axes((left / total_w, low / total_h, w / total_w, h / total_h))
        dimmed_yx = 0.1 + 0.72 * grey_yx if layers else grey_yx  # colours stand out from softer greys
        rgb_yxc = np.repeat(dimmed_yx[..., None], 3, axis=-1)
        for mask_yx, colour, alpha in layers:
            rgb_yxc[mask_yx] = (1 - alpha) * rgb_yxc[mask_yx] + alpha * np.array(colour, np.float32)
        ax.imshow(rgb_yxc, aspect=pixel_y / pixel_x, interpolation="antialiased")
        ax.set_title(name, fontsize=font, pad=font - 6)
        ax.set_axis_off()
    ax, (high, wide) = figure.axes[0], image_yx.shape  # the scale bar
    bar, text = bar_length(wide, None if voxel_size is None else pixel_x)
    x, y, thick = 0.03 * wide, 0.955 * high, max(0.012 * high, 1)
    ax.add_patch(Rectangle((x, y - thick), bar, thick, facecolor="white", edgecolor="black", linewidth=0.6))
    label = ax.text(x + bar / 2, y - 1.8 * thick, text, color="white", fontsize=9, ha="center", va="bottom")
    label.set_path_effects([withStroke(linewidth=1.8, foreground="black")])
    left_out = [("not counted", LEFT_OUT)] if ignored.any() else []
    handles = [Patch(facecolor=colour, edgecolor="none", label=name) for name, colour in (*_KEY, *left_out)]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def stretch(image_yx: Array, percentiles: tuple[float, float] = (0.3, 99.7)) -> npt.NDArray[np.float32]:
    """Grey levels in [0, 1] for display, the given percentiles becoming black and white."""
    low, high = (float(v) for v in np.percentile(image_yx, percentiles))
    grey = (image_yx.astype(np.float32) - low) / max(high - low, 1e-6)
    result: npt.NDArray[np.float32] = np.clip(grey, 0, 1)
    return result


def bar_length(width: float, pixel_nm: float | None) -> tuple[float, str]:
    """Pixels and text of a scale bar: 1, 2 or 5 times a power of ten long, at most a quarter of the width.

    >>> bar_length(1000, 5.0), bar_length(100, None)
    ((200.0, '1 µm'), (20.0, '20 px'))
    """
    longest = 0.25 * width * (pixel_nm or 1)
    power = 10.0 ** math.floor(math.log10(longest))
    length = next(round(step * power, 12) for step in (5, 2, 1) if step * power <= longest * (1 + 1e-9))
    if not pixel_nm:
        return length, f"{length:g} px"
    return length / pixel_nm, f"{length / 1000:g} µm" if length >= 1000 else f"{length:g} nm"


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
    """Write `overlay_figure` of slices that hold mitochondria, evenly spread along z, as ``z0012.png`` and so on.

    ``count`` slices at most; if none holds a mitochondrion, any will do. Further arguments as of
    `mitoseg.evaluation.evaluate`; without a voxel size the image's is taken, else the truth's.
    """
    check_shapes(image=image, truth=truth, prediction=prediction)
    crop = crop or truth.box
    decision = decide(prediction, threshold, kind)
    spacing = voxel_size or image.voxel_size or truth.voxel_size
    with_foreground = [slab.start[0] for slab in slabs(crop, 1) if (truth.read(slab) == 1).any()]
    candidates = with_foreground or list(range(crop.start[0], crop.stop[0]))
    count = min(count, len(candidates))
    paths = []
    for i in range(count):  # the middle of each of equal shares: neither the first nor the last stands for a volume
        z = candidates[int((i + 0.5) * len(candidates) / count)]
        box = Box((z, *crop.start[1:]), (z + 1, *crop.stop[1:]))
        slices = image.read(box)[0], truth.read(box)[0], decision.foreground(prediction.read(box))[0]
        figure = overlay_figure(*slices, title=f"image, z = {z}", voxel_size=spacing)
        paths.append(Path(folder) / f"z{z:04d}.png")
        save_figure(figure, paths[-1])
    return paths


def save_curves(
    folder: Path | str, result: Mapping[str, Any], *, title: str = "", reference: float | None = None
) -> list[Path]:
    """Write `curve_figures` as PNG."""
    figures = curve_figures(result, title=title, reference=reference)
    for name, figure in figures.items():
        save_figure(figure, Path(folder) / f"{name}.png", dpi=150)
    return [Path(folder) / f"{name}.png" for name in figures]


def curve_figures(result: Mapping[str, Any], *, title: str = "", reference: float | None = None) -> dict[str, Figure]:
    """Figures of ``boundary``, and for probabilities of ``precision_recall`` and ``reliability``.

    From what `mitoseg.evaluation.evaluate` gave or ``metrics.json`` holds; one with nothing to show is left out.
    ``reference`` is a Jaccard index to draw beside ours in ``boundary``, such as a published one.
    """
    figures: dict[str, Figure] = {}
    if result.get("boundary"):
        figures["boundary"] = boundary_figure(result, title=title, reference=reference)
    if (result.get("precision_recall") or {}).get("recall"):
        figures["precision_recall"] = precision_recall_figure(result, title=title)
    if (result.get("reliability") or {}).get("voxels"):
        figures["reliability"] = reliability_figure(result, title=title)
    return figures


def boundary_figure(result: Mapping[str, Any], *, title: str = "", reference: float | None = None) -> Figure:
    """Jaccard index of the foreground and mean of both classes against the width of the band that is left out."""
    figure = new_figure(6.0, 4.0, layout="constrained")
    ax = figure.subplots()
    names = (("jaccard_foreground", "mitochondria", HIT), ("jaccard_mean", "mean of both classes", MISSED))
    for key, name, colour in names:
        for dims, style, where in ((3, "o-", "3D"), (2, "s--", "in plane")):
            rows = [row for row in result["boundary"] if row["dims"] == dims]
            widths = [0.0, *(float(row["distance"]) for row in rows)]
            values = [as_float(row.get(key)) for row in (result, *rows)]
            ax.plot(widths, values, style, color=colour, markersize=4, label=f"{name}, {where}")
    if reference is not None:
        ax.axhline(reference, color="black", linestyle=":", label=f"reference, {reference:g}")
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="voxels left out on both sides of the true border", ylabel="Jaccard index")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def precision_recall_figure(result: Mapping[str, Any], *, title: str = "") -> Figure:
    """Precision over recall, with the threshold that was used and the best one for these voxels."""
    points = result["precision_recall"]
    figure = new_figure(6.0, 4.0, layout="constrained")
    ax = figure.subplots()
    for level in JACCARD_LEVELS:
        recall = np.linspace(level, 1, 100)  # equal JAC, which is 1 / (1 / precision + 1 / recall - 1)
        ax.plot(recall, 1 / (1 / level + 1 - 1 / recall), color=LEFT_OUT, linewidth=0.7, alpha=0.6, zorder=1)
        at = 2 * level / (1 + level)  # where precision and recall are equal
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        ax.text(at, at, f"{level:g}", fontsize=7, color=LEFT_OUT, ha="center", va="center", bbox=box, zorder=1)
    area = as_float(result["average_precision"])
    ax.plot(points["recall"], points["precision"], color=HIT, label=f"area under the curve {area:.3f}")
    threshold, jaccard = result["threshold"], as_float(result["jaccard_foreground"])
    used = f"threshold {threshold:.3f}" if isinstance(threshold, float) else "the thresholds used"
    place = as_float(result["recall"]), as_float(result["precision"])
    ax.plot(*place, "o", color="black", label=f"{used}: JAC {jaccard:.3f}")
    best = int(np.argmin(np.abs(np.subtract(points["threshold"], as_float(result["threshold_oracle"])))))
    label = f"oracle, best on these voxels: JAC {as_float(result['jaccard_foreground_oracle']):.3f}"
    ax.plot(points["recall"][best], points["precision"][best], "o", color=FALSE, fillstyle="none", label=label)
    ax.set_title(title, fontsize=10)
    ax.set(xlabel="recall (grey lines: equal JAC)", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    ax.legend(fontsize=8, loc="lower left")
    return figure


def reliability_figure(result: Mapping[str, Any], *, title: str = "") -> Figure:
    """Share of foreground against mean probability, above the number of voxels in each bin."""
    figure = new_figure(6.0, 5.5, layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    ax.set_title(title, fontsize=10)
    ax.plot([0, 1], [0, 1], color=LEFT_OUT, linestyle=":", label="calibrated")
    names = (
        ("reliability", "bins of equal width", "expected_calibration_error", HIT, "o-"),
        ("reliability_adaptive", "bins of equally many voxels", "adaptive_calibration_error", FALSE, "s"),
    )
    for key, name, error, colour, style in names:
        label = f"{name}: error {as_float(result[error]):.4f}"
        ax.plot(result[key]["confidence"], result[key]["share"], style, color=colour, markersize=4, label=label)
    below.bar(result["reliability"]["confidence"], result["reliability"]["voxels"], width=0.04, color=HIT, log=True)
    ax.set(ylabel="share of mitochondria", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    ax.legend(fontsize=8)
    below.set(xlabel="mean probability of the bin", ylabel="voxels")
    return figure


def expected_figure(fields: Sequence[Mapping[str, Any]], doubtful: float) -> Figure:
    """The foreground JAC to expect of each field that `predict` judged without labels, over its first slice.

    A field without a mitochondrion is a cross at 0; scores below ``doubtful`` are worth a look.
    """
    figure = new_figure(6.0, 3.2, layout="constrained")
    ax = figure.subplots()
    values = [field["jaccard"] or 0.0 for field in fields]
    colours = [MISSED if value >= doubtful else FALSE for value in values]
    for found, marker in ((True, "o"), (False, "x")):
        shown = [i for i, field in enumerate(fields) if (field["jaccard"] is not None) == found]
        places, heights = ([fields[i]["start"][0] for i in shown], [values[i] for i in shown])
        ax.scatter(places, heights, marker=marker, c=[colours[i] for i in shown])
    ax.axhline(doubtful, color="black", linestyle=":")
    ax.set(xlabel="slice (z) of the field", ylabel="JAC to expect", ylim=(-0.05, 1.05))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def distribution_figure(values: npt.NDArray[np.float64], name: str, unit: str, log: bool) -> Figure:
    """Histogram of ascending values, their cumulative share and their median."""
    figure = new_figure(5.0, 3.2, layout="constrained")
    ax = figure.subplots()
    ax.hist(values, bins(values, log).tolist(), color=MISSED, edgecolor="white", linewidth=0.5)
    ax.axvline(float(np.median(values)), color="black", linestyle="--")
    ax.set(xlabel=f"{name} ({unit})" if unit else name, ylabel="mitochondria", xscale="log" if log else "linear")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    if log and values[-1] < 100 * values[0]:  # labels of matplotlib's own choice overlap
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    share = ax.twinx()
    share.plot(values, np.arange(1, len(values) + 1) / len(values), color=FALSE, drawstyle="steps-post")
    share.set(ylabel="share of those that are smaller", ylim=(0, 1.05))
    return figure


def bins(values: npt.NDArray[np.float64], log: bool) -> npt.NDArray[np.float64]:
    """Edges of bins by the rule of Freedman and Diaconis, 5 to 40 of them, on a logarithmic axis if asked.

    Whole numbers that span few values have a bin each.

    >>> bins(np.array([1, 1, 2, 4]), log=False).tolist()
    [0.5, 1.5, 2.5, 3.5, 4.5]
    """
    low, high = values.min(), values.max()
    if not log and high - low < _WHOLE and np.array_equal(values, np.rint(values)):
        return np.arange(low - 0.5, high + 1)
    v = np.log10(values) if log else values
    width = 2 * np.subtract(*np.percentile(v, (75, 25))) / len(v) ** (1 / 3)
    count = int(np.clip(np.ceil(np.ptp(v) / width) if width > 0 else 10, 5, 40))
    edges = np.linspace(v.min(), v.max(), count + 1)
    result: npt.NDArray[np.float64] = 10**edges if log else edges
    result[[0, -1]] = low, high  # rounding would leave an end outside
    return result


def as_float(value: object) -> float:
    """A score; NaN where a file holds null."""
    return float(value) if isinstance(value, int | float) else math.nan
