"""Two or more conditions compared: which measures of mitochondria differ, by how much, and how sure that is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mitoseg.errors import UserError
from mitoseg.evaluation.condition_notes import markdown, notes
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
from mitoseg.evaluation.measurements import Measurements, choose_columns, cut_matters, read_groups
from mitoseg.storage import atomic_output, write_text
from mitoseg.tables import write_table

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
        from mitoseg.evaluation.condition_figure import comparison_plot

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
