import numpy as np
import pytest

from mitoseg.classical.voxelwise import best_threshold, jaccard
from mitoseg.errors import UserError


def pairs(seed=0):
    rng = np.random.default_rng(seed)
    for share in (0.1, 0.3):
        label = (rng.random((3, 10, 10)) < share).astype(np.uint8)
        prob = np.clip(0.3 * label + rng.random(label.shape) * 0.6, 0, 1).astype(np.float32)
        label[0, :4] = 255
        yield prob, label


def test_no_threshold_is_better():
    best = best_threshold(pairs())
    scores = [jaccard([(p >= t, lab) for p, lab in pairs()]) for t in np.linspace(0.0005, 1, 2000)]
    assert best.jaccard == pytest.approx(max(scores))
    assert jaccard([(p >= best.threshold, lab) for p, lab in pairs()]) == pytest.approx(best.jaccard, abs=2e-3)


def test_jaccard_by_hand():
    mask, label = np.array([[[1, 1, 0, 1]]], bool), np.array([[[1, 0, 1, 255]]], np.uint8)
    assert jaccard([(mask, label)]) == 1 / 3
    assert jaccard([(mask[..., 3:], label[..., 3:])]) == 0


def test_no_mitochondria_is_an_error():
    with pytest.raises(UserError, match="no mitochondria"):
        best_threshold([(np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.uint8))])
