"""How large the mitochondria are and how they are shaped: a histogram and the share below, one chart a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pandas import DataFrame

from mitoseg.evaluation.report.charts import Axis, Chart, Series
from mitoseg.evaluation.report.markup import Html, element, join, number

_WHOLE = 20  # values of whole numbers that have a bin each
_LEAST = 3
"""Instances from which a distribution is drawn."""


@dataclass(frozen=True)
class Column:
    """A column of the table that is drawn.

    Attributes:
        key: Its name.
        name: To read.
        unit: That it is drawn in; empty for a ratio.
        factor: From the stored unit to that one.
        log: Whether the axis is logarithmic.
    """

    key: str
    name: str
    unit: str = ""
    factor: float = 1.0
    log: bool = False


COLUMNS = (
    Column("volume_nm3", "volume", "µm³", 1e-9, log=True),
    Column("surface_nm2", "surface", "µm²", 1e-6, log=True),
    Column("length_nm", "length", "µm", 1e-3),
    Column("diameter_mean_nm", "mean diameter", "nm"),
    Column("sphericity", "sphericity"),
    Column("tortuosity", "tortuosity"),
    Column("branches", "branches"),
    Column("complexity", "complexity index"),
    Column("neighbour_distance_nm", "distance to the nearest neighbour", "µm", 1e-3),
    Column("grey_mean", "mean grey level"),
    Column("probability_mean", "mean probability"),
)
SIZES = (
    Column("voxels", "volume", "voxels", log=True),
    Column("diameter_sphere_nm", "diameter of a ball of that volume", "nm"),
)
"""Where there are no better ones."""


def distribution_section(table: DataFrame | None) -> Html | None:
    """Charts of the columns that the table has; None without any."""
    if table is None:
        return None
    whole = whole_instances(table)
    columns = [column for column in COLUMNS if column.key in table]
    if len(columns) < 2:
        columns += [column for column in SIZES if column.key in table and not (columns and column.key == "voxels")]
    charts = [chart for column in columns if (chart := distribution(whole, column)) is not None]
    if not charts:
        return None
    cut = len(table) - len(whole)
    said = f"{len(whole):,} mitochondria. "
    if cut:
        said += (
            f"{cut:,} more are cut by the border of the volume; of these only a part is seen, so they are left out. "
        )
    said += "Bars: how many. Line: the share of those that are smaller, from 0 to 1. Dashed: the median."
    return join(element("p", said, class_="soft"), element("div", *charts, class_="charts"))


def whole_instances(table: DataFrame) -> DataFrame:
    """The rows that the border does not cut."""
    if "touches_border" not in table:
        return table
    return table[~table["touches_border"].astype(bool)]


def distribution(table: DataFrame, column: Column) -> Html | None:
    """A figure of one column; None where there is too little to draw."""
    values = table[column.key].to_numpy(float, na_value=np.nan) * column.factor
    values = np.sort(values[np.isfinite(values)])
    values = values[values > 0] if column.log else values
    if len(values) < _LEAST or values[0] == values[-1]:
        return None
    edges = bins(values, column.log)
    counts, _ = np.histogram(values, edges)
    quarter, median, three = (float(v) for v in np.percentile(values, (25, 50, 75)))
    unit = f" {column.unit}" if column.unit else ""
    said = f"median {number(median, 3)}{unit}, middle half {number(quarter, 3)} to {number(three, 3)}{unit}"
    pad = 0.03 * (np.log10(edges[-1] / edges[0]) if column.log else edges[-1] - edges[0])
    low, high = (edges[0] / 10**pad, edges[-1] * 10**pad) if column.log else (edges[0] - pad, edges[-1] + pad)
    x = Axis(f"{column.name} ({column.unit})" if column.unit else column.name, float(low), float(high), column.log)
    top = float(counts.max()) * 1.08
    chart = Chart(x, Axis("mitochondria", 0, top, whole=True), f"Histogram of {column.name} of {len(values)}: {said}")
    chart.bars(edges, counts)
    share = np.arange(1, len(values) + 1) / len(values) * top / 1.08
    chart.draw(Series("", np.repeat(values, 2)[1:], np.repeat(share, 2)[:-1], "c2"))
    chart.upright(median, number(median, 3))
    return element("figure", chart.svg(), element("figcaption", element("b", column.name), " ", said))


def bins(values: Sequence[float] | npt.NDArray[np.float64], log: bool) -> npt.NDArray[np.float64]:
    """Edges of bins by the rule of Freedman and Diaconis, 5 to 40 of them, on a logarithmic axis if asked.

    Whole numbers that span few values have a bin each.

    >>> bins([1, 1, 2, 4], log=False).tolist()
    [0.5, 1.5, 2.5, 3.5, 4.5]
    """
    low, high = np.min(values), np.max(values)
    if not log and high - low < _WHOLE and np.array_equal(values, np.rint(values)):
        return np.arange(low - 0.5, high + 1)
    v = np.log10(values) if log else np.asarray(values, float)
    quarter, three = np.percentile(v, (25, 75))
    width = 2 * (three - quarter) / len(v) ** (1 / 3)
    count = int(np.clip(np.ceil((v.max() - v.min()) / width) if width > 0 else 10, 5, 40))
    edges = np.linspace(v.min(), v.max(), count + 1)
    result: npt.NDArray[np.float64] = 10**edges if log else edges
    result[[0, -1]] = np.min(values), np.max(values)  # rounding would leave an end outside
    return result
