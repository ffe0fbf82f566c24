"""Two or more conditions compared: which measures of mitochondria differ, by how much, and how sure that is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from mitoseg.errors import UserError
from mitoseg.evaluation.effects import (
    CORRECTIONS,
    Floats,
    Interval,
    adjust,
    bootstrap,
    cliffs_delta,
    hedges_g,
    object_test,
    volume_test,
)
from mitoseg.evaluation.figures import new_figure
from mitoseg.evaluation.table import column_label
from mitoseg.storage import atomic_output, check_folder, write_text
from mitoseg.tables import SUFFIXES, read_csv, to_markdown, write_table

Row = dict[str, Any]

Groups = Mapping[str, Mapping[str, pd.DataFrame]]  # tables by path, by condition

MARKER = "comparison.md"  # which a folder with a comparison holds
CUT = "touches_border"  # the column that says whether the border of the volume cuts an object

_NO_MEASURE = ("id", "instance", "label", "voxels", "index", "Unnamed: 0", CUT)
_PLACES = ("centroid", "box_", "bbox", "start", "stop", "position")
_CUT_MATTERS_NOT = ("grey", "gray", "intensity", "probability", "uncertainty", "score", "cristae", "confidence")
"""A cut object's value of these is that of the whole object."""

_FEW = 5  # volumes in a group below which a bootstrap over them is too narrow

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKS = "osD^vP*X"
_MOST_DOTS = 400  # dots drawn of a group; of more, so many are drawn, evenly spread over the sorted values
_SKEW = 20.0  # positive values whose largest is so many times the median are drawn on a logarithmic scale


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared, and how.

    With ``cut_objects=leave_out`` objects that the border of the volume cuts do not count for shapes and sizes, only
    for grey levels and probabilities; with ``keep`` they count for all.
    """

    columns: Sequence[str] | None = None  # None for all measures that every table has
    cut_objects: str = "leave_out"
    correction: str = "holm"  # for the number of columns and pairs; one of `CORRECTIONS`
    level: float = 0.95  # share of the draws that an interval holds
    resamples: int = 2000
    permutations: int = 10_000  # of volumes: all, where there are no more, else random ones
    seed: int = 1

    def __post_init__(self) -> None:
        for name, known in (("cut_objects", ("leave_out", "keep")), ("correction", CORRECTIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name}", getattr(self, name), f"choose from {', '.join(known)}")
        for name, least in (("resamples", 100), ("permutations", 100), ("seed", 0)):
            number = getattr(self, name)
            if type(number) is not int or number < least:
                raise UserError(f"{name} is too small or not a whole number", number, f"give {least} or more")
        if not isinstance(self.level, int | float) or not 0.5 <= self.level < 1:
            raise UserError("level is not a fraction", self.level, "give level=0.95")


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    ``groups`` has a row for each column and condition: ``column``, ``group``, ``objects``, ``volumes``,
    ``cut_left_out``, ``missing``, ``mean`` and ``median``, each also ``_low`` and ``_high``, and ``mean_of_volumes``.
    ``tests`` has one for each column and pair of conditions: ``column``, ``group_a``, ``group_b``, ``difference`` of
    the means (b - a), ``hedges_g`` and ``cliffs_delta``, each also ``_low`` and ``_high``; ``p_objects`` (Mann and
    Whitney, which takes objects for independent) and ``p_volumes`` (permutation of volume means), both also
    ``_adjusted``; and ``p_volumes_least``, the smallest that so many volumes allow.
    """

    groups: pd.DataFrame
    tests: pd.DataFrame
    notes: tuple[str, ...]  # what a reader must know, a line each, the gravest first
    values: Mapping[str, Mapping[str, Sequence[Floats]]] = field(repr=False)  # by column, condition and volume
    options: ComparisonOptions

    def markdown(self) -> str:
        """Notes and both tables; intervals in brackets behind their value."""
        percent = f"{100 * self.options.level:g} %"
        first = [["column", "condition", "volumes", "objects", f"mean [{percent}]", f"median [{percent}]"]]
        for row in self.groups.to_dict("records"):
            cells = [str(row[key]) for key in ("column", "group", "volumes", "objects")]
            first.append([*cells, _with_interval(row, "mean"), _with_interval(row, "median")])
        effects = {"difference": "difference of means", "hedges_g": "Hedges' g", "cliffs_delta": "Cliff's delta"}
        heads = [f"{name} [{percent}]" for name in effects.values()]
        second = [["column", "pair", *heads, "p volumes (adjusted)", "p objects (adjusted)"]]
        for row in self.tests.to_dict("records"):
            p_values = [f"{_p(row[key])} ({_p(row[f'{key}_adjusted'])})" for key in ("p_volumes", "p_objects")]
            pair = f"{row['group_b']} - {row['group_a']}"
            second.append([str(row["column"]), pair, *(_with_interval(row, e) for e in effects), *p_values])
        bullets = "\n".join(f"- {line}" for line in self.notes)
        conditions, differences = to_markdown(first), to_markdown(second)
        return f"# Comparison\n\n{bullets}\n\n## Conditions\n\n{conditions}\n\n## Differences\n\n{differences}\n"

    def save(self, folder: Path | str, *, overwrite: bool = False) -> None:
        """Write a folder with ``groups.csv``, ``tests.csv``, ``comparison.md`` and ``comparison.png``.

        It appears when all files are written, and replaces only a folder that this wrote before.
        """
        check_folder(folder, MARKER, overwrite)
        with atomic_output(folder, overwrite=overwrite) as place:
            place.mkdir()
            write_table(place / "groups.csv", self.groups)
            write_table(place / "tests.csv", self.tests)
            write_text(place / MARKER, self.markdown())
            comparison_plot(self).savefig(place / "comparison.png", format="png")


