"""Is the map where the tissue is? Offsets between a prediction and the truth, by phase correlation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from skimage.registration import phase_cross_correlation

from mitoseg.evaluation.decision import decide
from mitoseg.geometry import Box, slabs
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
        For each ninth, such as ``"first y, last x"``, the shift (y, x) in pixels that all its slices together agree
        on: positive where the prediction lies below or right of the truth. NaN where one of the masks is empty.
    """
    decision = decide(prediction)
    offsets = {}
    for name, part in _ninths(truth.box):
        boxes = list(slabs(part, 1))[::every]
        true_zyx = np.concatenate([truth.read(box) == 1 for box in boxes]).astype(np.float32)
        mine_zyx = np.concatenate([decision.foreground(prediction.read(box)) for box in boxes]).astype(np.float32)
        offsets[name] = (float("nan"), float("nan"))
        if true_zyx.any() and mine_zyx.any():
            (_, y, x), _, _ = phase_cross_correlation(  # type: ignore[no-untyped-call]
                mine_zyx - mine_zyx.mean(), true_zyx - true_zyx.mean(), upsample_factor=upsample, normalization=None
            )
            offsets[name] = (float(y), float(x))
    return offsets


def _ninths(box: Box) -> Iterator[tuple[str, Box]]:
    """Thirds of y times thirds of x, by name."""
    (z0, *_), (z1, size_y, size_x) = box.start, box.stop
    for i, name_y in enumerate(PLACES):
        for j, name_x in enumerate(PLACES):
            start = (z0, size_y * i // 3, size_x * j // 3)
            yield f"{name_y} y, {name_x} x", Box(start, (z1, size_y * (i + 1) // 3, size_x * (j + 1) // 3))
