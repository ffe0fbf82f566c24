"""Is the map where the tissue is? Offsets between a prediction and the truth, by phase correlation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from skimage.registration import phase_cross_correlation

from mitoseg.evaluation.decision import decide
from mitoseg.geometry import Box
from mitoseg.volumes.base import Volume

PLACES = ("first", "middle", "last")
"""Thirds of an axis, in order."""


def placement_offsets(
    prediction: Volume, truth: Volume, *, every: int = 1, upsample: int = 20
) -> dict[str, tuple[float, float]]:
    """How far the predicted mask lies from the true one in each ninth of the slices.

    Both masks are mean-free and the correlation is not whitened (Guizar-Sicairos et al., 2008, Optics Letters
    33(2)): the edges of two masks that differ in shape have no common phase at high frequencies.

    Args:
        prediction: Probabilities or a mask; see `mitoseg.evaluation.decide`.
        truth: Mapped labels of the same shape.
        every: Use every n-th slice.
        upsample: Parts of a pixel that are told apart.

    Returns:
        For each ninth, such as ``"first y, last x"``, the median over slices of the shift (y, x) in pixels: positive
        where the prediction lies below or right of the truth. NaN where no slice has both masks.
    """
    decision = decide(prediction)
    offsets = {}
    for name, part in _ninths(truth.box):
        found = []
        for z in range(part.start[0], part.stop[0], every):
            box = Box((z, *part.start[1:]), (z + 1, *part.stop[1:]))
            true_yx = (truth.read(box)[0] == 1).astype(np.float32)
            mine_yx = decision.foreground(prediction.read(box))[0].astype(np.float32)
            if min(true_yx.sum(), mine_yx.sum()) > 0:
                shift, _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
                    mine_yx - mine_yx.mean(), true_yx - true_yx.mean(), upsample_factor=upsample, normalization=None
                )
                found.append(shift)
        y, x = np.median(found, axis=0) if found else (np.nan, np.nan)
        offsets[name] = (float(y), float(x))
    return offsets


def _ninths(box: Box) -> Iterator[tuple[str, Box]]:
    """Thirds of y times thirds of x, by name."""
    (z0, *_), (z1, size_y, size_x) = box.start, box.stop
    for i, name_y in enumerate(PLACES):
        for j, name_x in enumerate(PLACES):
            start = (z0, size_y * i // 3, size_x * j // 3)
            yield f"{name_y} y, {name_x} x", Box(start, (z1, size_y * (i + 1) // 3, size_x * (j + 1) // 3))
