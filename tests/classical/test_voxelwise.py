"""Samples, thresholds, trees, and both classifiers of voxels on a noisy phantom: learned, tuned, saved; bad input."""

import builtins
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from noisy_phantom import VOXEL_SIZE, noisy_phantom

from mitoseg.classical.features import VoxelFeatures, as_volume
from mitoseg.classical.neila import NeilaSegmenter
from mitoseg.classical.trees import TreeEnsemble, load_arrays, save_arrays
from mitoseg.classical.voxelwise import (
    ForestClassifier,
    best_threshold,
    corrected,
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


@pytest.fixture(params=METHODS)
def method(request, fitted):
    return fitted[request.param][0]


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
    trials = method.tune(image, labels["validation"])
    best = max(trials, key=lambda t: t.jaccard)
    assert (method.smoothness, method.cut_threshold) == (best.smoothness, best.threshold)
    assert (trials[0].smoothness, trials[0].threshold) == (0, method.threshold)
    mask, alone = method.segment(prob), method.segment(prob, regularize=False)
    assert jaccard([(mask == 1, labels["validation"])]) == pytest.approx(best.jaccard, abs=0.02)
    assert jaccard([(mask == 1, labels["test"])]) > jaccard([(alone == 1, labels["test"])]) + 0.05
    assert surface(method.segment(prob, 0.3)) < surface(method.segment(prob, 0.3, regularize=False)) / 2


def test_wrong_parameters_and_labels_are_refused():
    forest = {"samples": (1, 1e5), "trees": (0,), "leaf": (0,), "threshold": (1.5,)}
    neila = {"seed": (-1,), "rate": (0,), "leaves": (1,), "smoothness": (-1.0,), "sigmas": ((),)}
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


def test_a_saved_method_answers_alike(fitted, tmp_path):
    image, (forest, neila) = noisy_phantom()[0], (method for method, _ in fitted.values())
    forest.threshold, neila.smoothness, neila.cut_threshold = 0.31, 1.5, 0.4
    for method, probability in fitted.values():
        path = tmp_path / "method.npz"
        method.save(path)
        with pytest.raises(UserError, match="exists"):
            method.save(path)
        method.save(path, overwrite=True)
        loaded = type(method).load(path)
        assert {k: v for k, v in vars(loaded).items() if k != "fitted"} == {
            k: v for k, v in vars(method).items() if k != "fitted"
        }
        np.testing.assert_array_equal(loaded.predict_proba(image), probability)
        np.testing.assert_array_equal(loaded.predict(image[:5]), method.predict(image[:5]))
        other = ForestClassifier if isinstance(method, NeilaSegmenter) else NeilaSegmenter
        with pytest.raises(UserError, match="not"):
            other.load(path)
        path.unlink()


@pytest.mark.parametrize("change", ["missing", "extra", "retired", "no shift", "feature", "no json"])
def test_a_damaged_file_is_one_line(method, tmp_path, change):
    path = tmp_path / "method.npz"
    method.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays["facts"]))
    facts["parameters"] |= {"tensor": False, "surface": None}  # as in older files
    arrays["facts"] = np.array(json.dumps(facts))
    np.savez(path, **arrays)
    assert type(method).load(path).voxel_size == VOXEL_SIZE
    if change == "missing":
        del arrays["value"]
    elif change == "extra":
        facts["parameters"]["unknown"] = 1
    elif change == "retired":
        facts["parameters"]["tensor"] = True
    elif change == "no shift":
        del facts["shift"]
    elif change == "feature":
        arrays["feature"] = arrays["feature"] + 100
    arrays["facts"] = np.array("{" if change == "no json" else json.dumps(facts))
    np.savez(path, **arrays)
    with pytest.raises(UserError):
        type(method).load(path)


