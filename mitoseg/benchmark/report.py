"""What a benchmark's folder shows: scores as rows, the table with its notes in three files, and one picture."""

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
from mitoseg.errors import UserError
from mitoseg.evaluation import Evaluation, decide, evaluate, pool_evaluations
from mitoseg.evaluation.figures import comparison_figure, save_figure
from mitoseg.geometry import Box
from mitoseg.storage import changes, read_json, write_json, write_text
from mitoseg.tables import to_csv, to_markdown
from mitoseg.volumes import ArrayVolume, open_volume

Row = dict[str, Any]
"""Cells by the names in `COLUMNS`, None where there is nothing."""
COLUMNS = (
    *("method", "title", "source", "status", "jaccard_foreground", "jaccard_foreground_low"),
    *("jaccard_foreground_high", "jaccard_background", "jaccard_mean", "precision", "recall", "threshold"),
    *("band", "band_jaccard_foreground", "band_jaccard_mean", "band_left_out_foreground", "band_left_out_background"),
    *("crop", "crop_jaccard_foreground", "crop_jaccard_mean", "jaccard_published"),
    *("training_seconds", "prediction_seconds", "peak_memory_bytes", "device_memory_bytes", "protocol", "commit"),
)
"""Of ``table.csv``; scores are shares of one."""
PUBLISHED = (("Lucchi et al.", 0.948), ("Neila et al.", 0.762), ("Lucchi et al.", 0.867), ("proposed", 0.964))
"""The table of the abstract, in its order and under its names."""
_UNKNOWN = "EPFL CA1; class (fg, bg or mean), voxels and any boundary band are not stated"
_WHICH = "which paper is meant is not stated"
_COSTS_NOTE = (
    "Training: an estimator's fitting and choosing; a network's training loop with its validations. Prediction: from "
    "the image's file to the result's. Peak memory: of the process, in training or prediction, whichever is more."
)
_PUBLISHED_NOTE = "The abstract's figures stand in rows of their own, under its labels: see their protocol."
_EMPTY = "-"
_PICTURE = "methods.png"
_CROPS = "crops.json"
_COLOURS = "green found, orange false, blue missed"
_EVERY = 4
"""Of how many slices one is looked at for a place to show."""
_STYLE = """body {font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem}
table {border-collapse: collapse; font-variant-numeric: tabular-nums}
th, td {border-bottom: 1px solid #ccc; padding: .3rem .6rem; text-align: right; vertical-align: top}
th:first-child, td:first-child, td:nth-child(2), td:last-child {text-align: left}
tr.published td {color: #666; font-style: italic}
img {max-width: 100%}"""


@dataclass(frozen=True)
class Report:
    """A benchmark's table and picture; ``crop`` is in coordinates of the one region, ``band`` in voxels."""

    folder: Path
    names: Sequence[str]
    data: str
    splits: Splits
    regions: Sequence[Region]
    part: str
    band: float
    crop: Box | None
    published: bool

    def write(self) -> Page:
        """Write ``table.md``, ``table.html`` and ``table.csv`` of the methods as they stand."""
        rows = [self._row(name) for name in self.names]
        published = published_rows() if self.published else []
        if self.data != "lucchi":
            for row in published:
                row["protocol"] = f"other data: {row['protocol']}"
        title = f"Methods on the {self.part} part of {self.data}"
        page = Page([*rows, *published], title, self._notes(rows), (self.folder / _PICTURE).is_file())
        write_tables(self.folder, page)
        return page

    def draw(self, size: object, box: object) -> None:
        """Draw the same crop under every finished method; nothing where there is none."""
        region, results = self.regions[0], {}
        place = picture_box(region, size, box)
        for name in self.names:
            if is_finished(self.folder / name):
                score = read_json(self.folder / name / METRICS)[self.part].get("jaccard_foreground")
                prediction = open_volume(str(prediction_path(self.folder / name, self.part, 0)))
                found = decide(prediction).foreground(prediction.read(place))[0]
                results[f"{name}, fg JAC {text(score, 'percent')}"] = found
        if not results:
            return
        z, y, x = place.start
        there = place.shift(region.box.start)
        figure = comparison_figure(
            region.image.read(there)[0],
            region.label.read(there)[0],
            results,
            title=f"image, z = {z}, y from {y}, x from {x}",
            voxel_size=region.image.voxel_size,
        )
        save_figure(figure, self.folder / _PICTURE)

    def _row(self, name: str) -> Row:
        """The row of a method; scores of the crop are kept in ``crops.json``."""
        folder = self.folder / name
        row = method_row(name, folder, self.part, self.band)
        if self.crop is None or not is_finished(folder):
            return row
        known, crop = read_json(folder / _CROPS), str(self.crop)
        if crop not in known:
            result = open_volume(str(prediction_path(folder, self.part, 0)))
            truth = ArrayVolume(self.regions[0].read_label(), result.voxel_size)
            metrics = evaluate(result, truth, crop=self.crop, bands=())
            cells = {f"crop_{key}": metrics.get(key) for key in ("jaccard_foreground", "jaccard_mean")}
            known[crop] = {"crop": metrics.get("crop"), **cells}
            write_json(folder / _CROPS, known)
        row |= known[crop]
        return row

    def _notes(self, rows: Sequence[Row]) -> list[str]:
        voxels = sum(region.box.size for region in self.regions)
        names = {key: ", ".join(r.name for r in getattr(self.splits, key)) for key in ("train", "validation")}
        notes = []
        for row in [row for row in rows if row["band"] is not None][:1]:
            foreground, background = (text(row[f"band_left_out_{s}"], "percent") for s in ("foreground", "background"))
            notes.append(
                f"Without the border: voxels at most {row['band']:g} from the other true class (3D, Euclidean, in "
                "voxels of the smallest spacing) are left out on both sides, "
                f"{foreground} % of fg and {background} % of bg."
            )
        return [
            f"JAC in percent, pooled over {voxels:,} voxels: {', '.join(r.name for r in self.regions)}.",
            f"Trained on {names['train']}; every choice (thresholds, weights, epochs) on {names['validation']}.",
            *notes,
            _COSTS_NOTE,
            *([_PUBLISHED_NOTE] if self.published else ()),
            *(str(warning) for warning in self.splits.provenance.get("warnings") or ()),
        ]