def compare_conditions(
    groups: Mapping[str, Sequence[Path | str]], options: ComparisonOptions | None = None
) -> Comparison:
    """Compare tables of measurements, a file for each volume: ``{"control": ["a.csv"], "treated": ["b.csv"]}``."""
    options = options or ComparisonOptions()
    read = read_groups(groups)
    names = list(read)
    values: dict[str, dict[str, list[Floats]]] = {}
    about, rows = [], []
    for index, column in enumerate(choose_columns(read, options.columns)):
        whole_only = options.cut_objects == "leave_out" and not column.startswith(_CUT_MATTERS_NOT)
        found = {name: _values(tables.values(), column, whole_only) for name, tables in read.items()}
        values[column] = {name: by_volume for name, (by_volume, _, _) in found.items()}
        intervals: dict[str, dict[str, Interval]] = {}
        for pair in itertools.combinations(range(len(names)), 2):
            row, ends = _compare(column, index, pair, values[column], options)
            rows.append(row)
            for i, side in zip(pair, "ab", strict=True):
                intervals.setdefault(names[i], {key: ends[f"{key}_{side}"] for key in ("mean", "median")})
        about += [_describe(column, name, *found[name], intervals[name]) for name in names]
    tests, described = pd.DataFrame(rows), pd.DataFrame(about)
    for name in ("p_objects", "p_volumes"):
        adjusted = adjust(tests[name].tolist(), options.correction)
        tests.insert(list(tests.columns).index(name) + 1, f"{name}_adjusted", adjusted)
    return Comparison(described, tests, _notes(read, described, tests, options.correction), values, options)


def _compare(
    column: str, index: int, pair: tuple[int, int], values: Mapping[str, list[Floats]], options: ComparisonOptions
) -> tuple[Row, dict[str, Interval]]:
    """One row of ``tests``, and the intervals of the bootstrap."""
    (name_a, a), (name_b, b) = (list(values.items())[i] for i in pair)
    seeds = [options.seed, index, pair[0]], [options.seed, index, pair[1]]
    ends = bootstrap(a, b, resamples=options.resamples, level=options.level, seeds=seeds)
    all_a, all_b = np.concatenate(a), np.concatenate(b)
    row: Row = {"column": column, "group_a": name_a, "group_b": name_b}
    row |= _ends("difference", _mean(all_b) - _mean(all_a), ends)
    row |= _ends("hedges_g", hedges_g(all_a, all_b), ends) | _ends("cliffs_delta", cliffs_delta(all_a, all_b), ends)
    rng = np.random.default_rng([options.seed, index, *pair])
    p_volumes, least = volume_test(a, b, permutations=options.permutations, rng=rng)
    return row | {"p_objects": object_test(all_a, all_b), "p_volumes": p_volumes, "p_volumes_least": least}, ends


def _describe(
    column: str, group: str, values: Sequence[Floats], cut: int, missing: int, ends: Mapping[str, Interval]
) -> Row:
    """One row of ``groups``."""
    joined = np.concatenate(values)
    means = np.array([v.mean() for v in values if len(v)])
    row: Row = {"column": column, "group": group, "objects": len(joined), "volumes": len(means)}
    row |= {"cut_left_out": cut, "missing": missing} | _ends("mean", _mean(joined), ends)
    median = float(np.median(joined)) if len(joined) else math.nan
    return row | _ends("median", median, ends) | {"mean_of_volumes": _mean(means)}


