"""What a benchmark's folder tells: the table with its notes, and the picture.

``table.md``, ``table.csv`` and ``table.html``, and the same table for the terminal.

Rows of the table: what was measured here, and what the abstract gives.

One picture: the same crop of a slice under every method.

Scores of what a method has written, whole and of a part.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.markup import escape
from rich.table import Table
from scipy.ndimage import uniform_filter

from mitoseg.benchmark.methods import COSTS, FINISHED, METRICS, RECORD, is_finished, known_before, prediction_path
from mitoseg.datasets import Region, Splits
from mitoseg.datasets.download import checksums
from mitoseg.errors import UserError
from mitoseg.evaluation import Evaluation, decide, evaluate, pool_evaluations
from mitoseg.evaluation.figures import comparison_figure
from mitoseg.geometry import Box
from mitoseg.storage import atomic_output, changes, read_json, write_json, write_text
from mitoseg.tables import to_csv, to_markdown
from mitoseg.volumes import ArrayVolume, open_volume

COSTS_NOTE = (
    "Training: an estimator's fitting and choosing; a network's training loop with its validations. Prediction: from "
    "the image's file to the result's. Peak memory: of the process, in training or prediction, whichever is more."
)

PUBLISHED_NOTE = "The abstract's figures stand in rows of their own, under its labels: see their protocol."


@dataclass(frozen=True)
class Report:
    """How a benchmark is told of.

    Attributes:
        folder: The benchmark's; each method has a folder in it.
        data: Name of the data set.
        splits: Its regions.
        regions: Those that are scored.
        part: Which they are.
        band: Width of the boundary band.
        crop: Scored as well, in coordinates of the one region.
        published: Whether the abstract's figures are shown.
    """

    folder: Path
    data: str
    splits: Splits
    regions: Sequence[Region]
    part: str
    band: float
    crop: Box | None
    published: bool

    def write(self, names: Sequence[str]) -> Page:
        """Write the tables of the methods as they stand.

        Raises:
            UserError: A file cannot be written.
        """
        rows = [self._row(name) for name in names]
        there = (self.folder / PICTURE).is_file()
        page = Page(
            [*rows, *(self._published() if self.published else ())],
            f"Methods on the {self.part} part of {self.data}",
            self._notes(rows),
            picture=there,
        )
        write_tables(self.folder, page)
        return page

    def draw(self, names: Sequence[str], size: object, box: object) -> None:
        """Draw the finished methods; nothing where there is none.

        Raises:
            UserError: The crop is no good, or the file cannot be written.
        """
        region, shown = self.regions[0], {}
        place = picture_box(region, size, box)
        for name in names:
            if is_finished(self.folder / name):
                score = read_json(self.folder / name / METRICS)[self.part].get("jaccard_foreground")
                above = f"{name}, fg JAC {text(score, 'percent')}"
                shown[above] = prediction_path(self.folder / name, self.part, 0)
        if shown:
            draw_methods(self.folder / PICTURE, region, shown, place)

    def others(self, names: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Finished methods in the folder besides ``names`` that were run on the same data, see `common_options`."""
        found = []
        for path in sorted(self.folder.glob(f"*/{RECORD}")):
            before = read_json(path).get("options") or {}
            same = not changes({key: before.get(key) for key in options}, known_before(before, options))
            if path.parent.name not in names and is_finished(path.parent) and same:
                found.append(path.parent.name)
        return found

    def _row(self, name: str) -> Row:
        folder = self.folder / name
        row = method_row(name, folder, self.part, self.band)
        if self.crop is not None and is_finished(folder):
            row |= score_crop(folder, self.regions[0], self.part, self.crop)
        return row

    def _published(self) -> list[Row]:
        rows = published_rows()
        if self.data != "lucchi":
            for row in rows:
                row["protocol"] = f"other data: {row['protocol']}"
        return rows

    def _notes(self, rows: Sequence[Row]) -> list[str]:
        voxels = sum(region.box.size for region in self.regions)
        names = {key: ", ".join(r.name for r in getattr(self.splits, key)) for key in ("train", "validation")}
        return [
            f"JAC in percent, pooled over {voxels:,} voxels: {', '.join(r.name for r in self.regions)}.",
            f"Trained on {names['train']}; every choice (thresholds, weights, epochs) on {names['validation']}.",
            *(band_note(row) for row in [row for row in rows if row["band"] is not None][:1]),
            COSTS_NOTE,
            *([PUBLISHED_NOTE] if self.published else ()),
            *(str(warning) for warning in self.splits.provenance.get("warnings") or ()),
        ]