def finished_before(folder: Path, names: Sequence[str], common: Mapping[str, Any]) -> list[str]:
    """Finished methods in a benchmark's folder besides ``names`` whose results depend on the same data and options."""
    found = []
    for path in sorted(folder.glob(f"*/{RECORD}")):
        before = read_json(path).get("options") or {}
        same = not changes({key: before.get(key) for key in common}, known_before(before, common))
        if path.parent.name not in names and is_finished(path.parent) and same:
            found.append(path.parent.name)
    return found


@dataclass(frozen=True)
class Page:
    """A table of methods and published figures, its notes below, and whether there is a picture to show."""

    rows: Sequence[Row]
    title: str
    notes: Sequence[str] = ()
    picture: bool = False

    def columns(self) -> dict[str, tuple[str, str]]:
        """Head and kind (text, percent, seconds or bytes) of the columns that are shown."""
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
        shown["training_seconds"] = ("training", "seconds")
        shown["prediction_seconds"] = ("prediction", "seconds")
        shown["peak_memory_bytes"] = ("peak memory", "bytes")
        if any(row["device_memory_bytes"] for row in self.rows):
            shown["device_memory_bytes"] = ("peak device memory", "bytes")
        return shown | {"protocol": ("protocol", "text")}

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
        return _EMPTY
    if kind == "percent":
        return f"{100 * value:.1f}"
    if kind == "seconds":
        return f"{value:.3g} s" if value < 100 else f"{value / 60:.1f} min"
    return f"{value / 1e9:.2f} GB" if kind == "bytes" else str(value)


def write_tables(folder: Path, page: Page) -> None:
    """Write the three tables; ``table.csv`` holds all that is known, in plain numbers."""
    write_text(folder / "table.md", markdown(page))
    write_text(folder / "table.csv", to_csv(COLUMNS, ([row[column] for column in COLUMNS] for row in page.rows)))
    write_text(folder / "table.html", as_html(page))


def markdown(page: Page) -> str:
    """The page as Markdown."""
    picture = [f"![The same crop under every method: {_COLOURS}]({_PICTURE})", ""] if page.picture else []
    return "\n".join(
        [f"# {page.title}", "", to_markdown(page.cells()), "", *picture, *(f"- {note}" for note in page.notes), ""]
    )


