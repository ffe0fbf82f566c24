"""Samples, thresholds, and both classifiers of voxels on a noisy phantom: learned, tuned; bad input."""

import numpy as np
import pytest
from noisy_phantom import VOXEL_SIZE, noisy_phantom

from mitoseg.classical.features import VoxelFeatures, as_volume
from mitoseg.classical.voxelwise import (
    ForestClassifier,
    NeilaSegmenter,
    best_threshold,
    draw_samples,
    jaccard,
    labelled_runs,
)
from mitoseg.errors import UserError
from mitoseg.volumes import ArrayVolume

pytest.importorskip("sklearn")
pytest.importorskip("maxflow")
FEATURES = VoxelFeatures((4.0,), (20.0, 5.0, 5.0))


def image_and_label():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (7, 12, 11)).astype(np.uint8)
    label = (rng.random(image.shape) < 0.2).astype(np.uint8)
    label[2:4] = 255
    label[5, :6] = 255
    return image, label


def draw(count=60, seed=0, label=None):
    image, known = image_and_label()
    label = known if label is None else label
    return draw_samples(as_volume(image), as_volume(label), FEATURES, count, np.random.default_rng(seed))


def test_the_classes_are_even_and_the_prior_is_that_of_the_labels():
    samples = draw()
    _, label = image_and_label()
    assert samples.label_n.sum() * 2 == len(samples.label_n) == 60
    assert samples.prior == (label == 1).sum() / (label != 255).sum()
    # a classifier that answers 0.5 to everything must end at the prior
    assert 1 / (1 + np.exp(samples.shift)) == pytest.approx(samples.prior)
    assert len(draw(label=label == 1).label_n) == 60  # truth values are labels


def test_a_rare_class_is_taken_whole():
    label = np.zeros((7, 12, 11), np.uint8)
    label[3, 4, 5:8] = 1
    samples = draw(count=100, label=label)
    assert samples.label_n.sum() == 3
    assert len(samples.label_n) == 53
    assert 1 / (1 + np.exp(samples.shift - np.log(3 / 50))) == pytest.approx(samples.prior)


def test_samples_are_of_their_voxels_and_ignored_ones_are_never_drawn():
    image, label = image_and_label()
    known = {tuple(f): int(v) for f, v in zip(FEATURES(image).reshape(6, -1).T, label.ravel(), strict=True)}
    samples = draw()
    assert [known[tuple(f)] for f in samples.features_nf] == samples.label_n.astype(int).tolist()


def test_the_sample_does_not_depend_on_the_slabs_but_on_the_seed(monkeypatch):
    first = draw()
    assert not np.array_equal(draw(seed=1).features_nf, first.features_nf)
    runs = labelled_runs(as_volume(image_and_label()[1]))
    assert [str(run) for run in runs] == ["[0:2,0:12,0:11]", "[4:7,0:12,0:11]"]
    for depth in (1, 3, 7):
        monkeypatch.setattr("mitoseg.classical.features.BUDGET", depth * 6 * 12 * 11)
        np.testing.assert_array_equal(draw().features_nf, first.features_nf)


def pairs(seed=0):
    rng = np.random.default_rng(seed)
    for share in (0.1, 0.3):
        label = (rng.random((3, 10, 10)) < share).astype(np.uint8)
        prob = np.clip(0.3 * label + rng.random(label.shape) * 0.6, 0, 1).astype(np.float32)
        label[0, :4] = 255
        yield prob, label


def test_no_threshold_is_better():
    mask, label = np.array([[[1, 1, 0, 1]]], bool), np.array([[[1, 0, 1, 255]]], np.uint8)
    assert (jaccard([(mask, label)]), jaccard([(mask[..., 3:], label[..., 3:])])) == (1 / 3, 0)
    best = best_threshold(pairs())
    scores = [jaccard([(p >= t, lab) for p, lab in pairs()]) for t in np.linspace(0.0005, 1, 2000)]
    assert best.jaccard == pytest.approx(max(scores))
    assert jaccard([(p >= best.threshold, lab) for p, lab in pairs()]) == pytest.approx(best.jaccard, abs=2e-3)
    with pytest.raises(UserError, match="no mitochondria"):
        best_threshold([(np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.uint8))])


SMALL = {"voxel_size": VOXEL_SIZE, "sigmas": (10.0, 20.0), "samples": 10_000}
METHODS = {
    "forest": lambda: ForestClassifier(**SMALL, trees=10),
    "neila": lambda: NeilaSegmenter(**SMALL, trees=30, leaves=15),
}


@pytest.fixture(scope="module")
def fitted():
    """Both methods, trained, with their probabilities of the phantom."""
    image, labels = noisy_phantom()
    methods = {name: make().fit(image, labels["fit"]) for name, make in METHODS.items()}
    return {name: (method, method.predict_proba(image)) for name, method in methods.items()}