def test_what_is_not_trained_and_files_that_are_none_are_one_line(tmp_path):
    for kind in (ForestClassifier, NeilaSegmenter):
        with pytest.raises(UserError, match="not trained"):
            kind().predict_proba(noisy_phantom()[0])
        with pytest.raises(UserError, match="not trained"):
            kind().save(tmp_path / "method.npz")
    with pytest.raises(UserError, match="no such file"):
        ForestClassifier.load(tmp_path / "none.npz")
    for name, data in {"empty": b"", "text": b"text", "zip": b"PK\x03\x04 cut short"}.items():
        (tmp_path / name).write_bytes(data)
    np.savez(tmp_path / "objects.npz", facts=np.array([{}], object), allow_pickle=True)
    for name in ("empty", "text", "zip", "objects.npz"):
        with pytest.raises(UserError, match="no trained method"):
            ForestClassifier.load(tmp_path / name)


def test_a_flipped_bit_in_a_method_s_file_is_refused_or_changes_nothing(tmp_path):
    draw, arrays = random.Random(0), {"a": np.random.default_rng(0).normal(size=2000), "b": np.arange(900)}
    save_arrays(tmp_path / "a.npz", "Kind", {"shift": 1.5}, arrays)
    whole, refused = (tmp_path / "a.npz").read_bytes(), 0
    for part in (0, len(whole) - 500):
        for place in (draw.randrange(part, len(whole)) for _ in range(100)):
            flipped = whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
            (tmp_path / "a.npz").write_bytes(flipped)
            try:
                facts, found = load_arrays(tmp_path / "a.npz", "Kind")
            except UserError:
                refused += 1
                continue
            assert facts["shift"] == 1.5
            assert all(np.array_equal(arrays[name], found[name]) for name in arrays if name in found)
    assert refused > 100


@pytest.mark.parametrize("raw", [-800.0, 0.0, 800.0])
def test_sure_answers_do_not_overflow(raw):
    assert 0 <= corrected(np.array([raw]), 2.0, logits=True)[0] <= 1
    assert 0 <= corrected(np.clip([raw], 0, 1), 2.0, logits=False)[0] <= 1


ensemble = pytest.importorskip("sklearn.ensemble")


def tree_samples(seed=0, count=600):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 5)).astype(np.float32).round(1)  # ties with thresholds are likely
    return x, x[:, 0] * x[:, 1] + x[:, 2] + rng.normal(0, 0.3, count) > 0.4


def forest():
    model = ensemble.RandomForestClassifier(7, min_samples_leaf=3, random_state=0).fit(*tree_samples())
    return TreeEnsemble.from_forest(model.estimators_), model.predict_proba(tree_samples(1)[0])[:, 1]


def boosting():
    model = ensemble.HistGradientBoostingClassifier(max_iter=9, early_stopping=False).fit(*tree_samples())
    return TreeEnsemble.from_boosting(model), model.decision_function(tree_samples(1)[0])


@pytest.mark.parametrize("grown", [forest, boosting])
def test_the_answers_are_those_of_scikit_learn(grown, monkeypatch):
    trees, expected = grown()
    features_fn = np.ascontiguousarray(tree_samples(1)[0].T)
    np.testing.assert_allclose(trees.check(5)(features_fn), expected, rtol=1e-12)
    real = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    np.testing.assert_allclose(trees(features_fn), expected, rtol=1e-12)


def test_a_tree_by_hand():
    tree = {"feature": [1, 0, 0], "threshold": [0.5, 0, 0], "left": [1, 0, 0], "right": [2, 0, 0], "value": [9, 1, 2]}
    trees = TreeEnsemble.join([{name: np.array(values) for name, values in tree.items()}] * 2)
    assert trees(np.array([[0, 0, 0], [0.4, 0.5, 0.6]], np.float32)).tolist() == [2, 2, 4]


@pytest.mark.parametrize(
    ("name", "value"), [("left", 10**6), ("right", 0), ("right", -4), ("feature", 5), ("feature", -1)]
)
def test_trees_that_lead_nowhere_are_refused(name, value):
    trees, _ = forest()
    broken = getattr(trees, name).copy()
    broken[0] = value
    with pytest.raises(UserError, match="damaged"):
        replace(trees, **{name: broken}).check(5)
    with pytest.raises(UserError, match="damaged"):
        replace(trees, value=trees.value[:-1]).check(5)