def band_note(row: Row) -> str:
    """What the boundary band leaves out."""
    shares = [text(row[f"band_left_out_{side}"], "percent") for side in ("foreground", "background")]
    return (
        f"Without the border: voxels at most {row['band']:g} from the other true class (3D, Euclidean, in voxels of "
        f"the smallest spacing) are left out on both sides, {shares[0]} % of fg and {shares[1]} % of bg."
    )


def common_options(data: Mapping[str, Any], splits: Splits, part: str, seed: int) -> dict[str, Any]:
    """What the results of all methods of one table depend on."""
    return {"data": data, "files": checksums(splits.provenance), "part": part, "seed": seed}


EMPTY = "-"

PICTURE = "methods.png"

KEY = "green found, orange false, blue missed"

_STYLE = """body {font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem}
table {border-collapse: collapse; font-variant-numeric: tabular-nums}
th, td {border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: right; vertical-align: top}
th:first-child, td:first-child, td:nth-child(2), td:last-child {text-align: left}
tr.published td {color: #666; font-style: italic}
img {max-width: 100%}"""


@dataclass(frozen=True)
class Page:
    """A table with what is said around it.

    Attributes:
        rows: Of methods and of published figures.
        title: Above.
        notes: Sentences below.
        picture: Whether there is one to show.
    """

    rows: Sequence[Row]
    title: str
    notes: Sequence[str] = ()
    picture: bool = False

    def columns(self) -> dict[str, tuple[str, str]]:
        """Head and column of what is shown, by the kind of its cells: text, percent, seconds or bytes."""
        bands = sorted({row["band"] for row in self.rows if row["band"] is not None})
        band = f"without {bands[0]:g} voxels at the border" if bands else "without the border"
        shown = {
            "method": ("method", "text"),
            "title": ("what", "text"),
            "jaccard_foreground": ("fg JAC", "percent"),
            "jaccard_background": ("bg JAC", "percent"),
            "jaccard_mean": ("mean JAC", "percent"),
            "band_jaccard_foreground": (f"fg JAC {band}", "percent"),
            "band_jaccard_mean": (f"mean JAC {band}", "percent"),
        }
        crops = {row["crop"] for row in self.rows if row["crop"]}
        if crops:
            where = crops.pop()
            shown["crop_jaccard_foreground"] = (f"fg JAC in {where}", "percent")
            shown["crop_jaccard_mean"] = (f"mean JAC in {where}", "percent")
        if any(row["jaccard_published"] is not None for row in self.rows):
            shown["jaccard_published"] = ("JAC as published", "percent")
        return shown | {
            "training_seconds": ("training", "seconds"),
            "prediction_seconds": ("prediction", "seconds"),
            "peak_memory_bytes": ("peak memory", "bytes"),
            **(
                {"device_memory_bytes": ("peak device memory", "bytes")}
                if any(row["device_memory_bytes"] for row in self.rows)
                else {}
            ),
            "protocol": ("protocol", "text"),
        }

    def cells(self) -> list[list[str]]:
        """What is shown, head first."""
        columns = self.columns()
        body = [[text(row[key], kind) for key, (_, kind) in columns.items()] for row in self.rows]
        return [[head for head, _ in columns.values()], *body]


def text(value: Any, kind: str) -> str:  # noqa: ANN401 (a cell)
    """One cell.

    >>> text(0.76249, "percent"), text(95.0, "seconds"), text(1.5e9, "bytes"), text(None, "percent")
    ('76.2', '95 s', '1.50 GB', '-')
    """
    if value is None or value == "":
        return EMPTY
    if kind == "percent":
        return f"{100 * value:.1f}"
    if kind == "seconds":
        return f"{value:.3g} s" if value < 100 else f"{value / 60:.1f} min"
    return f"{value / 1e9:.2f} GB" if kind == "bytes" else str(value)