def test_both_have_learned_mitochondria(fitted):
    image, labels = noisy_phantom()
    learned, test = labels["fit"], labels["test"]
    forest = fitted["forest"][0].tune(image, labels["validation"])
    for method, prob in fitted.values():
        threshold = best_threshold(method._validation(image, labels["validation"])).threshold
        assert method is not forest or forest.threshold == threshold
        assert (prob.dtype, prob.shape) == (np.float32, image.shape)
        assert 0 <= prob.min() <= prob.max() <= 1
        assert jaccard([(prob >= threshold, test)]) > 0.55 > 3 * (test == 1).sum() / (test != 255).sum()
        prior = (learned == 1).sum() / (learned != 255).sum()  # of the volume, not of the sample
        assert prob[learned != 255].mean() == pytest.approx(prior, rel=0.25)


@pytest.mark.parametrize("name", METHODS)
def test_slabs_threads_and_laziness_change_nothing(name, fitted, monkeypatch):
    image, labels = (a[:7, :80, :64] for a in (noisy_phantom()[0], noisy_phantom()[1]["fit"]))
    whole = fitted[name][0]
    expected = whole.predict_proba(image)
    first = METHODS[name]().fit(image, labels).predict_proba(image)
    for depth, threads in ((1, 1), (5, 2)):
        monkeypatch.setattr("mitoseg.classical.features.BUDGET", depth * len(whole.features.names) * 80 * 64)
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        np.testing.assert_array_equal(whole.predict_proba(ArrayVolume(image, VOXEL_SIZE)), expected)
    again = METHODS[name]().fit(ArrayVolume(image), ArrayVolume(labels))
    np.testing.assert_array_equal(again.predict_proba(image), first)


def surface(mask):
    assert mask.dtype == np.uint8
    return sum(np.abs(np.diff(mask.astype(int), axis=a)).sum() for a in range(3))


def test_regularised_it_beats_its_voxels_alone(fitted):
    (image, labels), (method, prob) = noisy_phantom(), fitted["neila"]
    trials = method.tune(image, labels["validation"], smoothness=(1.0, 2.0))
    best = max(trials, key=lambda t: t.jaccard)
    assert (method.smoothness, method.cut_threshold) == (best.smoothness, best.threshold)
    assert (trials[0].smoothness, trials[0].threshold) == (0, method.threshold)
    mask, alone = method.segment(prob), method.segment(prob, regularize=False)
    assert jaccard([(mask == 1, labels["validation"])]) == pytest.approx(best.jaccard, abs=0.02)
    assert jaccard([(mask == 1, labels["test"])]) > jaccard([(alone == 1, labels["test"])]) + 0.05
    assert surface(method.segment(prob, 0.3)) < surface(method.segment(prob, 0.3, regularize=False)) / 2


def test_wrong_parameters_and_labels_are_refused():
    forest = {"samples": (1, 1e5), "trees": (0,), "leaf": (0,)}
    neila = {"seed": (-1,), "leaves": (1,), "sigmas": ((),)}
    for kind, parameters in ((ForestClassifier, forest), (NeilaSegmenter, neila)):
        for name, values in parameters.items():
            for value in values:
                with pytest.raises(UserError, match=name):
                    kind(**{name: value})
    for value, words in (
        (255, "nothing is labelled"),
        (0, "0 voxels of mitochondria"),
        (3, "other than 0, 1 and 255"),
    ):
        with pytest.raises(UserError, match=words):
            draw(label=np.full((7, 12, 11), value, np.uint8))
    with pytest.raises(UserError, match="other than 0, 1 and 255"):
        draw(label=np.full((7, 12, 11), 0.5))
    with pytest.raises(UserError, match="shape"):
        draw(label=np.zeros((7, 12, 10), np.uint8))


def test_what_is_not_trained_is_one_line():
    for kind in (ForestClassifier, NeilaSegmenter):
        with pytest.raises(UserError, match="not trained"):
            kind().predict_proba(noisy_phantom()[0])


@pytest.mark.parametrize("name", METHODS)
def test_the_answers_are_those_of_scikit_learn(name, fitted, monkeypatch):
    method = fitted[name][0]
    model, shift = method.fitted
    features_fn = np.random.default_rng(1).standard_normal((len(method.features.names), 600)).astype(np.float32)
    # the balance of the sample is taken out of the log-odds
    odds = model.predict_proba(features_fn.T)
    expected = odds[:, 1] / (odds[:, 1] + odds[:, 0] * np.exp(shift))
    for rows in (2**15, 100):
        monkeypatch.setattr("mitoseg.classical.voxelwise.ROWS", rows)
        np.testing.assert_allclose(method._evaluate(model, features_fn, shift), expected, rtol=1e-9)
    assert (expected > 0.5).any()
