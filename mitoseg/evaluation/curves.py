"""Figures of scores: over the width of the boundary band, over recall, and over probability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mitoseg.evaluation.figures import FALSE, HIT, LEFT_OUT, MISSED
from mitoseg.storage import atomic_output

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