def write_tables(folder: Path, page: Page) -> None:
    """Write the three files, each whole or not at all.

    Raises:
        UserError: One cannot be written.
    """
    write_text(folder / "table.md", markdown(page))
    write_text(folder / "table.csv", as_csv(page.rows))
    write_text(folder / "table.html", as_html(page))


def markdown(page: Page) -> str:
    """The page as Markdown."""
    picture = [f"![The same crop under every method: {KEY}]({PICTURE})", ""] if page.picture else []
    return "\n".join(
        [f"# {page.title}", "", to_markdown(page.cells()), "", *picture, *(f"- {note}" for note in page.notes), ""]
    )


def as_csv(rows: Sequence[Row]) -> str:
    """All that is known, in plain numbers."""
    return to_csv(COLUMNS, ([row[column] for column in COLUMNS] for row in rows))


def as_html(page: Page) -> str:
    """The page as HTML that needs nothing but the picture beside it."""
    head, *body = ([html.escape(cell) for cell in cells] for cells in page.cells())
    rows = [
        f'<tr class="{html.escape(str(row["source"]))}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for row, cells in zip(page.rows, body, strict=True)
    ]
    title, key = html.escape(page.title), html.escape(KEY)
    figure = f'<figure><img src="{PICTURE}" alt="{key}"><figcaption>{key}</figcaption></figure>'
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
        f"<h1>{title}</h1><table><thead><tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr></thead>",
        "<tbody>",
        *rows,
        "</tbody></table>",
        *([figure] if page.picture else []),
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in page.notes) + "</ul></html>",
    ]
    return "\n".join(parts) + "\n"


def terminal(page: Page) -> Table:
    """The methods as they fit on a terminal: scores of one kind in one column, published figures in a line below."""
    shown = {
        "method": ("text", ("method",)),
        "JAC\nfg, mean": ("percent", ("jaccard_foreground", "jaccard_mean")),
        "no border\nfg, mean": ("percent", ("band_jaccard_foreground", "band_jaccard_mean")),
        "crop\nfg, mean": ("percent", ("crop_jaccard_foreground", "crop_jaccard_mean")),
        "train": ("seconds", ("training_seconds",)),
        "predict": ("seconds", ("prediction_seconds",)),
        "memory": ("bytes", ("peak_memory_bytes",)),
    }
    published = [f"{row['method']} {text(row['jaccard_published'], 'percent')}" for row in published_of(page.rows)]
    caption = f"{', '.join(published)}: class and voxels not stated" if published else None
    table = Table(title=escape(page.title), title_justify="left", caption=caption, caption_justify="left")
    methods = [row for row in page.rows if row["source"] != "published"]
    heads = [head for head, (_, keys) in shown.items() if any(row[keys[0]] is not None for row in methods)]
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in methods:
        cells = [[text(row[key], kind) for key in keys] for kind, keys in (shown[head] for head in heads)]
        table.add_row(*(escape(EMPTY if set(cell) == {EMPTY} else ", ".join(cell)) for cell in cells))
    return table


def published_of(rows: Sequence[Row]) -> list[Row]:
    """The rows of published figures."""
    return [row for row in rows if row["source"] == "published"]


Row = dict[str, Any]
"""Cells by the names in `COLUMNS`, None where there is nothing."""

PUBLISHED = (("Lucchi et al.", 0.948), ("Neila et al.", 0.762), ("Lucchi et al.", 0.867), ("proposed", 0.964))
"""The table of the abstract, in its order and under its names."""

UNKNOWN = "EPFL CA1; class (fg, bg or mean), voxels and any boundary band are not stated"

WHICH = "which paper is meant is not stated"

