"""What to paint next: where models that were trained on different parts of the paint disagree, far from the paint.

Voxels that all models agree on teach nothing new. What they disagree on is the part of their error that more paint
takes away: of two models that learnt n regions, one a different draw of tissue than the other, each is wrong by about
half of what they disagree on, and with one region more by n / (n + 1) of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mitoseg.datasets.painted import Painted, mitochondrion_width
from mitoseg.evaluation.figures import new_figure, save_figure, stretch
from mitoseg.geometry import Box
from mitoseg.volumes import Volume

FIELD = 256
"""Side (y, x) in pixels of a field to paint, and of those that stand for a slice."""
CANDIDATES, PLACES = 8, 2
"""Slices of each image that are looked at, and fields in each."""
ENOUGH = 0.01
"""JAC that another region should bring."""
PICTURED = 1024
"""Largest side in pixels of what a picture shows."""

Predict = Callable[[Volume, Box], Sequence[npt.NDArray[np.float32]]]
"""The probabilities (z, y, x) of a box by each of the models."""


@dataclass(frozen=True)
class Suggestion:
    """A box of an image to paint; ``disagreement`` and ``share`` of mitochondria are means of what was looked at."""

    image: Volume
    box: Box
    disagreement: float
    share: float


@dataclass(frozen=True)
class Advice:
    """What to paint next, and what JAC another region may be expected to bring."""

    suggestions: list[Suggestion]
    expected: float

    def __str__(self) -> str:
        """Lines for people."""
        if not self.suggestions:
            return "nothing is left to paint"
        first = self.suggestions[0]
        kind = "slice" if first.box.shape[1:] == first.image.shape[1:] else "field"
        text = f"another {kind} may be expected to bring {100 * self.expected:.1f} points of JAC"
        stop = "; less than 1 point: you may stop" if self.expected < ENOUGH else "; the next ones to paint:"
        return "\n".join([text + stop, *(f"  {s.image.path} {s.box}" for s in self.suggestions)])


def advise(regions: Sequence[Painted], predict: Predict, count: int = 3, seed: int = 1) -> Advice:
    """Suggest slices, or fields where those are what is painted, by the models that ``predict`` asks."""
    rng = np.random.default_rng(seed)
    images = {region.image.path: region.image for region in regions}
    whole = np.median([region.label_zyx.size / np.prod(region.image.shape[1:]) for region in regions]) >= 0.5
    found: list[Suggestion] = []
    agreed = np.zeros(2)
    for image in images.values():
        mine = [region.box for region in regions if region.image.path == image.path]
        for field, box in _candidates(image, mine, whole, rng):
            probability = np.stack(predict(image, field))
            found.append(Suggestion(image, box, float(probability.std(0).mean()), float(probability.mean())))
            for one, other in combinations(probability >= 0.5, 2):
                agreed += (one & other).sum(), (one | other).sum()
    if whole:  # the fields of a slice as one
        places = [
            [s for s in found if (s.image, s.box) == key] for key in dict.fromkeys((s.image, s.box) for s in found)
        ]
        found = [
            replace(
                same[0],
                disagreement=float(np.mean([s.disagreement for s in same])),
                share=float(np.mean([s.share for s in same])),
            )
            for same in places
        ]
    disagreement = float(1 - agreed[0] / agreed[1]) if agreed[1] else 0.0
    painted = [(region.image, region.box) for region in regions]
    n = len({(image.path, box.start[0]) for image, box in painted}) if whole else len(painted)
    return Advice(_spread(found, painted, mitochondrion_width(regions), count), disagreement / 2 / (n + 1))


def _candidates(image: Volume, painted: Sequence[Box], whole: bool, rng: np.random.Generator) -> list[tuple[Box, Box]]:
    """Fields that are looked at, and what is to be painted with each: the field, or its slice."""
    Z, Y, X = image.shape
    taken = {box.start[0] for box in painted}
    free = [z for z in range(Z) if not (whole and z in taken)]
    if not free:
        return []
    chosen = {free[i] for i in np.linspace(0, len(free) - 1, min(CANDIDATES, len(free))).round().astype(int)}
    sides = (min(FIELD, Y), min(FIELD, X))
    found = []
    for z in sorted(chosen):
        for _ in range(PLACES if whole else 2 * PLACES):
            y, x = (int(rng.integers(n - side + 1)) for n, side in zip((Y, X), sides, strict=True))
            field = Box((z, y, x), (z + 1, y + sides[0], x + sides[1]))
            if whole:
                found.append((field, Box((z, 0, 0), (z + 1, Y, X))))
            elif not any(box.clip(field).size for box in painted):
                found.append((field, field))
    return found


def _spread(
    found: Sequence[Suggestion], painted: Sequence[tuple[Volume, Box]], width: float, count: int
) -> list[Suggestion]:
    """The best of the candidates one after the other, each far from what is painted and from those before.

    What lies within ``width`` nm of paint shows the same mitochondria, and counts half or less.
    """
    taken, left = [(image.path, box) for image, box in painted], list(found)
    chosen: list[Suggestion] = []
    while left and len(chosen) < count:

        def worth(s: Suggestion) -> float:
            size = s.image.voxel_size or (5.0, 5.0, 5.0)
            near = min((_distance(s.box, box, size) for path, box in taken if path == s.image.path), default=np.inf)
            return s.disagreement * (1.0 if near == np.inf else near / (near + width))

        best = max(left, key=worth)
        left.remove(best)
        chosen.append(best)
        taken.append((best.image.path, best.box))
    return chosen


def _distance(a: Box, b: Box, size: Sequence[float]) -> float:
    """Nanometres between the nearest voxels of two boxes; 0 where they meet."""
    axes = zip(a.start, a.stop, b.start, b.stop, size, strict=True)
    return float(np.hypot.reduce([max(0, low - stop + 1, start - high + 1) * s for start, stop, low, high, s in axes]))


def draw(advice: Advice, predict: Predict, folder: Path) -> None:
    """Write a picture of each suggestion: the image, and where the models disagree."""
    for number, suggestion in enumerate(advice.suggestions, 1):
        start = suggestion.box.start
        stop = tuple(min(b, a + PICTURED) for a, b in zip(start, suggestion.box.stop, strict=True))
        box = Box(start, stop)
        grey_yx = stretch(suggestion.image.read(box)[0])
        spread_yx = np.stack(predict(suggestion.image, box)).std(0)[0]
        figure = new_figure(10, 5.4, 120, "constrained")
        left, right = figure.subplots(1, 2)
        left.set_title(f"image, {box}", fontsize=9)
        right.set_title("where the models disagree", fontsize=9)
        for axes in (left, right):
            axes.imshow(grey_yx, cmap="gray")
            axes.set_axis_off()
        right.imshow(spread_yx, cmap="inferno", alpha=np.clip(3 * spread_yx, 0, 0.7), vmin=0, vmax=0.5)
        save_figure(figure, folder / f"{number}.png")
