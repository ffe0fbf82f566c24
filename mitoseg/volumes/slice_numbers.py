"""Which slices a folder lacks, by the numbers in the names of its files.

slice_001  slice_002  slice_004          003 is missing
z0000  z0005  z0010                      nothing: every fifth slice
s3_001_z=0.000  s3_002_z=0.010           3 stands still, 001 and 002 count, the rest follows
slice_001  slice_1  slice_001 (2)        three files for slice 1
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath

_MOST = 0.5
"""Share of the steps that have to be equal before numbers are taken for those of slices, where several count."""


def find_gap(names: Sequence[str]) -> str | None:
    """What the numbers of slices say of slices that are missing or there twice.

    Args:
        names: Of the files, in the order of the slices.

    Returns:
        What is wrong, as the beginning of a sentence; None where nothing is, or the names do not tell.

    >>> find_gap(["s_001.tif", "s_002.tif", "s_004.tif"])
    '1 slice is missing by the numbers of the files, between s_002.tif and s_004.tif'
    >>> find_gap(["0.png", "5.png", "10.png"]), find_gap(["a.png", "c.png"])
    (None, None)
    """
    numbers = slice_numbers(names)
    if numbers is None:
        return None
    order = sorted(range(len(names)), key=lambda i: numbers[i])
    pairs = list(pairwise(order))
    twice = [(a, b) for a, b in pairs if numbers[a] == numbers[b]]
    if twice:
        more = f", and {len(twice) - 1} more" if len(twice) > 1 else ""
        a, b = sorted(names[i] for i in twice[0])
        return f"slice {numbers[twice[0][0]]} is there twice by the numbers of the files, as {a} and {b}{more}"
    steps = [numbers[b] - numbers[a] for a, b in pairs]
    step = min(steps, default=1)
    jumps = [i for i, one in enumerate(steps) if one != step]
    if not jumps:
        return None
    where = f"between {names[pairs[jumps[0]][0]]} and {names[pairs[jumps[0]][1]]}"
    if any(one % step for one in steps):
        return f"the numbers of the slices jump {len(jumps)} times, first {where}".replace(" 1 times, first", " once,")
    missing = sum(one // step - 1 for one in steps)
    told = "1 slice is missing" if missing == 1 else f"{missing} slices are missing"
    return f"{told} by the numbers of the files, {'first ' if len(jumps) > 1 else ''}{where}"


def slice_numbers(names: Sequence[str]) -> list[int] | None:
    """The number of each slice among the numbers in the names of files; None where that is not plain.

    >>> slice_numbers(["s3_z1_of_9.tif", "s3_z2_of_9.tif"])
    [1, 2]
    """
    stems = [PurePath(name).stem.lower() for name in names]
    kinds = Counter(re.sub(r"\d+", "#", stem) for stem in stems)
    found = [tuple(int(number) for number in re.findall(r"\d+", stem)) for stem in stems]
    kind, count = max(kinds.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    main = [row for row, stem in zip(found, stems, strict=True) if re.sub(r"\d+", "#", stem) == kind]
    if 2 * count < len(names) or not main or not main[0]:
        return None
    column = _counting(list(zip(*main, strict=True)))
    if column is None or any(len(row) <= column for row in found):
        return None
    return [row[column] for row in found]


def _counting(columns: Sequence[tuple[int, ...]]) -> int | None:
    """Which of the numbers in names of one kind counts slices."""
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) < 2:
        return varying[0] if varying else 0
    regular = [(_regular(columns[i]), -i) for i in varying if len(set(columns[i])) == len(columns[i])]
    share, place = max(regular, default=(0.0, 0))
    return -place if share > _MOST else None


def _regular(column: Sequence[int]) -> float:
    """The share of the steps from number to number that are equal."""
    ordered = sorted(column)
    steps = Counter(b - a for a, b in pairwise(ordered))
    return max(steps.values()) / (len(column) - 1)
