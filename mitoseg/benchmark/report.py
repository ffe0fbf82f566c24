"""What a benchmark's folder tells: the table with its notes, and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mitoseg.benchmark.picture import draw_methods, picture_box
from mitoseg.benchmark.records import METRICS, RECORD, is_finished, known_before, prediction_path
from mitoseg.benchmark.rows import Row, method_row, published_rows
from mitoseg.benchmark.scoring import score_crop
from mitoseg.benchmark.table import PICTURE, Page, text, write_tables
from mitoseg.datasets import Region, Splits
from mitoseg.datasets.checksums import checksums
from mitoseg.geometry import Box
from mitoseg.storage import changes, read_json

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