COLUMNS = (
    *("method", "title", "source", "status", "jaccard_foreground", "jaccard_foreground_low"),
    *("jaccard_foreground_high", "jaccard_background", "jaccard_mean", "precision", "recall", "threshold"),
    *("band", "band_jaccard_foreground", "band_jaccard_mean", "band_left_out_foreground", "band_left_out_background"),
    *("crop", "crop_jaccard_foreground", "crop_jaccard_mean", "jaccard_published"),
    *("training_seconds", "prediction_seconds", "peak_memory_bytes", "device_memory_bytes", "protocol", "commit"),
)
"""Of ``table.csv``; scores are shares of one."""


def published_rows() -> list[Row]:
    """The abstract's figures, each with what is known of how it came about.

    No figure is put beside a method of ours, since the abstract does not say which of their papers it means.
    """
    return [
        _row(
            method=f"{name} (abstract)",
            title="as the abstract labels it",
            source="published",
            jaccard_published=value,
            protocol=f"{UNKNOWN}; {WHICH}" if name.startswith("Lucchi") else UNKNOWN,
        )
        for name, value in PUBLISHED
    ]


def method_row(name: str, folder: Path, part: str, band: float) -> Row:
    """The row of a method, from what its folder holds.

    Args:
        name: Of the method.
        folder: Its folder.
        part: Of the data, whose scores are shown.
        band: Width of the boundary band.
    """
    record, costs = read_json(folder / RECORD), read_json(folder / COSTS)
    status = record.get("status") or "not run"
    about = {"method": name, "title": record.get("title"), "source": "mitoseg", "commit": record.get("commit")}
    metrics = read_json(folder / METRICS).get(part)
    if status != FINISHED or not metrics:
        why = record.get("error")
        return _row(**about, status=status, protocol=f"no result: {why or status}")
    memory = costs.get("peak_memory") or {}
    return _row(
        **about,
        **scores(metrics, band),
        status=status,
        training_seconds=costs.get("training_seconds"),
        prediction_seconds=costs.get("prediction_seconds"),
        peak_memory_bytes=memory.get("process"),
        device_memory_bytes=memory.get("device"),
        protocol=costs.get("protocol"),
    )


def scores(metrics: Mapping[str, Any], band: float) -> Row:
    """The cells of an evaluation, as `mitoseg.evaluation.evaluate` gave it or a file holds it."""
    cells = {key: metrics.get(key) for key in ("jaccard_foreground", "jaccard_background", "jaccard_mean")}
    cells |= {key: metrics.get(key) for key in ("precision", "recall")}
    if metrics.get("kind") == "probability":
        cells["threshold"] = metrics.get("threshold")
    low_high: Sequence[float | None] = (metrics.get("interval") or {}).get("jaccard_foreground") or (None, None)
    cells["jaccard_foreground_low"], cells["jaccard_foreground_high"] = low_high
    for found in metrics.get("boundary") or ():
        if found["dims"] == 3 and found["distance"] == band:
            keys = ("jaccard_foreground", "jaccard_mean", "left_out_foreground", "left_out_background")
            cells |= {"band": band, **{f"band_{key}": found[key] for key in keys}}
    return cells


def crop_cells(metrics: Mapping[str, Any]) -> Row:
    """The cells of an evaluation of a part."""
    cells = {f"crop_{key}": metrics.get(key) for key in ("jaccard_foreground", "jaccard_mean")}
    return {"crop": metrics.get("crop"), **cells}


def _row(**cells: object) -> Row:
    unknown = set(cells) - set(COLUMNS)
    if unknown:
        raise ValueError(f"no such columns: {sorted(unknown)}")
    return {column: cells.get(column) for column in COLUMNS}


_EVERY = 4
"""Of how many slices one is looked at for a place to show."""


