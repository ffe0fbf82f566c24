"""Scores of blocks instead of voxels: a way to read the abstract's JAC, far kinder than the voxels of a volume.

python benchmarks/block_scores.py prediction=RUN/predictions/test_0.tif truth=LABELS [prior=SHARE]
    [choose=RUN/predictions/validation_0.tif choose_truth=LABELS] [block=32] [low=0.2] [high=0.8]

Blocks lie on the grid and are labelled by purity, so that those at borders are dropped; what the network says of a
block is the probability at the pixel that the block's window answers. ``all``: both classes as they occur;
``balanced``: background blocks weigh as much in all as mitochondria blocks do. The threshold is that of the file; with
``prior``, the share of mitochondria among the training blocks, that of a network before its scores are corrected for
the share; with ``choose`` the one of best balanced JAC on the blocks of a validation volume.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from omegaconf import MISSING
from options import read_options

from mitoseg.datasets.base import IGNORE
from mitoseg.evaluation import decide
from mitoseg.sampling.positions import BlockRule
from mitoseg.volumes import map_labels, open_volume


@dataclass
class Options:
    """The words of the command line."""

    prediction: str = MISSING
    truth: str = MISSING
    prior: float | None = None
    choose: str | None = None
    choose_truth: str | None = None
    block: int = 32
    low: float = 0.2
    high: float = 0.8


@dataclass(frozen=True)
class Blocks:
    """Some blocks: their class and the probability that each is a mitochondrion."""

    truth: npt.NDArray[np.bool_]
    probability: npt.NDArray[np.float64]

    @classmethod
    def read(cls, prediction: str, truth: str, rule: BlockRule) -> Blocks:
        """The blocks of a volume that the rule does not drop.

        Raises:
            SystemExit: The shapes differ, or a class has no block.
        """
        answers, labels = open_volume(prediction), map_labels(open_volume(truth))
        if answers.shape != labels.shape:
            sys.exit(f"error: {prediction} is {answers.shape}, {truth} {labels.shape}; give volumes of one shape")
        classes = rule.classes(labels.read())
        _, ny, nx = classes.shape
        scale = decide(answers, threshold=0.5, kind="probability").scale
        at = answers.read()[:, rule.first :: rule.step, rule.first :: rule.step][:, :ny, :nx] / scale
        kept = classes != IGNORE
        blocks = cls(classes[kept] == 1, at[kept].astype(np.float64))
        if not 0 < blocks.truth.sum() < blocks.truth.size:
            sys.exit(f"error: the blocks of {truth} are all of one class; give another volume or rule")
        return blocks

    def jaccard(self, threshold: float, *, balanced: bool) -> tuple[float, float]:
        """JAC of mitochondria and of background."""
        found, weight = self.probability >= threshold, 1.0
        if balanced:
            weight = self.truth.sum() / (~self.truth).sum()
        tp, fn = (self.truth & found).sum(), (self.truth & ~found).sum()
        fp, tn = weight * (~self.truth & found).sum(), weight * (~self.truth & ~found).sum()
        return float(tp / (tp + fp + fn)), float(tn / (tn + fp + fn))

    def best_threshold(self) -> float:
        """The threshold of best balanced JAC of mitochondria, of a thousand quantiles of the probabilities."""
        tried = np.unique(np.quantile(self.probability, np.linspace(0, 1, 1001)))
        return float(max(tried, key=lambda t: self.jaccard(t, balanced=True)[0]))


def main(words: list[str] | None = None) -> None:
    """Print the scores at each threshold there is."""
    words = sys.argv[1:] if words is None else words
    if not words or "--help" in words:
        sys.exit(__doc__)
    options = read_options(Options, words)
    rule = BlockRule("purity", "grid", (options.low, options.high), options.block)
    blocks = Blocks.read(options.prediction, options.truth, rule)
    print(f"{blocks.truth.size:,} blocks, {blocks.truth.sum():,} of mitochondria")
    for name, threshold in thresholds(options, rule).items():
        for balanced in (False, True):
            fg, bg = blocks.jaccard(threshold, balanced=balanced)
            kind = "balanced" if balanced else "all"
            scores = f"fg {100 * fg:.1f}  bg {100 * bg:.1f}  mean {50 * (fg + bg):.1f}"
            print(f"{name:12} {threshold:.4f}  {kind:9} {scores}")


def thresholds(options: Options, rule: BlockRule) -> dict[str, float]:
    """The thresholds to score at, by what chose them."""
    stored = open_volume(options.prediction).info.metadata.get("threshold")
    found = {} if stored is None else {"file": float(stored)}
    if options.prior is not None:
        found["prior"] = options.prior
    if options.choose and options.choose_truth:
        found["validation"] = Blocks.read(options.choose, options.choose_truth, rule).best_threshold()
    return found or {"half": 0.5}


if __name__ == "__main__":
    main()
