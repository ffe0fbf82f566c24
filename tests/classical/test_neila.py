import numpy as np
import pytest
from noisy_phantom import VOXEL_SIZE, noisy_phantom

from mitoseg.classical.neila import NeilaSegmenter
from mitoseg.classical.voxelwise import jaccard

pytest.importorskip("sklearn")
pytest.importorskip("maxflow")


@pytest.fixture(scope="module")
def tuned():
    """A trained and tuned method, and what it tried."""
    image, labels = noisy_phantom()
    method = NeilaSegmenter(voxel_size=VOXEL_SIZE, sigmas=(10.0, 20.0), samples=10_000, trees=30, leaves=15)
    return method, method.fit(image, labels["fit"]).tune(image, labels["validation"])


@pytest.fixture(scope="module")
def prob(tuned):
    """Its probability of the phantom."""
    return tuned[0].predict_proba(noisy_phantom()[0])


def test_regularised_it_beats_its_voxels_alone(tuned, prob):
    truth = noisy_phantom()[1]["test"]
    alone = jaccard([(tuned[0].segment(prob, regularize=False) == 1, truth)])
    together = jaccard([(tuned[0].segment(prob) == 1, truth)])
    assert together > alone + 0.05


def test_tuning_takes_the_best_of_what_it_tried(tuned, prob):
    method, trials = tuned
    best = max(trials, key=lambda t: t.jaccard)
    assert (method.smoothness, method.cut_threshold) == (best.smoothness, best.threshold)
    assert trials[0].smoothness == 0
    assert method.threshold == trials[0].threshold
    truth = noisy_phantom()[1]["validation"]
    assert jaccard([(method.segment(prob) == 1, truth)]) == pytest.approx(best.jaccard, abs=0.02)


def test_a_smoother_mask_has_less_surface(tuned, prob):
    def surface(mask):
        return sum(np.abs(np.diff(mask.astype(int), axis=a)).sum() for a in range(3))

    alone = tuned[0].segment(prob, 0.3, regularize=False)
    cut = tuned[0].segment(prob, 0.3)
    tuned[0].surface = 20.0
    smoothed = tuned[0].segment(prob, 0.3)
    tuned[0].surface = None
    assert surface(smoothed) < surface(cut) < surface(alone) / 2
    assert smoothed.dtype == cut.dtype == alone.dtype == np.uint8


def test_what_was_tuned_is_saved(tuned, tmp_path):
    image = noisy_phantom()[0][:5]
    tuned[0].save(tmp_path / "neila.npz")
    loaded = NeilaSegmenter.load(tmp_path / "neila.npz")
    assert loaded.part == tuned[0].part
    np.testing.assert_array_equal(loaded.predict(image), tuned[0].predict(image))
