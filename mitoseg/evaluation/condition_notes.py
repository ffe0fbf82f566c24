"""A comparison of conditions in words: the warnings that belong to it, and its tables as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from mitoseg.evaluation.measurements import CUT, Measurements
from mitoseg.tables import to_markdown

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