def choose_box(label_zyx: npt.NDArray[np.uint8], size: Sequence[int]) -> Box:
    """Where a crop of one slice holds most mitochondria in truth, so that no result has a say in what is shown.

    Args:
        label_zyx: 0, 1, 255.
        size: (y, x) of the crop, cut to the slice.

    >>> label_zyx = np.zeros((5, 8, 8), np.uint8)
    >>> label_zyx[4, 4:, 4:] = 1
    >>> str(choose_box(label_zyx, (4, 4)))
    '[4:5,4:8,4:8]'
    """
    height, width = (min(int(n), whole) for n, whole in zip(size, label_zyx.shape[1:], strict=True))
    best, place = -1.0, (0, 0, 0)
    for z in range(0, len(label_zyx), _EVERY):
        share_yx = uniform_filter((label_zyx[z] == 1).astype(np.float32), (height, width), mode="constant")
        # The filter answers at index n // 2 of its window.
        whole_yx = share_yx[height // 2 :, width // 2 :][: share_yx.shape[0] - height + 1]
        whole_yx = whole_yx[:, : share_yx.shape[1] - width + 1]
        y, x = np.unravel_index(int(whole_yx.argmax()), whole_yx.shape)
        if whole_yx[y, x] > best + 1e-6:
            best, place = float(whole_yx[y, x]), (z, int(y), int(x))
    z, top, left = place
    return Box((z, top, left), (z + 1, top + height, left + width))


def picture_box(region: Region, size: object, box: object) -> Box:
    """The crop that is asked for, in coordinates of the region.

    Raises:
        UserError: It is no size, leaves the region, or has more than one slice.
    """
    if box is not None:
        found = Box.parse(box, region.box.shape)
        if found.shape[0] != 1:
            raise UserError("the picture shows one slice", str(found), "give figure_box=[z:z+1,y:y,x:x]")
        return found
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise UserError("figure_size is no size", size, "give figure_size=[y,x] in voxels, such as [384,384]")
    return choose_box(region.read_label(), size)


def draw_methods(path: Path, region: Region, predictions: Mapping[str, Path], box: Box) -> None:
    """Write the picture.

    Args:
        path: The PNG file.
        region: Image and truth.
        predictions: What each method has written for the region, by what stands above its panel.
        box: One slice, in coordinates of the region.

    Raises:
        UserError: A prediction cannot be read, or the file not be written.
    """
    there = box.shift(region.box.start)
    results = {}
    for title, where in predictions.items():
        prediction = open_volume(str(where))
        results[title] = decide(prediction).foreground(prediction.read(box))[0]
    z, y, x = box.start
    figure = comparison_figure(
        region.image.read(there)[0],
        region.label.read(there)[0],
        results,
        title=f"image, z = {z}, y from {y}, x from {x}",
        voxel_size=region.image.voxel_size,
    )
    with atomic_output(path, overwrite=True) as temporary:
        figure.savefig(temporary, format="png")


CROPS = "crops.json"


def score_part(folder: Path, regions: Sequence[Region], part: str) -> Evaluation:
    """Score the predictions in a method's folder and write ``metrics.json``.

    Args:
        folder: The method's.
        regions: What they are of.
        part: Of the data.

    Returns:
        The keys of `mitoseg.evaluation.evaluate`, pooled over the regions.
    """
    found = []
    for i, region in enumerate(regions):
        result = open_volume(str(prediction_path(folder, part, i)))
        found.append(evaluate(result, ArrayVolume(region.read_label(), result.voxel_size, region.label.path)))
    pooled = pool_evaluations(found)
    write_json(folder / METRICS, {part: pooled})
    return pooled


def read_crop(text: object, regions: Sequence[Region]) -> Box | None:
    """The part that is scored as well.

    Raises:
        UserError: It leaves the region, or there are several.
    """
    if text is None:
        return None
    if len(regions) != 1:
        raise UserError("crop= is of one region, there are several", [r.name for r in regions], "leave out crop=")
    return Box.parse(text, regions[0].box.shape)


def score_crop(folder: Path, region: Region, part: str, crop: Box) -> Row:
    """Scores of a part of the one region, kept in ``crops.json``.

    Args:
        folder: The method's, which holds its prediction.
        region: What that is of.
        part: Of the data.
        crop: In coordinates of the region.
    """
    known = read_json(folder / CROPS)
    if str(crop) not in known:
        result = open_volume(str(prediction_path(folder, part, 0)))
        truth = ArrayVolume(region.read_label(), result.voxel_size)
        known[str(crop)] = crop_cells(evaluate(result, truth, crop=crop, bands=()))
        write_json(folder / CROPS, known)
    cells: Row = known[str(crop)]
    return cells