def as_html(page: Page) -> str:
    """The page as HTML that needs nothing but the picture beside it."""
    head, *body = ([html.escape(cell) for cell in cells] for cells in page.cells())
    rows = [
        f'<tr class="{html.escape(str(row["source"]))}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        for row, cells in zip(page.rows, body, strict=True)
    ]
    title = html.escape(page.title)
    figure = f'<figure><img src="{_PICTURE}" alt="{_COLOURS}"><figcaption>{_COLOURS}</figcaption></figure>'
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
    published = [row for row in page.rows if row["source"] == "published"]
    figures = ", ".join(f"{row['method']} {text(row['jaccard_published'], 'percent')}" for row in published)
    caption = f"{figures}: class and voxels not stated" if published else None
    table = Table(title=escape(page.title), title_justify="left", caption=caption, caption_justify="left")
    methods = [row for row in page.rows if row["source"] != "published"]
    heads = [head for head, (_, keys) in shown.items() if any(row[keys[0]] is not None for row in methods)]
    for head in heads:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in methods:
        cells = [[text(row[key], kind) for key in keys] for kind, keys in (shown[head] for head in heads)]
        table.add_row(*(escape(_EMPTY if set(cell) == {_EMPTY} else ", ".join(cell)) for cell in cells))
    return table


def published_rows() -> list[Row]:
    """The abstract's figures, in rows of their own: it does not say which paper, and so which method, it means."""
    return [
        dict.fromkeys(COLUMNS)
        | {
            "method": f"{name} (abstract)",
            "title": "as the abstract labels it",
            "source": "published",
            "jaccard_published": value,
            "protocol": f"{_UNKNOWN}; {_WHICH}" if name.startswith("Lucchi") else _UNKNOWN,
        }
        for name, value in PUBLISHED
    ]


def method_row(name: str, folder: Path, part: str, band: float) -> Row:
    """The row of a method, from what its folder holds; ``band`` is the width of the boundary band."""
    record, costs = read_json(folder / RECORD), read_json(folder / COSTS)
    status = record.get("status") or "not run"
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"method": name, "title": record.get("title"), "source": "mitoseg", "commit": record.get("commit")}
    metrics = read_json(folder / METRICS).get(part)
    if status != FINISHED or not metrics:
        return row | {"status": status, "protocol": f"no result: {record.get('error') or status}"}
    row |= {"status": status, "protocol": costs.get("protocol")}
    row |= {key: costs.get(key) for key in ("training_seconds", "prediction_seconds")}
    memory = costs.get("peak_memory") or {}
    row |= {"peak_memory_bytes": memory.get("process"), "device_memory_bytes": memory.get("device")}
    same = ("jaccard_foreground", "jaccard_background", "jaccard_mean", "precision", "recall")
    row |= {key: metrics.get(key) for key in same}
    if metrics.get("kind") == "probability":
        row["threshold"] = metrics.get("threshold")
    low_high: Sequence[float | None] = (metrics.get("interval") or {}).get("jaccard_foreground") or (None, None)
    row["jaccard_foreground_low"], row["jaccard_foreground_high"] = low_high
    for found in metrics.get("boundary") or ():
        if found["dims"] == 3 and found["distance"] == band:
            keys = ("jaccard_foreground", "jaccard_mean", "left_out_foreground", "left_out_background")
            row |= {"band": band, **{f"band_{key}": found[key] for key in keys}}
    return row


def choose_box(label_zyx: npt.NDArray[np.uint8], size: Sequence[int]) -> Box:
    """Where a crop (y, x) of one slice holds most mitochondria in truth, so that no result decides what is shown."""
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
    """The crop that is asked for, by its box in coordinates of the region or by its size (y, x)."""
    if box is not None:
        found = Box.parse(box, region.box.shape)
        if found.shape[0] != 1:
            raise UserError("the picture shows one slice", str(found), "give figure_box=[z:z+1,y:y,x:x]")
        return found
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(n) is int and n > 0 for n in size):
        raise UserError("figure_size is not a size", size, "give figure_size=[y,x] in voxels, such as [384,384]")
    return choose_box(region.read_label(), size)


def score_part(folder: Path, regions: Sequence[Region], part: str) -> Evaluation:
    """Score the predictions of the regions in a method's folder, pooled, and write ``metrics.json``."""
    found = []
    for i, region in enumerate(regions):
        result = open_volume(str(prediction_path(folder, part, i)))
        found.append(evaluate(result, ArrayVolume(region.read_label(), result.voxel_size, region.label.path)))
    pooled = pool_evaluations(found)
    write_json(folder / METRICS, {part: pooled})
    return pooled


def read_crop(text: object, regions: Sequence[Region]) -> Box | None:
    """The part of the one region that is scored as well."""
    if text is None:
        return None
    if len(regions) != 1:
        raise UserError("crop= is for one region, but there are several", [r.name for r in regions], "leave out crop=")
    return Box.parse(text, regions[0].box.shape)
