"""Instances of stored probabilities against the truth: F1, splits, merges, volume; and a search for the best options.

python benchmarks/instances.py predictions=A.tif,B.tif truths=C.tif,C.tif slices=0:14,151:165 [key=value ...]

Objects of all predictions are pooled. ``grid.OPTION=[a,b]`` tries every combination of options of labelling or of
post-processing, or of ``postprocess`` itself (min_volume is labelling's). The best has the highest F1 at IoU 0.5; of
equal ones that with the fewest splits and merges, then that of the smallest volume error, then the one named first.
With two or more predictions the choice is cross-validated as well: for each one it is made on the others, and the
objects of all that were so left out are pooled. Choose on validation, and give the test volume without a grid.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from options import read_options
from postprocessing import read_config
from rich.console import Console
from rich.progress import track

from mitoseg.errors import UserError
from mitoseg.evaluation.instances import evaluate_instances, find_overlaps, truth_instances
from mitoseg.evaluation.table import instance_table
from mitoseg.geometry import Box
from mitoseg.metrics.instances import Overlaps
from mitoseg.provenance import git_state
from mitoseg.segmentation import Labelling, Postprocess, label_volume
from mitoseg.storage import write_json
from mitoseg.volumes import ArrayVolume, Volume, map_labels, open_volume
from mitoseg.volumes.predicted import decide

LABELLING = tuple(f.name for f in fields(Labelling))
STEPS = tuple(f.name for f in fields(Postprocess) if f.name not in LABELLING)
HELP = {
    "predictions": "probabilities, or masks",
    "truths": "labels, one volume for each prediction",
    "slices": "where each prediction lies in its truth, start:stop, such as 0:14,151:165; none: all of it",
    "crop": "part of every prediction that is scored, such as [0:82,64:768,0:1024]",
    "postprocess": "a config of conf/postprocess",
    "labelling": "options of labelling, such as labelling.split=true labelling.neck=0.4",
    "small": "objects of fewer voxels are left out",
    "grid": "values to try, such as grid.split=[false,true] grid.postprocess=[none,clean] grid.min_volume=[null,1e6]",
    "out": "JSON file for all numbers",
}


@dataclass
class Options:
    """See `HELP`."""

    predictions: str = ""
    truths: str = ""
    slices: str | None = None
    crop: Any = None
    postprocess: str = "none"
    labelling: dict[str, Any] = field(default_factory=dict)
    small: int = 1000
    grid: dict[str, Any] = field(default_factory=dict)
    out: str | None = None


@dataclass(frozen=True)
class Choice:
    """One combination of options."""

    steps: Postprocess
    labelling: Labelling
    named: Mapping[str, Any]


class Case:
    """A prediction with the instances of its truth, both in memory."""

    def __init__(self, prediction: str, truth: str, part: str | None, crop: object) -> None:
        self._prediction, labels = open_volume(prediction), open_volume(truth)
        box = Box.parse(f"{part or ':'},:,:", labels.shape)
        if box.shape != self._prediction.shape:
            shapes = {"prediction": self._prediction.shape, "truth": box.shape}
            raise UserError("prediction and truth differ in shape (z, y, x)", shapes, "give slices=start:stop")
        self.name, self._crop = Path(prediction).name, None if crop is None else Box.parse(crop, box.shape)
        size = self._prediction.voxel_size or labels.voxel_size
        mapped = map_labels(ArrayVolume(labels.read(box), size, truth, labels.info.metadata))
        self._truth = truth_instances(mapped)
        self._truth = ArrayVolume(self._truth.read(), size)
        self._values_zyx, self._size = self._prediction.read(), size
        self._mask: tuple[Postprocess | None, Volume | None] = (None, None)

    def overlaps(self, choice: Choice) -> Overlaps:
        """The table of the instances that a choice gives."""
        found = label_volume(self._foreground(choice.steps), choice.labelling)
        return find_overlaps(found, self._truth, crop=self._crop)

    def _foreground(self, steps: Postprocess) -> Volume:
        """The mask; the last one is kept."""
        if self._mask[0] != steps:
            decision = decide(self._prediction)
            if decision.kind == "probability":
                probability_zyx = self._values_zyx.astype(np.float32) / np.float32(decision.scale)
                mask_zyx = steps(probability_zyx, decision.threshold, self._size)
            elif steps == Postprocess():
                mask_zyx = decision.foreground(self._values_zyx)
            else:
                raise UserError("postprocess needs probabilities", self.name, "give postprocess=none")
            self._mask = (steps, ArrayVolume(mask_zyx, self._size))
        assert self._mask[1] is not None
        return self._mask[1]


def choices(options: Options) -> list[Choice]:
    """Every combination of the grid, in its order.

    Raises:
        UserError: An option is unknown, or a value is out of range.
    """
    known = (*LABELLING, *STEPS, "postprocess")
    for key, values in options.grid.items():
        if key not in known or not isinstance(values, list) or not values:
            raise UserError("not a list of values of an option", f"grid.{key}={values}", "write grid.neck=[0.4,0.5]")
    for key in options.labelling:
        if key not in LABELLING:
            raise UserError("no such option of labelling", key, f"choose one of {', '.join(LABELLING)}")
    found = []
    for values in itertools.product(*options.grid.values()):
        named = dict(zip(options.grid, values, strict=True))
        steps = read_config(str(named.get("postprocess", options.postprocess)))
        steps = replace(steps, **{key: value for key, value in named.items() if key in STEPS})
        labelled = {**options.labelling, **{key: value for key, value in named.items() if key in LABELLING}}
        found.append(Choice(steps, Labelling(**labelled), named))
    return found


def order(result: Mapping[str, Any]) -> tuple[float, float, float]:
    """What the best choice has the least of; no object at all is the worst."""
    row = result["all"]
    keys = (-row["matched"][0]["f1"], row["splits"] + row["merges"], abs(row["volume_error"]))
    return tuple(math.inf if math.isnan(key) else key for key in keys)  # type: ignore[return-value]


def measure(cases: Sequence[Case], options: Options) -> dict[str, Any]:
    """Scores of every choice, of the best one, and of the choices that cross-validation makes."""
    tried = choices(options)
    bar = track(tried, "trying", console=Console(stderr=True), disable=len(tried) < 2)
    tables = [[case.overlaps(choice) for case in cases] for choice in bar]

    def score(row: Sequence[Overlaps]) -> dict[str, Any]:
        return evaluate_instances(row, small=options.small)

    results = [score(row) for row in tables]
    best = min(range(len(tried)), key=lambda i: order(results[i]))
    report: dict[str, Any] = {
        "best": {"postprocess": asdict(tried[best].steps), "labelling": asdict(tried[best].labelling)},
        "scores": results[best],
        "each": {case.name: score([table]) for case, table in zip(cases, tables[best], strict=True)},
        "tried": [
            {"named": dict(c.named), **r["all"], **r["all"]["matched"][0]} for c, r in zip(tried, results, strict=True)
        ],
    }
    if len(cases) > 1 and len(tried) > 1:
        left_out, chosen = [], []
        for i in range(len(cases)):
            others = [score([table for j, table in enumerate(row) if j != i]) for row in tables]
            pick = min(range(len(tried)), key=lambda k: order(others[k]))
            left_out.append(tables[pick][i])
            chosen.append(dict(tried[pick].named))
        report["cross_validated"] = {"chosen": chosen, "scores": score(left_out)}
    return report


def show(report: Mapping[str, Any]) -> None:
    """Print the scores, and what was tried."""
    console = Console() if Console().is_terminal else Console(width=150)
    for row in sorted(report["tried"], key=lambda row: -row["f1"])[:20] if len(report["tried"]) > 1 else ():
        named = ", ".join(f"{key}={value}" for key, value in row["named"].items())
        wrong = f"splits {row['splits']}, merges {row['merges']}, volume {100 * row['volume_error']:+.2f} %"
        console.print(f"F1 {row['f1']:.3f}, {wrong}: {named}", highlight=False)
    console.print(instance_table(report["scores"], "the best" if len(report["tried"]) > 1 else "instances"))
    if "cross_validated" in report:
        console.print(instance_table(report["cross_validated"]["scores"], "cross-validated"))
        console.print(*report["cross_validated"]["chosen"], sep="\n")


def main(words: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    if {"--help", "-h"} & set(words):
        print(__doc__, *(f"{name + '=':14} {text}" for name, text in HELP.items()), sep="\n")
        return {}
    options = read_options(Options, words)
    lists = [words.split(",") if words else [] for words in (options.predictions, options.truths, options.slices)]
    try:
        if not lists[0] or any(len(column) != len(lists[0]) for column in lists[1:] if column or column is lists[1]):
            raise UserError("predictions, truths and slices differ in number", list(map(len, lists)), "give one each")
        rows = itertools.zip_longest(*lists)
        cases = [Case(*row, options.crop) for row in rows]
        report = measure(cases, options)
    except UserError as error:
        sys.exit(f"error: {error}")
    report |= {"commit": git_state(Path(__file__).resolve().parents[1])[0], "options": asdict(options)}
    show(report)
    if options.out:
        write_json(options.out, report)
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
