import json
import random

import numpy as np
import pytest
from noisy_phantom import VOXEL_SIZE, noisy_phantom

from mitoseg.classical.forest import ForestClassifier
from mitoseg.classical.neila import NeilaSegmenter
from mitoseg.classical.trees import load_arrays, save_arrays
from mitoseg.classical.voxelwise import corrected, jaccard
from mitoseg.errors import UserError
from mitoseg.volumes import ArrayVolume

pytest.importorskip("sklearn")

SMALL = {"voxel_size": VOXEL_SIZE, "sigmas": (10.0, 20.0), "samples": 10_000}
METHODS = {
    "forest": lambda **kw: ForestClassifier(**SMALL, trees=10, **kw),
    "neila": lambda **kw: NeilaSegmenter(**SMALL, trees=30, leaves=15, **kw),
}


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    """The name of a method and the trained method."""
    image, labels = noisy_phantom()
    return request.param, METHODS[request.param]().fit(image, labels["fit"])


@pytest.fixture(scope="module")
def prob(method):
    """Its probability of the phantom."""
    return method[1].predict_proba(noisy_phantom()[0])


def test_it_has_learned_mitochondria(method, prob):
    image, labels = noisy_phantom()
    trial = method[1].calibrate(image, labels["validation"])
    assert trial.threshold == method[1].threshold
    assert prob.dtype == np.float32
    assert prob.shape == image.shape
    assert 0 <= prob.min() <= prob.max() <= 1
    chance = (labels["test"] == 1).sum() / (labels["test"] != 255).sum()
    assert jaccard([(prob >= trial.threshold, labels["test"])]) > 0.55 > 3 * chance


def test_the_prior_is_that_of_the_volume_not_of_the_sample(prob):
    label = noisy_phantom()[1]["fit"]
    assert prob[label != 255].mean() == pytest.approx((label == 1).sum() / (label != 255).sum(), rel=0.25)


def test_slabs_threads_and_laziness_change_nothing(method):
    image, labels = (a[:7, :80, :64] for a in (noisy_phantom()[0], noisy_phantom()[1]["fit"]))
    name, whole = method
    expected = whole.predict_proba(image)
    for depth, threads in ((1, 1), (5, 2)):
        other = METHODS[name](depth=depth, threads=threads)
        other.fitted = whole.fitted
        np.testing.assert_array_equal(other.predict_proba(ArrayVolume(image, VOXEL_SIZE)), expected)
    first = METHODS[name](depth=7).fit(image, labels).predict_proba(image)
    again = METHODS[name](depth=3, threads=1).fit(ArrayVolume(image), ArrayVolume(labels))
    np.testing.assert_array_equal(again.predict_proba(image), first)


def test_a_saved_method_answers_alike(method, prob, tmp_path):
    method[1].threshold = 0.31
    method[1].save(tmp_path / "method.npz")
    loaded = type(method[1]).load(tmp_path / "method.npz")
    assert loaded.threshold == 0.31
    assert loaded.voxel_size == VOXEL_SIZE
    np.testing.assert_array_equal(loaded.predict_proba(noisy_phantom()[0]), prob)
    with pytest.raises(UserError, match="exists"):
        method[1].save(tmp_path / "method.npz")
    method[1].save(tmp_path / "method.npz", overwrite=True)


def test_a_file_of_another_method_is_refused(method, tmp_path):
    method[1].save(tmp_path / "method.npz")
    other = ForestClassifier if method[0] == "neila" else NeilaSegmenter
    with pytest.raises(UserError, match="not"):
        other.load(tmp_path / "method.npz")


@pytest.mark.parametrize("change", ["missing", "extra", "no shift", "feature", "no json"])
def test_a_damaged_file_is_one_line(method, tmp_path, change):
    path = tmp_path / "method.npz"
    method[1].save(path)
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(str(arrays["facts"]))
    if change == "missing":
        del arrays["value"]
    elif change == "extra":
        facts["parameters"]["unknown"] = 1
    elif change == "no shift":
        del facts["shift"]
    elif change == "feature":
        arrays["feature"] = arrays["feature"] + 100
    arrays["facts"] = np.array("{" if change == "no json" else json.dumps(facts))
    np.savez(path, **arrays)
    with pytest.raises(UserError):
        type(method[1]).load(path)


def test_files_that_are_none_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        ForestClassifier.load(tmp_path / "none.npz")
    for name, data in {"empty": b"", "text": b"text", "zip": b"PK\x03\x04 cut short"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="no trained method"):
            ForestClassifier.load(tmp_path / name)
    np.savez(tmp_path / "objects.npz", facts=np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match="no trained method"):
        ForestClassifier.load(tmp_path / "objects.npz")


def test_untrained_it_says_so(tmp_path):
    image, _ = noisy_phantom()
    for untrained in (ForestClassifier(), NeilaSegmenter()):
        with pytest.raises(UserError, match="not trained"):
            untrained.predict_proba(image)
        with pytest.raises(UserError, match="not trained"):
            untrained.save(tmp_path / "method.npz")


@pytest.mark.parametrize(
    ("kind", "parameters", "word"),
    [
        (ForestClassifier, {"samples": 1}, "samples"),
        (ForestClassifier, {"samples": 1e5}, "samples"),
        (ForestClassifier, {"trees": 0}, "trees"),
        (ForestClassifier, {"leaf": 0}, "leaf"),
        (ForestClassifier, {"threshold": 1.5}, "threshold"),
        (ForestClassifier, {"depth": 0}, "depth"),
        (ForestClassifier, {"threads": -1}, "threads"),
        (NeilaSegmenter, {"seed": -1}, "seed"),
        (NeilaSegmenter, {"rate": 0}, "rate"),
        (NeilaSegmenter, {"leaves": 1}, "leaves"),
        (NeilaSegmenter, {"smoothness": -1.0}, "smoothness"),
        (NeilaSegmenter, {"surface": 0}, "surface"),
        (NeilaSegmenter, {"sigmas": ()}, "scales"),
    ],
)
def test_wrong_parameters_are_refused(kind, parameters, word):
    with pytest.raises(UserError, match=word):
        kind(**parameters)


@pytest.mark.parametrize("raw", [-800.0, 0.0, 800.0])
def test_sure_answers_do_not_overflow(raw):
    assert 0 <= corrected(np.array([raw]), 2.0, logits=True)[0] <= 1
    assert 0 <= corrected(np.clip([raw], 0, 1), 2.0, logits=False)[0] <= 1


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
