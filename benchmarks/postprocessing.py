"""What each step of post-processing gains, on stored probabilities.

python benchmarks/postprocessing.py predictions=A.tif,B.tif truths=C.tif,D.tif [key=value ...]

alone        this step, and otherwise no more than a threshold
cumulative   all steps up to this one, in the order in which they are taken
without      all steps but this one

Counts are pooled over the voxels of all predictions; scores are JAC of the foreground, the background and their mean.
A prediction may hold more slices than are scored (``score=``): those beyond are context, so that a median along z or
a component does not end where the scored slab does. ``grid.STEP=[a,b]`` tries every combination of the values that
are given, in place of the config's, and goes on with the one of the best foreground JAC. Choose on validation.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from options import read_options
from postprocessing_cases import Case, open_cases
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.metrics import Counts, scores
from mitoseg.provenance import git_state
from mitoseg.segmentation import Postprocess
from mitoseg.storage import write_json

RANGE = "smoothness_sigma"
"""The field of Postprocess that is no step."""
STEPS = tuple(f.name for f in fields(Postprocess) if f.name != RANGE)
"""In the order in which they are taken."""
EARLY = ("smooth", "smoothness", "threshold")
"""Steps up to the threshold, which all have one mask."""
SHOWN = ("jaccard_foreground", "jaccard_background", "jaccard_mean")
Cases = Sequence[Case]
Scores = Mapping[str, float]
HELP = {
    "predictions": "probabilities",
    "truths": "labels, one volume for each prediction",
    "images": "EM images, whose edges the watershed follows; none: those of the probability",
    "score": "slices that are scored, start:stop for each prediction, such as 0:14,8:22; none: all",
    "postprocess": "a config of conf/postprocess",
    "threshold": "of all predictions; none: the one in each one's metadata",
    "grid": "values to try, such as grid.z_median=[null,5,9] grid.min_volume=[null,2e6]",
    "out": "JSON file for all numbers",
}


@dataclass
class Options:
    """The words of the command line, see `HELP`; those of a list are separated by commas."""

    predictions: str = "???"
    truths: str = "???"
    images: str | None = None
    score: str | None = None
    postprocess: str = "clean"
    threshold: float | None = None
    grid: dict[str, Any] = field(default_factory=dict)
    out: str | None = None


def read_config(name: str) -> Postprocess:
    """A file of conf/postprocess.

    Raises:
        UserError: There is no such file.
    """
    folder = default_config_dir() / "postprocess"
    if not (folder / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise UserError("no such post-processing", name, f"choose one of {known}")
    values = OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml"))
    assert isinstance(values, dict)
    return Postprocess(**{str(key): value for key, value in values.items() if key != "_target_"})


def combinations(start: Postprocess, grid: Mapping[str, object]) -> Iterator[Postprocess]:
    """Every combination of the values, in place of those of ``start``.

    Raises:
        UserError: A key is unknown, or a value is out of range.
    """
    for key, values in grid.items():
        if key not in {*STEPS, RANGE} or not isinstance(values, list) or not values:
            raise UserError("not a list of values of a step", f"grid.{key}={values}", "write grid.z_median=[null,5,9]")
    for values in itertools.product(*grid.values()):  # type: ignore[call-overload]
        yield replace(start, **dict(zip(grid, values, strict=True)))


def total(cases: Cases, steps: Postprocess) -> Counts:
    """Pooled counts after all steps."""
    return sum((list(case.stages(steps).values())[-1] for case in cases), Counts())


def search(cases: Cases, start: Postprocess, grid: Mapping[str, object]) -> tuple[Postprocess, list[dict[str, Any]]]:
    """The combination of the best foreground JAC, and the scores of all, the best first."""
    tried = list(combinations(start, grid))
    bar = track(tried, "trying", console=Console(stderr=True), disable=len(tried) < 2)
    found = [(scores(total(cases, steps)), steps) for steps in bar]
    found.sort(key=lambda pair: -pair[0]["jaccard_foreground"])
    table = [{key: getattr(steps, key) for key in grid} | result for result, steps in found]
    return found[0][1], table if grid else []


def gains(cases: Cases, steps: Postprocess) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of the stored threshold (``none``), and of each step that is on: alone, cumulative and without."""
    plain = Postprocess(smoothness_sigma=steps.smoothness_sigma)
    pooled: dict[str, Counts] = {}
    for case in cases:
        for name, counts in case.stages(steps).items():
            pooled[name] = pooled.get(name, Counts()) + counts
    before, table = plain, {"none": {"alone": scores(total(cases, plain))}}
    for name in STEPS:
        if getattr(steps, name) in (None, False):
            continue
        value, off = ({name: getattr(source, name)} for source in (steps, plain))
        before = replace(before, **value)
        table[name] = {
            "alone": scores(total(cases, replace(plain, **value))),
            "cumulative": scores(total(cases, before) if name in EARLY else pooled[name]),
            "without": scores(total(cases, replace(steps, **off))),
        }
    return table


def show(report: Mapping[str, Any]) -> None:
    """Print the best combinations, and the gains."""
    console = Console() if Console().is_terminal else Console(width=140)
    for result in report["tried"][:10]:
        tried = ", ".join(f"{key}={value}" for key, value in result.items() if key in report["options"]["grid"])
        console.print(f"fg {100 * result[SHOWN[0]]:.2f}, mean {100 * result[SHOWN[2]]:.2f}: {tried}")
    title = "JAC in percent; gain in fg JAC over none, over the step before, and over all steps"
    table = Table("step", "alone: fg", "bg", "mean", "cumulative: fg", "bg", "mean", "without: fg", title=title)
    table.columns[0].no_wrap = True
    first = before = report["gains"]["none"]["alone"]
    final = list(report["gains"].values())[-1].get("cumulative", first)
    for name, row in report["gains"].items():
        value = f"={report['steps'][name]}" if name in report["steps"] else ""
        cells = [*_cells(row["alone"], first), *_cells(row.get("cumulative"), before)]
        table.add_row(f"{name}{value}", *cells, _cells(row.get("without"), final)[0])
        before = row.get("cumulative", row["alone"])
    console.print(table)


def _cells(found: Scores | None, base: Scores) -> list[str]:
    if found is None:
        return [""] * len(SHOWN)
    texts = [f"{100 * found[key]:.2f}" for key in SHOWN]
    return [f"{texts[0]} ({100 * (found[SHOWN[0]] - base[SHOWN[0]]):+.2f})", *texts[1:]]


def _split(words: str | None) -> list[str]:
    return words.split(",") if words else []


def main(words: Sequence[str]) -> dict[str, Any]:
    """Measure, print, and return what was measured."""
    if {"--help", "-h"} & set(words):
        print(__doc__, *(f"{name + '=':14} {text}" for name, text in HELP.items()), sep="\n")
        return {}
    options = read_options(Options, words)
    columns = (options.predictions, options.truths, options.images, options.score)
    try:
        cases = open_cases(*map(_split, columns), threshold=options.threshold)
        steps, tried = search(cases, read_config(options.postprocess), options.grid)
        report = {
            "commit": git_state(Path(__file__).resolve().parents[1])[0],
            "options": asdict(options),
            "steps": asdict(steps),
            "thresholds": {case.name: case.threshold for case in cases},
            "tried": tried,
            "gains": gains(cases, steps),
            "each": {case.name: scores(total([case], steps)) for case in cases},
        }
    except UserError as error:
        sys.exit(f"error: {error}")
    show(report)
    if options.out:
        write_json(options.out, report)
    return report


if __name__ == "__main__":
    main(sys.argv[1:])
