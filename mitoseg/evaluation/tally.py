"""What is counted while two volumes are scored, and the report made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from mitoseg.errors import UserError
from mitoseg.evaluation.probabilities import probability_scores
from mitoseg.metrics import Counts, bootstrap_intervals, scores
from mitoseg.metrics.histogram import Ints
from mitoseg.metrics.intervals import LEVEL

DIMS = (3, 2)
"""The boundary band in 3D, and its in-plane variant."""


class Evaluation(dict[str, object]):
    """What scoring gives: plain data, as ``metrics.json`` holds it.

    Attributes:
        histogram: `mitoseg.metrics.logit_histogram` of a prediction that holds probabilities; it is too long for the
            file, and needed to pool volumes.
    """

    histogram: Ints | None = None


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        resamples: Number of draws; 0 for no intervals.
        seed: Of the draws.

    Raises:
        UserError: One of them is negative or no whole number.
    """

    resamples: int = 2000
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UserError(f"bootstrap: {name} is not a whole number", value, "give 0 or more")

    @classmethod
    def from_report(cls, result: Mapping[str, object]) -> Bootstrap:
        """How the intervals of a report were made."""
        made: Mapping[str, int] = result["bootstrap"]  # type: ignore[assignment]
        return cls(made["resamples"], made["seed"])


@dataclass(frozen=True)
class Tally:
    """Counts of each z-slab, of what each boundary band leaves out, and of probabilities.

    Attributes:
        bands: Widths, ascending.
        slabs: Counts of each z-slab, whose sum is everything that was scored.
        near: For each of `DIMS`, what each band leaves out.
        histogram: Log-odds by class; None if the prediction holds none.
    """

    bands: Sequence[float]
    slabs: list[Counts]
    near: dict[int, list[Counts]] = field(default_factory=dict)
    histogram: Ints | None = None

    def __post_init__(self) -> None:
        for dims in DIMS:
            self.near.setdefault(dims, [Counts()] * len(self.bands))

    def __add__(self, other: Tally) -> Tally:
        """Both volumes: their slabs side by side, all else summed."""
        if list(self.bands) != list(other.bands):
            raise ValueError(f"cannot pool bands {list(self.bands)} with {list(other.bands)}")
        near = {dims: [a + b for a, b in zip(self.near[dims], other.near[dims], strict=True)] for dims in DIMS}
        missing = self.histogram is None or other.histogram is None
        histogram = None if missing else self.histogram + other.histogram  # type: ignore[operator]
        return Tally(self.bands, self.slabs + other.slabs, near, histogram)

    @property
    def total(self) -> Counts:
        """Counts of everything."""
        return sum(self.slabs, Counts())

    @classmethod
    def from_report(cls, result: Mapping[str, object]) -> Tally:
        """The tally that a report was made of; without the histogram if the report comes from a file."""
        slabs = [Counts(**counts) for counts in result["slab_counts"]]  # type: ignore[attr-defined]
        rows: list[Mapping[str, object]] = result["boundary"]  # type: ignore[assignment]
        total = sum(slabs, Counts())
        near = {
            dims: [total - Counts(**row["counts"]) for row in rows if row["dims"] == dims]  # type: ignore[arg-type]
            for dims in DIMS
        }
        bands: list[float] = [row["distance"] for row in rows if row["dims"] == DIMS[0]]  # type: ignore[misc]
        return cls(bands, slabs, near, getattr(result, "histogram", None))

    def report(self, bootstrap: Bootstrap, about: Mapping[str, object]) -> Evaluation:
        """Scores of everything with their intervals, of what each band leaves, and of the probabilities.

        Args:
            bootstrap: How intervals are made.
            about: Further entries.
        """
        draws = asdict(bootstrap)
        intervals = bootstrap_intervals(self.slabs, **draws) if bootstrap.resamples else {}
        boundary = [
            self._row(distance, dims, self.near[dims][i]) for i, distance in enumerate(self.bands) for dims in DIMS
        ]
        report = Evaluation(
            scores(self.total),
            interval={name: list(ends) for name, ends in intervals.items()},
            **about,
            **probability_scores(self.histogram) if self.histogram is not None else {},
            bootstrap={**draws, "level": LEVEL},
            counts=asdict(self.total),
            slab_counts=[asdict(counts) for counts in self.slabs],
            boundary=boundary,
        )
        report.histogram = self.histogram
        return report

    def _row(self, distance: float, dims: int, near: Counts) -> dict[str, object]:
        def share(part: int, whole: int) -> float:
            return part / whole if whole else math.nan

        total = self.total
        left_out = {
            "left_out_foreground": share(near.foreground, total.foreground),
            "left_out_background": share(near.background, total.background),
        }
        kept = total - near
        return {"distance": distance, "dims": dims, **scores(kept), **left_out, "counts": asdict(kept)}
