"""Two or more conditions compared: which measures of mitochondria differ, by how much, and how sure that is.

Tables of measurements, one row a mitochondrion and one file a volume, are read by condition. The comparison comes as
tables, as a figure and in words, with the warnings that belong to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from mitoseg.errors import UserError
from mitoseg.evaluation.effects import (
    CORRECTIONS,
    Floats,
    adjust,
    bootstrap,
    cliffs_delta,
    hedges_g,
    object_test,
    volume_test,
)
from mitoseg.storage import atomic_output, write_text
from mitoseg.tables import SUFFIXES, read_csv, to_markdown, write_table

CUT_OBJECTS = ("leave_out", "keep")

FORMATS = ("csv", "parquet")

Ends = tuple[float, float]


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared, and how.

    Attributes:
        columns: Names; None for all measures that every table has.
        cut_objects: ``leave_out``: objects that the border of the volume cuts do not count for shapes and sizes, only
            for grey levels and probabilities; ``keep``: they count for all.
        correction: Of the p-values for the number of columns and pairs: ``holm``, ``benjamini_hochberg`` or ``none``.
        level: Share of the draws that an interval holds.
        resamples: Draws of the bootstrap.
        permutations: Up to so many ways of dealing volumes to groups all are tried, else so many random ones.
        seed: Of both.

    Raises:
        UserError: A value that makes no sense.
    """

    columns: Sequence[str] | None = None
    cut_objects: str = "leave_out"
    correction: str = "holm"
    level: float = 0.95
    resamples: int = 2000
    permutations: int = 10_000
    seed: int = 1

    def __post_init__(self) -> None:
        """Check the values."""
        for name, value, known in (
            ("cut_objects", self.cut_objects, CUT_OBJECTS),
            ("correction", self.correction, CORRECTIONS),
        ):
            if value not in known:
                raise UserError(f"unknown {name}", value, f"choose of {', '.join(known)}")
        for name, number, least in (("resamples", self.resamples, 100), ("permutations", self.permutations, 100)):
            if type(number) is not int or number < least:
                raise UserError(f"{name} is too small or no whole number", number, f"give {least} or more")
        if type(self.seed) is not int or self.seed < 0:
            raise UserError("seed is no whole number from 0 up", self.seed, "give seed=1")
        if not isinstance(self.level, int | float) or not 0.5 <= self.level < 1:
            raise UserError("level is no share", self.level, "give level=0.95")


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        groups: A row for each column and condition: ``column``, ``group``, ``objects``, ``volumes``, ``cut_left_out``,
            ``missing``, ``mean``, ``mean_low``, ``mean_high``, ``median``, ``median_low``, ``median_high``,
            ``mean_of_volumes``.
        tests: A row for each column and pair of conditions: ``column``, ``group_a``, ``group_b``, ``difference`` of
            the means (b - a), ``hedges_g`` and ``cliffs_delta``, each with ``_low`` and ``_high``; ``p_objects`` (Mann
            and Whitney, which takes objects for independent), ``p_volumes`` (permutation of volume means), both also
            ``_adjusted``; and ``p_volumes_least``, the smallest that so many volumes allow.
        notes: What a reader must know, a line each, the gravest first.
        values: Values of each volume by column and condition, for pictures.
        options: What was asked for.
    """

    groups: pd.DataFrame
    tests: pd.DataFrame
    notes: tuple[str, ...]
    values: Mapping[str, Mapping[str, Sequence[Floats]]] = field(repr=False)
    options: ComparisonOptions

    def markdown(self) -> str:
        """Both tables and the notes as Markdown."""
        return markdown(self.groups, self.tests, self.notes, self.options.level)

    def save(
        self, folder: Path | str, *, table_format: str = "csv", figure: bool = True, overwrite: bool = False
    ) -> None:
        """Write a folder with ``groups``, ``tests``, ``comparison.md`` and ``comparison.png``.

        Args:
            folder: Made by this call; it appears when all files are written.
            table_format: ``csv`` or ``parquet``.
            figure: Whether to draw.
            overwrite: Whether a folder that this wrote before may be replaced.

        Raises:
            UserError: An unknown format; or the folder exists, holds other things, or cannot be written.
        """
        if table_format not in FORMATS:
            raise UserError("unknown table_format", table_format, f"choose of {', '.join(FORMATS)}")
        folder = Path(folder)
        if overwrite and folder.is_dir() and any(folder.iterdir()) and not (folder / "comparison.md").is_file():
            raise UserError(
                "the folder holds other things", str(folder), "give a new name: all of it would be replaced"
            )
        with atomic_output(folder, overwrite=overwrite) as place:
            place.mkdir()
            for name, table in (("groups", self.groups), ("tests", self.tests)):
                write_table(place / f"{name}.{table_format}", table)
            write_text(place / "comparison.md", self.markdown())
            if figure:
                comparison_plot(self).savefig(place / "comparison.png", format="png")


def compare_conditions(
    groups: Mapping[str, Sequence[Path | str]], options: ComparisonOptions | None = None
) -> Comparison:
    """Compare tables of measurements by condition.

    Args:
        groups: Files by the name of the condition, a file for each volume or animal: ``{"control": ["a.csv",
            "b.csv"], "disease": ["c.csv"]}``.
        options: See `ComparisonOptions`.

    Raises:
        UserError: See `read_groups` and `choose_columns`.
    """
    options = options or ComparisonOptions()
    read = read_groups(groups)
    columns = choose_columns(read, options.columns)
    values: dict[str, dict[str, list[Floats]]] = {}
    about, tests = [], []
    for index, column in enumerate(columns):
        whole_only = options.cut_objects == "leave_out" and cut_matters(column)
        left_out = {}
        values[column] = {}
        for group in read:
            found, cut, missing = group.values(column, whole_only=whole_only)
            values[column][group.name], left_out[group.name] = found, (cut, missing)
        pairs = list(itertools.combinations(range(len(read)), 2))
        intervals: dict[str, dict[str, Ends]] = {}
        for pair in pairs:
            row, ends = _compare(column, index, pair, values[column], options)
            tests.append(row)
            for name, side in zip((read[i].name for i in pair), "ab", strict=True):
                intervals.setdefault(name, {k: ends[f"{k}_{side}"] for k in ("mean", "median")})
        about += [_describe(column, g, values[column][g.name], *left_out[g.name], intervals[g.name]) for g in read]
    table = pd.DataFrame(tests)
    for name in ("p_objects", "p_volumes"):
        adjusted = adjust(table[name].tolist(), options.correction)
        table.insert(list(table.columns).index(name) + 1, f"{name}_adjusted", adjusted)
    described = pd.DataFrame(about)
    return Comparison(described, table, notes(read, described, table, options.correction), values, options)


def _compare(
    column: str, index: int, pair: tuple[int, int], values: Mapping[str, list[Floats]], options: ComparisonOptions
) -> tuple[dict[str, object], dict[str, Ends]]:
    """One row of ``tests``, and the intervals of the bootstrap."""
    names = list(values)
    a, b = values[names[pair[0]]], values[names[pair[1]]]
    seeds = [options.seed, index, pair[0]], [options.seed, index, pair[1]]
    ends = bootstrap(a, b, resamples=options.resamples, level=options.level, seeds=seeds)
    all_a, all_b = np.concatenate(a), np.concatenate(b)
    row: dict[str, object] = {"column": column, "group_a": names[pair[0]], "group_b": names[pair[1]]}
    for name, value in (
        ("difference", _mean(all_b) - _mean(all_a)),
        ("hedges_g", hedges_g(all_a, all_b)),
        ("cliffs_delta", cliffs_delta(all_a, all_b)),
    ):
        row |= {name: value, f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}
    rng = np.random.default_rng([options.seed, index, *pair])
    p_volumes, least = volume_test(a, b, permutations=options.permutations, rng=rng)
    row |= {"p_objects": object_test(all_a, all_b), "p_volumes": p_volumes, "p_volumes_least": least}
    return row, ends


def _describe(
    column: str, group: Measurements, values: Sequence[Floats], cut: int, missing: int, ends: Mapping[str, Ends]
) -> dict[str, object]:
    """One row of ``groups``."""
    joined = np.concatenate(values)
    means = np.array([v.mean() for v in values if len(v)])
    row: dict[str, object] = {"column": column, "group": group.name, "objects": len(joined), "volumes": len(means)}
    row |= {"cut_left_out": cut, "missing": missing}
    for name, value in (("mean", _mean(joined)), ("median", float(np.median(joined)) if len(joined) else math.nan)):
        row |= {name: value, f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}
    return row | {"mean_of_volumes": _mean(means)}


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


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


_FEW = 5
"""Volumes in a group below which a bootstrap over them is too narrow."""

_CORRECTION = {
    "holm": "Holm's method",
    "benjamini_hochberg": "Benjamini and Hochberg's method",
    "none": "nothing: no correction was asked for",
}


def notes(
    groups: Sequence[Measurements], described: pd.DataFrame, tests: pd.DataFrame, correction: str
) -> tuple[str, ...]:
    """What a reader must know, a line each, the gravest first."""
    found = []
    single = list(dict.fromkeys(described.loc[described["volumes"] == 1, "group"]))
    if single:
        found.append(
            f"WARNING, pseudoreplication: {_listed(single)} {'has' if len(single) == 1 else 'have'} values of one "
            "volume only. Objects of one volume are not independent, but p_objects and the intervals treat them so: "
            "they are too sure, and say nothing of other animals. Several volumes of each condition allow a test of "
            "volumes (p_volumes)."
        )
    if tests["p_volumes"].notna().any():
        found.append("Judge by p_volumes, which counts each volume once; p_objects takes objects for independent.")
    least = tests["p_volumes_least"].max()
    if least > 0.05:
        found.append(f"With so few volumes p_volumes cannot be below {least:.2g}, however large the difference.")
    if described["volumes"].between(2, _FEW - 1).any():
        found.append(f"Intervals are drawn over volumes; with fewer than {_FEW} in a group they are too narrow.")
    rows, pairs = len(tests), len(tests) // max(tests["column"].nunique(), 1)
    by = "columns" if pairs == 1 else "columns and pairs"
    found.append(f"Adjusted p-values are corrected for {rows} {by} by {_CORRECTION[correction]}.")
    found += _left_out(groups, described)
    return tuple(found)


def _left_out(groups: Sequence[Measurements], described: pd.DataFrame) -> list[str]:
    found = []
    cut = described[described["cut_left_out"] > 0]
    if len(cut):
        by_group = cut.groupby("group", sort=False)["cut_left_out"].max()
        counts = ", ".join(f"{count} of {name}" for name, count in by_group.items())
        columns = list(dict.fromkeys(cut["column"]))
        found.append(f"Objects cut by the border of the volume are left out ({counts}) of: {_listed(columns)}.")
    if unknown := [g.name for g in groups if not all(CUT in table for table in g.tables)]:
        found.append(f"{_listed(unknown)}: without a column {CUT}, objects that the border cuts count as whole.")
    empty = described[described["objects"] == 0]
    if len(empty):
        found.append(f"No values are left in: {_listed([f'{r.column} of {r.group}' for r in empty.itertuples()])}.")
    return found


def markdown(groups: pd.DataFrame, tests: pd.DataFrame, lines: Sequence[str], level: float) -> str:
    """Notes and both tables; intervals in brackets behind their value."""
    percent = f"{100 * level:g} %"
    first = [["column", "condition", "volumes", "objects", f"mean [{percent}]", f"median [{percent}]"]]
    for row in groups.to_dict("records"):
        cells = [str(row[key]) for key in ("column", "group", "volumes", "objects")]
        first.append([*cells, _with_interval(row, "mean"), _with_interval(row, "median")])
    effects = ("difference", "hedges_g", "cliffs_delta")
    names = ("difference of means", "Hedges' g", "Cliff's delta")
    second = [["column", "pair", *(f"{n} [{percent}]" for n in names), "p volumes (adjusted)", "p objects (adjusted)"]]
    for row in tests.to_dict("records"):
        p_values = [f"{_p(row[key])} ({_p(row[f'{key}_adjusted'])})" for key in ("p_volumes", "p_objects")]
        pair = f"{row['group_b']} - {row['group_a']}"
        second.append([str(row["column"]), pair, *(_with_interval(row, e) for e in effects), *p_values])
    bullets = "\n".join(f"- {line}" for line in lines)
    conditions, differences = to_markdown(first), to_markdown(second)
    return f"# Comparison\n\n{bullets}\n\n## Conditions\n\n{conditions}\n\n## Differences\n\n{differences}\n"


def number(value: object) -> str:
    """Three digits that count, without an exponent where that is readable.

    >>> number(0.012345), number(123456.0), number(1.5e7), number(float("nan"))
    ('0.0123', '123,000', '1.5e+07', '-')
    """
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    if 1000 <= abs(value) < 1e7:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _p(value: object) -> str:
    if not isinstance(value, float) or math.isnan(value):
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _with_interval(row: dict[object, object] | dict[str, object], key: str) -> str:
    return f"{number(row[key])} [{number(row[f'{key}_low'])}, {number(row[f'{key}_high'])}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


CUT = "touches_border"
"""The column that says whether the border of the volume cuts an object."""

_NO_MEASURE = ("id", "instance", "label", "voxels", "index", "Unnamed: 0", CUT)

_PLACES = ("centroid", "box_", "bbox", "start", "stop", "position")

_CUT_MATTERS_NOT = ("grey", "gray", "intensity", "probability", "uncertainty", "score", "cristae", "confidence")


@dataclass(frozen=True)
class Measurements:
    """The tables of one condition.

    Attributes:
        name: Of the condition.
        paths: A file for each volume.
        tables: What they hold.
    """

    name: str
    paths: tuple[str, ...]
    tables: tuple[pd.DataFrame, ...]

    def values(self, column: str, *, whole_only: bool) -> tuple[list[Floats], int, int]:
        """Finite values of a column by volume, how many cut objects were left out, and how many missing values."""
        found, cut, missing = [], 0, 0
        for table in self.tables:
            values = table[column].to_numpy(np.float64, na_value=np.nan)
            if whole_only and CUT in table:
                outside = table[CUT].astype(bool).to_numpy()
                cut, values = cut + int(outside.sum()), values[~outside]
            finite = np.isfinite(values)
            missing += int((~finite).sum())
            found.append(values[finite])
        return found, cut, missing


def read_groups(groups: Mapping[str, Sequence[Path | str]]) -> list[Measurements]:
    """Read the tables of every condition.

    Args:
        groups: Files (``.csv`` or ``.parquet``) by the name of the condition; a file is one volume or animal.

    Raises:
        UserError: Fewer than two conditions, one without files, a file that is in two places, missing, no table,
            empty, or without the true or false of ``touches_border``.
    """
    if len(groups) < 2:
        raise UserError(
            "a comparison needs two conditions", list(groups), "give compare={control:[a.csv],treated:[b.csv]}"
        )
    seen: dict[Path, str] = {}
    read = []
    for name, paths in groups.items():
        files = [paths] if isinstance(paths, str | Path) else list(paths)
        if not files:
            raise UserError("a condition has no files", str(name), "give it one or more tables")
        for path in files:
            where = Path(path).resolve()
            if where in seen:
                raise UserError(
                    f"a table is given twice, in {seen[where]} and {name}", str(path), "give each volume once"
                )
            seen[where] = str(name)
        read.append(Measurements(str(name), tuple(map(str, files)), tuple(_read(Path(path)) for path in files)))
    return read


def choose_columns(groups: Sequence[Measurements], wanted: Sequence[str] | None) -> list[str]:
    """The numeric columns to compare.

    Args:
        groups: Of `read_groups`.
        wanted: Names; None: all numeric columns that every table has, without numbers, boxes and places of objects.

    Raises:
        UserError: A table lacks a column or it holds no numbers; or there is none to compare.
    """
    tables = [(path, table) for group in groups for path, table in zip(group.paths, group.tables, strict=True)]
    if wanted is None:
        first = tables[0][1]
        found = [str(c) for c in first if _is_measure(str(c)) and all(_numeric(t, str(c)) for _, t in tables)]
        if not found:
            raise UserError("the tables share no measure", tables[0][0], "give tables of measure.py")
        return found
    columns = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for column in columns:
        for path, table in tables:
            if not _numeric(table, column):
                what = f"a table has no numbers in the column {column!r}"
                raise UserError(what, path, f"choose of {', '.join(map(str, table.columns))}")
    if not columns:
        raise UserError("no column to compare", None, "give columns=[volume_nm3] or leave it out for all")
    return columns


def cut_matters(column: str) -> bool:
    """Whether a cut object's value is another one than the whole object's would be: shape, not grey levels.

    >>> cut_matters("volume_nm3"), cut_matters("grey_mean")
    (True, False)
    """
    return not column.startswith(_CUT_MATTERS_NOT)


def _is_measure(column: str) -> bool:
    return column not in _NO_MEASURE and not any(word in column for word in _PLACES)


def _numeric(table: pd.DataFrame, column: str) -> bool:
    if column not in table:
        return False
    kind = table[column]
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError("unknown kind of table", str(path), "give a .csv or .parquet that measure.py wrote")
    if not path.is_file():
        raise UserError("no such table", str(path), "check the path")
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are among them
        raise UserError("the table cannot be read", str(path), "write it again with measure.py") from error
    if table.empty:
        raise UserError("the table has no rows", str(path), "leave the volume out, or check its instances")
    if CUT in table:
        table[CUT] = _true_or_false(table[CUT], path)
    return table


def _true_or_false(column: pd.Series, path: Path) -> pd.Series:
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
    told = column.astype(str).str.lower().map(words)
    if told.isna().any():
        raise UserError(f"{CUT} is neither true nor false", str(path), "write the table again with measure.py")
    return told.astype(bool)
