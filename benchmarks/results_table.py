"""A table of results: mean and standard deviation over runs that differ in their seed, a Markdown row a method.

python benchmarks/results_table.py RUN [RUN ...] [name=METHOD] [parts=test,test_clean,without_seam] [boundary=false]

A RUN is a folder that train.py left, or a metrics.json of train.py or evaluate.py. Runs of one name (``name`` of their
config.yaml, or ``name=`` for all of them) make one row. A part is a key of metrics.json, or a folder within the run in
which evaluate.py has scored it again, as ``crop=[0:82,64:768,0:1024] hydra.run.dir=RUN/without_seam``; without
``parts=`` all that are found. JAC in percent, fg, bg and the mean of both. Below it stands the curve of the first part
without a band at the border of the truth.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

SCORES = ("jaccard_foreground", "jaccard_background", "jaccard_mean")
WITHOUT = ("hydra.", "data.root=", "seed=", "trainer.enable_progress_bar=", "resume=")
"""Words of a command that say nothing of the method."""
EMPTY = "-"


@dataclass
class Options:
    """What may follow the runs."""

    name: str | None = None
    parts: Sequence[str] = ()
    boundary: bool = True
    runs: list[Path] = field(default_factory=list)

    @classmethod
    def read(cls, words: Sequence[str]) -> Options:
        """The words of the command line; a run whose name holds an equals sign is no option."""
        options = cls()
        for word in words:
            key, _, value = word.partition("=")
            if key == "name":
                options.name = value
            elif key == "parts":
                options.parts = value.strip("[]").split(",")
            elif key == "boundary":
                options.boundary = value.lower() == "true"
            else:
                options.runs.append(Path(word))
        if not options.runs:
            sys.exit(__doc__)
        return options


@dataclass
class Run:
    """What a run has left: scores by part, and where they come from."""

    name: str
    parts: dict[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Run:
        """A run's folder or its metrics.json.

        Raises:
            SystemExit: There are no scores.
        """
        folder = path if path.is_dir() else path.parent
        metrics = read_json(path / "metrics.json" if path.is_dir() else path)
        if not metrics:
            sys.exit(f"error: no scores in {path}; name folders that hold metrics.json")
        parts = {"test": metrics} if SCORES[0] in metrics else dict(metrics)
        for inner in sorted(folder.glob("*/metrics.json")) if path.is_dir() else ():
            parts[inner.parent.name] = read_json(inner)
        config = folder / "config.yaml"
        name = yaml.safe_load(config.read_text(encoding="utf-8")).get("name") if config.is_file() else None
        return cls(name or folder.name, parts, read_json(folder / "provenance.json"))

    @property
    def command(self) -> str:
        """What was typed, without seed, paths and looks."""
        words = [word.replace('"', "") for word in self.provenance.get("arguments", ())]
        return " ".join(f"python {word}.py" if i == 0 else word for i, word in enumerate(words) if is_method(word))


def is_method(word: str) -> bool:
    """Whether a word of a command says something of the method; where files lie does not."""
    return not word.startswith(WITHOUT) and not Path(word.partition("=")[2]).is_absolute()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file; empty if there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def spread(values: Iterable[float | None], digits: int = 1, factor: float = 1.0) -> str:
    """Mean ± standard deviation of what is there.

    >>> spread([0.5, 0.6], factor=100), spread([2.0]), spread([None])
    ('55.0 ± 7.1', '2.0', '-')
    """
    there = [factor * value for value in values if value is not None]
    if len(there) > 1:
        return f"{mean(there):.{digits}f} ± {stdev(there):.{digits}f}"
    return f"{there[0]:.{digits}f}" if there else EMPTY


def one_of(values: Iterable[object]) -> str:
    """What all agree on, or each that occurs."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or EMPTY


def results(methods: Mapping[str, Sequence[Run]], parts: Sequence[str]) -> list[str]:
    """The table of scores and costs."""
    named = [f"{part}: {score}" for part in parts for score in ("fg", "bg", "mean")]
    lines = table_head(["method", "seeds", *named, "parameters", "minutes", "peak GB", "commit", "command"])
    for name, runs in methods.items():
        made = [run.provenance for run in runs]
        cells = [name, one_of(sorted({p["seed"] for p in made if "seed" in p}))]
        for part in parts:
            found = [run.parts[part] for run in runs if part in run.parts]
            cells += [spread((scores.get(key) for scores in found), factor=100) for key in SCORES]
        sizes = [p["parameters"] for p in made if "parameters" in p]
        peaks = [p.get("peak_memory") or {} for p in made]
        commits = [p["commit"][:7] + (" (changed)" if p.get("dirty") else "") for p in made if p.get("commit")]
        cells += [
            one_of(f"{size:,}" for size in sizes),
            spread((p.get("training_seconds") for p in made), factor=1 / 60),
            spread((peak.get("device") or peak.get("process") for peak in peaks), factor=1e-9),
            one_of(commits),
            one_of(f"`{run.command}`" for run in runs if run.command),
        ]
        lines.append(as_row(cells))
    return lines


def boundary(methods: Mapping[str, Sequence[Run]], part: str) -> list[str]:
    """The curves without a band at the border, of the widths that all runs of a method have."""
    columns = [f"{where}: {name}" for where in ("3D", "2D") for name in ("fg", "mean", "excluded from fg, bg (%)")]
    lines = table_head(["method", "d", *columns])
    for name, runs in methods.items():
        found = [run.parts[part] for run in runs if part in run.parts]
        curves = [{(row["distance"], row["dims"]): row for row in scores.get("boundary", ())} for scores in found]
        widths = sorted(set.intersection(*({d for d, _ in curve} for curve in curves))) if curves else []
        for d in [0, *widths] if widths else []:
            cells = [name, f"{d:g}"]
            for dims in (3, 2):
                rows = found if d == 0 else [curve[d, dims] for curve in curves]
                cells += [spread((row[key] for row in rows), factor=100) for key in (SCORES[0], SCORES[2])]
                shares = (row.get(f"left_out_{side}", 0) for row in rows[:1] for side in ("foreground", "background"))
                cells.append(", ".join(spread([share], factor=100) for share in shares))
            lines.append(as_row(cells))
    return lines


def table_head(names: Sequence[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [as_row(names), "|" + "---|" * len(names)]


def as_row(cells: Iterable[str]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(words: Sequence[str]) -> None:
    """Print the tables."""
    options = Options.read(words)
    methods: dict[str, list[Run]] = {}
    for run in map(Run.read, options.runs):
        methods.setdefault(options.name or run.name, []).append(run)
    known = [part for runs in methods.values() for run in runs for part in run.parts if part != "validation"]
    parts = list(options.parts or dict.fromkeys(known)) or ["validation"]
    print("\n".join(results(methods, parts)))
    if options.boundary:
        print("\n" + "\n".join(boundary(methods, parts[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
