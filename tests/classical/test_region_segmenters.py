"""Both supervoxel methods on a noisy phantom: better than without neighbours, streamed, tuned, saved, and told off."""

import numpy as np
import pytest
from noisy_phantom import VOXEL_SIZE, noisy_phantom

from mitoseg.classical.describing import RegionDescriber
from mitoseg.classical.structured import StructuredSegmenter
from mitoseg.classical.supervoxels import LEVELS, KernelMap, SupervoxelSegmenter, best_level
from mitoseg.classical.voxel_maps import voxel_classes
from mitoseg.errors import UserError
from mitoseg.volumes import ArrayVolume

pytest.importorskip("maxflow")

METHODS = [SupervoxelSegmenter, StructuredSegmenter]


@pytest.fixture(scope="module")
def described():
    """A fitted describer and the noisy phantom described by it."""
    image, labels = noisy_phantom()
    describer = RegionDescriber(VOXEL_SIZE, 50.0, compactness=0.2, samples=30_000, reach=200.0)
    return describer, describer.fit(image, labels["fit"]).describe(image)


@pytest.fixture(scope="module")
def fitted(described):
    """Both methods, which share the describer."""
    describer, description = described
    labels, made = noisy_phantom()[1], {}
    for method in METHODS:
        segmenter = method(VOXEL_SIZE, describer=describer, landmarks=100)
        made[method] = segmenter.fit_description(description, labels["fit"])
        segmenter.tune_description(description, labels["validation"])
    return made


def jaccard(mask, label):
    known = label != 255
    return (mask & (label == 1)).sum() / ((mask | (label == 1)) & known).sum()


def mask_of(method, description):
    return (method.region_probabilities(description) >= np.float32(method.threshold))[description.region_zyx]


@pytest.mark.parametrize("method", METHODS)
def test_neighbours_make_it_better(fitted, described, method):
    segmenter, (_, description), label = fitted[method], described, noisy_phantom()[1]["test"]
    both = jaccard(mask_of(segmenter, description), label)
    segmenter.regularize = False
    alone = jaccard(mask_of(segmenter, description), label)
    segmenter.regularize = True
    assert both > alone + 0.01
    assert both > 0.75


@pytest.mark.parametrize("method", METHODS)
def test_volumes_and_files_give_the_same(fitted, method, tmp_path):
    segmenter, image = fitted[method], noisy_phantom()[0][:, :64, :64]
    probability = segmenter.predict_proba(image)
    segmenter.save(tmp_path / "a.npz")
    with pytest.raises(UserError, match="exists"):
        segmenter.save(tmp_path / "a.npz")
    again = method.load(tmp_path / "a.npz")
    found = again.predict_proba(ArrayVolume(image))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, probability)
    np.testing.assert_array_equal(again.predict(image), found >= np.float32(segmenter.threshold))
    assert again.threshold == segmenter.threshold
    other = METHODS[method is SupervoxelSegmenter]
    with pytest.raises(UserError, match=f"not {other.__name__}"):
        other.load(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


def test_the_structured_objective_falls(fitted):
    objective = np.array(fitted[StructuredSegmenter].objective_)
    assert (np.diff(objective) <= 0).all()
    assert objective[-1] < 0.95 * objective[3]  # the first four only scale the start


def test_tuning_looks_at_what_is_labelled(fitted, described):
    segmenter, (_, description), label = fitted[SupervoxelSegmenter], described, noisy_phantom()[1]["test"]
    before = jaccard(mask_of(segmenter, description), label)
    kept = (segmenter.threshold_, segmenter.unary_threshold_, segmenter.pairwise_weight_)
    segmenter.tune_description(description, label)
    assert jaccard(mask_of(segmenter, description), label) >= before
    segmenter.threshold_, segmenter.unary_threshold_, segmenter.pairwise_weight_ = kept


def test_the_best_level_is_a_loop_s():
    rng = np.random.default_rng(0)
    log_odds, known = rng.normal(size=50), rng.integers(5, 9, 50)
    fg = np.where(log_odds + rng.normal(size=50) > 0.5, known - 1, 1)
    scores = []
    for level in LEVELS:
        tp = sum(f for f, s in zip(fg, log_odds, strict=True) if s >= level)
        union = sum(k if s >= level else f for f, k, s in zip(fg, known, log_odds, strict=True))
        scores.append(tp / union)
    assert best_level(log_odds, fg, known) == (LEVELS[np.argmax(scores)], pytest.approx(max(scores)))


def test_blocks_have_numbers_of_their_own(described, monkeypatch):
    (describer, whole), image = described, noisy_phantom()[0]
    monkeypatch.setattr("mitoseg.classical.describing.even_blocks", lambda shape: halves(shape))
    cut = describer.describe(image)
    left, right = cut.region_zyx[:, :, :64], cut.region_zyx[:, :, 64:]
    assert left.max() + 1 == right.min()
    assert right.max() + 1 == len(cut.size) == len(np.unique(cut.region_zyx))
    seam = (cut.graph.pairs[:, 0] <= left.max()) & (cut.graph.pairs[:, 1] > left.max())
    assert seam.any()
    assert whole.features.shape[1] == cut.features.shape[1]
    assert np.isfinite(cut.features).all()


def halves(shape):
    from mitoseg.geometry import Box

    z, y, x = shape
    return [Box((0, 0, 0), (z, y, x // 2)), Box((0, 0, x // 2), (z, y, x))]


def test_the_kernel_map_is_sklearn_s():
    from sklearn.kernel_approximation import Nystroem

    rng = np.random.default_rng(0)
    features, label = rng.normal(size=(80, 5)).astype(np.float32), rng.random(80) < 0.3
    kernel = KernelMap.learn(features, label, 20, 0.5, rng)
    unit = (features - kernel.mean) / kernel.scale
    oracle = Nystroem(gamma=0.1, n_components=20, random_state=0).fit(kernel.landmarks)
    mine, theirs = kernel(features), oracle.transform(unit)
    np.testing.assert_allclose(mine @ mine.T, theirs @ theirs.T, atol=2e-3)


def test_a_boundary_lies_on_both_sides_of_a_change():
    label = np.zeros((1, 1, 12), np.uint8)
    label[..., 6:] = 1
    label[..., 0] = 255
    found = voxel_classes(label, 10.0, (30.0, 5.0, 5.0))
    assert found.ravel().tolist() == [255, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("method", METHODS)
def test_mistakes_are_one_line(method, tmp_path):
    image = np.zeros((4, 40, 40), np.uint8)
    with pytest.raises(UserError, match="differ in shape"):
        method().fit(image, image[1:])
    with pytest.raises(UserError, match="no mitochondrion"):
        method().fit(image, image)
    with pytest.raises(UserError, match="not fitted"):
        method().predict(image)
    with pytest.raises(UserError, match="not fitted"):
        method().save(tmp_path / "a.npz")
    with pytest.raises(UserError, match="no voxel size"):
        method(voxel_size=(5.0, 5.0))
    with pytest.raises(UserError, match="region_size is not above zero"):
        method(region_size=0.0)
    with pytest.raises(UserError, match="too few landmarks"):
        method(landmarks=1)
