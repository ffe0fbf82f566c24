"""What is counted in one block of two volumes: a pure function, for any process that sees the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mitoseg.engines import one_at_a_time
from mitoseg.evaluation.boundary import halo, near_counts
from mitoseg.evaluation.decision import Decision
from mitoseg.evaluation.tally import DIMS
from mitoseg.geometry import Box
from mitoseg.metrics import BINS, Counts, count, logit_histogram
from mitoseg.metrics.histogram import Ints
from mitoseg.volumes.base import Array, Volume


@dataclass(frozen=True)
class BlockCounts:
    """What one block gives; blocks are added in any order.

    Attributes:
        by_slice: Counts of each slice of the block.
        near: For each of `DIMS`, what each band leaves out.
        histogram: Log-odds by class; zeros if the prediction holds none.
    """

    by_slice: list[Counts]
    near: dict[int, list[Counts]]
    histogram: Ints


@dataclass(frozen=True)
class CountBlock:
    """Counts one block.

    Attributes:
        prediction: What is scored.
        truth: Mapped labels: 0 background, 1 foreground, 255 ignored.
        decision: What the prediction's values mean.
        bands: Widths of the boundary bands, ascending.
        voxel_size: (z, y, x), any unit.
    """

    prediction: Volume
    truth: Volume
    decision: Decision
    bands: Sequence[float]
    voxel_size: Sequence[float]

    def __call__(self, block: Box) -> BlockCounts:
        """The counts of a block; the truth around it tells what is near a border."""
        outer = block.grow(halo(self.bands, self.voxel_size)).clip(self.truth.box)
        truth_zyx, values_zyx = self.truth.read(outer), self.prediction.read(block)
        inner = block.inside(outer)
        histogram = np.zeros((2, BINS), np.int64)
        with one_at_a_time():
            foreground_zyx, by_slice = _count_slices(values_zyx, truth_zyx[inner.slices], self.decision, histogram)
            near = {
                dims: near_counts(
                    foreground_zyx, truth_zyx, inner, bands=self.bands, voxel_size=self.voxel_size, dims=dims
                )
                for dims in (DIMS if self.bands else ())
            }
        return BlockCounts(by_slice, near, histogram)


def _count_slices(
    values_zyx: Array, truth_zyx: npt.NDArray[np.uint8], decision: Decision, histogram: Ints
) -> tuple[npt.NDArray[np.bool_], list[Counts]]:
    """Foreground, and the counts of each slice; log-odds of probabilities are added to the histogram."""
    foreground_zyx = decision.foreground(values_zyx)
    if decision.kind == "probability":
        for values_yx, truth_yx in zip(values_zyx, truth_zyx, strict=True):  # a slice at a time: it costs memory
            histogram += logit_histogram(decision.log_odds(values_yx), truth_yx)
    return foreground_zyx, [count(*pair) for pair in zip(foreground_zyx, truth_zyx, strict=True)]
