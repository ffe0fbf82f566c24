"""Conditions side by side: every object as a dot, every volume as a mark, means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from mitoseg.errors import UserError
from mitoseg.evaluation.condition_notes import number
from mitoseg.evaluation.effects import Floats

if TYPE_CHECKING:
    from mitoseg.evaluation.conditions import Comparison

# Okabe and Ito's palette, as in the other figures.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKS = "osD^vP*X"
_MOST_DOTS = 400
"""Dots drawn of a group; of more, so many are drawn, evenly spread over the sorted values."""
_SKEW = 20.0
"""Positive values whose largest is so many times the median are drawn on a logarithmic scale."""
_UNITS = {"_nm3": ("µm³", 1e9), "_nm2": ("µm²", 1e6), "_nm": ("nm", 1.0)}


def comparison_plot(comparison: Comparison, columns: Sequence[str] | None = None, *, dpi: float = 150) -> Figure:
    """A panel for each column, in the manner of SuperPlots (Lord et al., J. Cell Biology 219(6), 2020).

    Dots are objects, their density beside them; larger marks are the means of volumes; the bar is the mean of all
    objects with its interval. Effect size and p-values stand above each panel of two conditions.

    Args:
        comparison: What `compare_conditions` gave.
        columns: Which to draw; None for all.
        dpi: Of the figure.

    Raises:
        UserError: A column was not compared.
    """
    drawn = list(comparison.values) if columns is None else list(columns)
    if not drawn or (unknown := [c for c in drawn if c not in comparison.values]):
        raise UserError(
            "no such column was compared", unknown[:1] if drawn else drawn, "choose of those in the tables"
        )
    groups = list(comparison.values[drawn[0]])
    across = min(len(drawn), 4)
    down = math.ceil(len(drawn) / across)
    width = 1.6 + 0.85 * len(groups)
    figure = Figure(figsize=(across * width, down * 3.3 + 0.35), dpi=dpi, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for ax, column in zip(panels, drawn, strict=False):
        _panel(ax, comparison, column)
    for ax in panels[len(drawn) :]:
        ax.set_axis_off()
    percent = f"{100 * comparison.options.level:g} %"
    key = f"dots: objects; marks: means of volumes; bar: mean of objects, {percent} interval"
    if comparison.tests["p_volumes"].isna().any():
        key += "; (!): objects are not independent"
    figure.supxlabel(key, fontsize=8, color="0.35")
    return figure


def _panel(ax: Axes, comparison: Comparison, column: str) -> None:
    values = comparison.values[column]
    name, unit, scale = _label(column)
    joined = np.concatenate([v for group in values.values() for v in group]) / scale
    logarithmic = bool(len(joined)) and joined.min() > 0 and joined.max() > _SKEW * np.median(joined)
    if logarithmic:
        ax.set_yscale("log")
    rows = comparison.groups[comparison.groups["column"] == column].to_dict("records")
    for at, (volumes, row) in enumerate(zip(values.values(), rows, strict=True)):
        colour = _COLOURS[at % len(_COLOURS)]
        _group(ax, at, [v / scale for v in volumes], colour, logarithmic)
        if row["objects"]:
            low, mean, high = (row[key] / scale for key in ("mean_low", "mean", "mean_high"))
            style: dict[str, Any] = {"color": "black", "zorder": 5}
            ax.plot([at - 0.2, at + 0.2], [mean, mean], linewidth=2, **style)
            ax.plot([at, at], [low, high], linewidth=1.2, **style)
    ax.set_xticks(range(len(values)), [f"{r['group']}\n{r['volumes']} vol., {r['objects']} obj." for r in rows])
    ax.set_xlim(-0.55, len(values) - 0.35)
    ax.set_ylabel(f"{name} ({unit})" if unit else name, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    tests = comparison.tests[comparison.tests["column"] == column].to_dict("records")
    if len(tests) == 1:
        ax.set_title(_headline(tests[0]), fontsize=8)


def _group(ax: Axes, at: int, volumes: Sequence[Floats], colour: str, logarithmic: bool) -> None:
    """Dots to the left, density to the right, means of volumes on top."""
    rng = np.random.default_rng(at)
    joined = np.sort(np.concatenate(volumes))
    if not len(joined):
        return
    dots = joined[np.linspace(0, len(joined) - 1, min(len(joined), _MOST_DOTS)).round().astype(int)]
    size = 6 if len(dots) < 50 else 3.5
    ax.plot(at - 0.06 - 0.3 * rng.random(len(dots)), dots, ".", color=colour, markersize=size, alpha=0.6, mew=0)
    _density(ax, at, joined, colour, logarithmic)
    means = [v.mean() for v in volumes if len(v)]
    if len(means) > 1:
        places = at + 0.08 * (np.arange(len(means)) - (len(means) - 1) / 2) / max(len(means) / 4, 1)
        for index, (place, mean) in enumerate(zip(places, means, strict=True)):
            mark = _MARKS[index % len(_MARKS)]
            ax.plot(place, mean, mark, color=colour, markeredgecolor="black", markersize=6, mew=0.7, zorder=4)


def _density(ax: Axes, at: int, joined: Floats, colour: str, logarithmic: bool) -> None:
    scaled = np.log(joined) if logarithmic else joined
    if len(scaled) < 5 or np.ptp(scaled) <= 1e-9 * max(abs(scaled).max(), 1e-300):
        return
    grid = np.linspace(scaled.min(), scaled.max(), 120)
    density = gaussian_kde(scaled)(grid)
    edge = at + 0.06 + 0.34 * density / density.max()
    level = np.exp(grid) if logarithmic else grid
    ax.fill_betweenx(level, at + 0.06, edge, color=colour, alpha=0.3, linewidth=0)


def _headline(test: dict[Any, Any]) -> str:
    p = test["p_volumes_adjusted"]
    told = (
        f"p of volumes {number(p)}" if not math.isnan(p) else f"p of objects {number(test['p_objects_adjusted'])} (!)"
    )
    ends = f"[{number(test['hedges_g_low'])}, {number(test['hedges_g_high'])}]"
    return f"g = {number(test['hedges_g'])} {ends}\n{told}"


def _label(column: str) -> tuple[str, str, float]:
    """Words, unit, and what the numbers are divided by.

    >>> _label("volume_nm3")
    ('volume', 'µm³', 1000000000.0)
    """
    for ending, (unit, scale) in _UNITS.items():
        if column.endswith(ending):
            return column.removesuffix(ending).replace("_", " "), unit, scale
    return column.replace("_", " "), "", 1.0