def _ends(name: str, value: float, ends: Mapping[str, Interval]) -> Row:
    return {name: value, f"{name}_low": ends[name][0], f"{name}_high": ends[name][1]}


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def comparison_plot(comparison: Comparison) -> Figure:
    """A panel for each column, in the manner of SuperPlots (Lord et al., J. Cell Biology 219(6), 2020).

    Dots are objects, their density beside them; larger marks are the means of volumes; the bar is the mean of all
    objects with its interval. Effect size and p-values stand above each panel of two conditions.
    """
    columns = list(comparison.values)
    across = min(len(columns), 4)
    down = math.ceil(len(columns) / across)
    width = 1.6 + 0.85 * len(comparison.values[columns[0]])
    figure = new_figure(across * width, down * 3.3 + 0.35, dpi=150, layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for ax, column in zip(panels, columns, strict=False):
        _panel(ax, comparison, column)
    for ax in panels[len(columns) :]:
        ax.set_axis_off()
    percent = f"{100 * comparison.options.level:g} %"
    key = f"dots: objects; marks: means of volumes; bar: mean of objects, {percent} interval"
    if comparison.tests["p_volumes"].isna().any():
        key += "; (!): objects are not independent"
    figure.supxlabel(key, fontsize=8, color="0.35")
    return figure


def _panel(ax: Axes, comparison: Comparison, column: str) -> None:
    values = comparison.values[column]
    name, unit, scale = column_label(column)
    joined = np.concatenate([v for group in values.values() for v in group]) / scale
    logarithmic = bool(len(joined)) and joined.min() > 0 and joined.max() > _SKEW * np.median(joined)
    if logarithmic:
        ax.set_yscale("log")
    rows = comparison.groups[comparison.groups["column"] == column].to_dict("records")
    for at, (volumes, row) in enumerate(zip(values.values(), rows, strict=True)):
        if not row["objects"]:
            continue
        _group(ax, at, [v / scale for v in volumes if len(v)], logarithmic)
        low, mean, high = (row[key] / scale for key in ("mean_low", "mean", "mean_high"))
        ax.plot([at - 0.2, at + 0.2], [mean, mean], color="black", linewidth=2, zorder=5)
        ax.plot([at, at], [low, high], color="black", linewidth=1.2, zorder=5)
    ax.set_xticks(range(len(values)), [f"{r['group']}\n{r['volumes']} vol., {r['objects']} obj." for r in rows])
    ax.set_xlim(-0.55, len(values) - 0.35)
    ax.set_ylabel(f"{name} ({unit})" if unit else name, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    tests = comparison.tests[comparison.tests["column"] == column].to_dict("records")
    if len(tests) == 1:
        p, p_objects = (tests[0][f"{key}_adjusted"] for key in ("p_volumes", "p_objects"))
        known = f"p of objects {_number(p_objects)} (!)" if math.isnan(p) else f"p of volumes {_number(p)}"
        ax.set_title(f"g = {_with_interval(tests[0], 'hedges_g')}\n{known}", fontsize=8)


def _group(ax: Axes, at: int, volumes: Sequence[Floats], logarithmic: bool) -> None:
    """Dots to the left, density to the right, means of volumes on top."""
    rng, colour = np.random.default_rng(at), _COLOURS[at % len(_COLOURS)]
    joined = np.sort(np.concatenate(volumes))
    dots = joined[np.linspace(0, len(joined) - 1, min(len(joined), _MOST_DOTS)).round().astype(int)]
    size = 6 if len(dots) < 50 else 3.5
    ax.plot(at - 0.06 - 0.3 * rng.random(len(dots)), dots, ".", color=colour, markersize=size, alpha=0.6, mew=0)
    scaled = np.log(joined) if logarithmic else joined
    if len(scaled) >= 5 and np.ptp(scaled) > 1e-9 * max(abs(scaled).max(), 1e-300):
        grid = np.linspace(scaled.min(), scaled.max(), 120)
        density = gaussian_kde(scaled)(grid)
        edge = at + 0.06 + 0.34 * density / density.max()
        level = np.exp(grid) if logarithmic else grid
        ax.fill_betweenx(level, at + 0.06, edge, color=colour, alpha=0.3, linewidth=0)
    if len(volumes) > 1:
        places = at + 0.08 * (np.arange(len(volumes)) - (len(volumes) - 1) / 2) / max(len(volumes) / 4, 1)
        for index, (place, values) in enumerate(zip(places, volumes, strict=True)):
            style: dict[str, Any] = {"color": colour, "markeredgecolor": "black", "markersize": 6, "mew": 0.7}
            ax.plot(place, values.mean(), _MARKS[index % len(_MARKS)], zorder=4, **style)


def _notes(groups: Groups, described: pd.DataFrame, tests: pd.DataFrame, correction: str) -> tuple[str, ...]:
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
    by = "columns" if len(tests) == tests["column"].nunique() else "columns and pairs"
    method = {
        "holm": "Holm's method",
        "benjamini_hochberg": "Benjamini and Hochberg's method",
        "none": "nothing: no correction was asked for",
    }[correction]
    found.append(f"Adjusted p-values are corrected for {len(tests)} {by} by {method}.")
    cut = described[described["cut_left_out"] > 0]
    if len(cut):
        by_group = cut.groupby("group", sort=False)["cut_left_out"].max()
        counts = ", ".join(f"{count} of {name}" for name, count in by_group.items())
        columns = _listed(list(dict.fromkeys(cut["column"])))
        found.append(f"Objects cut by the border of the volume are left out ({counts}) of: {columns}.")
    if unknown := [name for name, tables in groups.items() if not all(CUT in table for table in tables.values())]:
        found.append(f"{_listed(unknown)}: without a column {CUT}, objects that the border cuts count as whole.")
    if empty := [f"{r.column} of {r.group}" for r in described[described["objects"] == 0].itertuples()]:
        found.append(f"No values are left in: {_listed(empty)}.")
    return tuple(found)


def _number(value: object) -> str:
    """Three digits that count, without an exponent where that is readable.

    >>> _number(0.012345), _number(123456.0), _number(1.5e7), _number(float("nan"))
    ('0.0123', '123,000', '1.5e+07', '-')
    """
    if not isinstance(value, int | float) or math.isnan(value):
        return "-"
    if 1000 <= abs(value) < 1e7:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _with_interval(row: Mapping[Any, Any], key: str) -> str:
    return f"{_number(row[key])} [{_number(row[f'{key}_low'])}, {_number(row[f'{key}_high'])}]"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _values(tables: Iterable[pd.DataFrame], column: str, whole_only: bool) -> tuple[list[Floats], int, int]:
    """Finite values of a column by volume, how many cut objects were left out, and how many missing values."""
    found, cut, missing = [], 0, 0
    for table in tables:
        values = table[column].to_numpy(np.float64, na_value=np.nan)
        if whole_only and CUT in table:
            outside = table[CUT].astype(bool).to_numpy()
            cut, values = cut + int(outside.sum()), values[~outside]
        finite = np.isfinite(values)
        missing += int((~finite).sum())
        found.append(values[finite])
    return found, cut, missing


def read_groups(groups: Mapping[str, Sequence[Path | str]]) -> dict[str, dict[str, pd.DataFrame]]:
    """Read the tables (``.csv`` or ``.parquet``) of every condition, each file one volume or animal."""
    if len(groups) < 2:
        raise UserError(
            "a comparison needs two conditions", list(groups), "give compare={control:[a.csv],treated:[b.csv]}"
        )
    seen: dict[Path, str] = {}
    read = {}
    for name, paths in groups.items():
        files = [paths] if isinstance(paths, str | Path) else paths
        if not files:
            raise UserError("a condition has no files", str(name), "give it one or more tables")
        for where in (Path(path).resolve() for path in files):
            if where in seen:
                what = f"a table is given twice, in {seen[where]} and {name}"
                raise UserError(what, str(where), "give each volume once")
            seen[where] = str(name)
        read[str(name)] = {str(path): _read(Path(path)) for path in files}
    return read


def choose_columns(groups: Groups, wanted: Sequence[str] | None) -> list[str]:
    """The columns to compare; None: all numeric ones that every table has, without numbers and places of objects."""
    tables = {path: table for by_path in groups.values() for path, table in by_path.items()}
    if wanted is None:
        first, table = next(iter(tables.items()))
        measures = [c for c in map(str, table) if c not in _NO_MEASURE and not any(word in c for word in _PLACES)]
        found = [c for c in measures if all(_numeric(table, c) for table in tables.values())]
        if not found:
            raise UserError("the tables have no measurement in common", first, "give tables of measure.py")
        return found
    columns = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for column, (path, table) in itertools.product(columns, tables.items()):
        if not _numeric(table, column):
            what = f"a table has no numbers in the column {column!r}"
            raise UserError(what, path, f"choose from {', '.join(map(str, table.columns))}")
    if not columns:
        raise UserError("no column to compare", None, "give columns=[volume_nm3] or leave it out for all")
    return columns


def _numeric(table: pd.DataFrame, column: str) -> bool:
    if column not in table:
        return False
    kind = table[column]
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def _read(path: Path) -> pd.DataFrame:
    if path.suffix.lower() not in SUFFIXES:
        raise UserError("unknown kind of table", str(path), "give a .csv or .parquet file written by measure.py")
    if not path.is_file():
        raise UserError("no such table", str(path), "check the path")
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's own errors are among them
        raise UserError("the table cannot be read", str(path), "write it again with measure.py") from error
    if table.empty:
        raise UserError("the table has no rows", str(path), "leave the volume out, or check its instances")
    if CUT in table:
        words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
        cut = table[CUT].astype(str).str.lower().map(words)
        if cut.isna().any():
            raise UserError(f"{CUT} is neither true nor false", str(path), "write the table again with measure.py")
        table[CUT] = cut.astype(bool)
    return table
