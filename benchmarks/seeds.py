"""Mean and standard deviation of scores over runs that differ in their seed, as a row of a Markdown table.

python benchmarks/seeds.py NAME RUN [RUN ...]

Reads metrics.json of each run (key ``test``), and of its folder ``without_seam`` where there is one, written by
``evaluate.py ... crop=[:,64:,:] hydra.run.dir=RUN/without_seam``.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

SCORES = ("jaccard_foreground", "jaccard_background", "jaccard_mean")


def row(name: str, runs: Sequence[Path]) -> str:
    """One row: fg, bg and mean JAC of the test volume, then the same without the seam."""
    cells = []
    for part in ("test", "without_seam"):
        found = [scores for run in runs if (scores := read(run, part))]
        for key in SCORES:
            values = [100 * scores[key] for scores in found]
            cells.append(
                f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "".join(f"{v:.1f}" for v in values)
            )
    return f"| {name} | " + " | ".join(cells) + " |"


def read(run: Path, part: str) -> dict[str, float]:
    """The scores of one part of a run; empty where it was not scored."""
    path = run / "metrics.json" if part == "test" else run / part / "metrics.json"
    scores = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found: dict[str, float] = scores.get("test", {}) if part == "test" else scores
    return found


if __name__ == "__main__":
    print(row(sys.argv[1], [Path(word) for word in sys.argv[2:]]))
