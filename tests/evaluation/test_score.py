"""Streamed scores, their intervals and those of probabilities are those of the whole volume, for any slab and crop.

Boundary bands are checked against distances measured by brute force and by scipy; the printed table says the same.
"""

import io
import json
import logging
import math
import re
from itertools import pairwise, product

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.ndimage import distance_transform_edt
from scipy.special import logit
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss, jaccard_score, log_loss, precision_recall_curve

import mitoseg.evaluation.score as score_module
from mitoseg.engines import LocalEngine
from mitoseg.errors import UserError
from mitoseg.evaluation import Bootstrap, decide, evaluate, pool_evaluations
from mitoseg.evaluation.score import VOXEL_BYTES, _blocks, halo, near_counts, relative_spacing, squared_distance
from mitoseg.evaluation.table import score_table
from mitoseg.geometry import Box
from mitoseg.metrics.counts import INTERVALS, Counts, bootstrap_intervals, count, scores
from mitoseg.storage import plain
from mitoseg.volumes.base import ArrayVolume

SHAPE = (13, 24, 21)
KEYS = {
    *("average_precision", "expected_calibration_error", "adaptive_calibration_error", "negative_log_likelihood"),
    *("brier_score", "jaccard_foreground_oracle", "threshold_oracle"),
    *("precision_recall", "reliability", "reliability_adaptive"),
}


def pair(seed=0, ignored=0.1, voxel_size=(5.0, 5.0, 5.0), depth=SHAPE[0], **metadata):
    rng = np.random.default_rng(seed)
    shape = (depth, *SHAPE[1:])
    coarse = rng.random([-(-n // 4) for n in shape]) < 0.3
    truth = np.kron(coarse, np.ones((4, 4, 4), bool))[: shape[0], : shape[1], : shape[2]].astype(np.uint8)
    probability = np.clip(0.3 + 0.4 * truth + rng.normal(0, 0.25, shape), 0, 1).astype(np.float32)
    truth[rng.random(shape) < ignored] = 255
    metadata = {"kind": "probability", "threshold": 0.45, **metadata}
    return ArrayVolume(probability, metadata=metadata), ArrayVolume(truth, voxel_size)


def test_scores_agree_with_sklearn():
    prediction, truth = pair()
    result = evaluate(prediction, truth)
    kept = truth.read() != 255
    y, p = truth.read()[kept], (prediction.read() >= 0.45)[kept]
    assert result["jaccard_foreground"] == pytest.approx(jaccard_score(y, p))
    assert result["jaccard_background"] == pytest.approx(jaccard_score(y, p, pos_label=0))
    assert result["voxels"] == kept.sum()
    assert (result["threshold"], result["threshold_source"]) == (0.45, "the prediction's metadata")
    assert (result["crop"], result["shape"]) == ("[0:13,0:24,0:21]", [13, 24, 21])


@pytest.mark.parametrize("voxel_size", [(5.0, 5.0, 5.0), (40.0, 5.0, 5.0), (10.0, 4.0, 8.0), None])
@pytest.mark.parametrize("ignored", [0.0, 0.1])
@pytest.mark.parametrize("crop", [None, Box((3, 5, 2), (11, 20, 21))])
def test_any_slab_gives_the_same(monkeypatch, crop, ignored, voxel_size):
    prediction, truth = pair(ignored=ignored, voxel_size=voxel_size)
    whole = plain(evaluate(prediction, truth, crop=crop, depth=100))
    for depth in (1, 2, 5, 8, None):
        assert plain(evaluate(prediction, truth, crop=crop, depth=depth)) == whole
    monkeypatch.setattr(score_module, "_PLANE", 7)
    monkeypatch.setattr(score_module, "BLOCK_VOXELS", 2000)
    assert plain(evaluate(prediction, truth, crop=crop)) == whole


@pytest.mark.parametrize("voxel_size", [(5.0, 5.0, 5.0), (15.0, 5.0, 5.0)])
def test_bands_leave_out_what_scipy_says_also_beyond_the_crop(voxel_size):
    prediction, truth = pair(ignored=0.0, voxel_size=voxel_size)
    crop = Box((2, 3, 4), (9, 20, 15))
    rows = evaluate(prediction, truth, crop=crop, bands=[2, 4], depth=3)["boundary"]
    spacing = np.array(voxel_size) / min(voxel_size)
    t = truth.read()
    far_3d = np.where(t, distance_transform_edt(t, spacing), distance_transform_edt(t == 0, spacing))
    far_2d = np.stack([np.where(s, distance_transform_edt(s), distance_transform_edt(s == 0)) for s in t])
    inside = np.zeros(SHAPE, bool)
    inside[crop.slices] = True
    for row in rows:
        kept = inside & ((far_3d if row["dims"] == 3 else far_2d) > row["distance"])
        expected = scores(count((prediction.read() >= 0.45)[kept], t[kept]))
        assert {key: row[key] for key in expected} == pytest.approx(expected, nan_ok=True)
        for value, name in ((1, "foreground"), (0, "background")):
            share = 1 - (kept & (t == value)).sum() / (inside & (t == value)).sum()
            assert row[f"left_out_{name}"] == pytest.approx(share)
    assert [(row["distance"], row["dims"]) for row in rows] == [(2, 3), (2, 2), (4, 3), (4, 2)]


def test_the_same_in_little_memory():
    prediction, truth = pair()
    engine = LocalEngine()
    engine.item_bytes = 50_000
    assert len(list(_blocks(truth.box, (10, 10, 10), None, engine.item_bytes / VOXEL_BYTES))) > 1
    assert str(evaluate(prediction, truth, engine=engine)) == str(evaluate(prediction, truth))


def test_arguments_win():
    prediction, truth = pair()
    default = evaluate(prediction, truth)
    given = evaluate(prediction, truth, threshold=0.8, bands=[])
    assert given["threshold_source"] == "given"
    assert given["recall"] < default["recall"]
    assert given["boundary"] == []
    thick = evaluate(prediction, truth, voxel_size=(50, 5, 5))
    assert thick["voxel_size"] == [50, 5, 5]
    assert thick["boundary"][0]["left_out_foreground"] == thick["boundary"][1]["left_out_foreground"]
    assert thick["boundary"] != default["boundary"]


def test_pooling_two_halves_is_the_whole():
    """Cut where both sides' halos would matter, by way of crops, which read beyond themselves."""
    prediction, truth = pair()
    draws = Bootstrap(300, 7)
    whole = evaluate(prediction, truth, slabs=13, bootstrap=draws)
    crops = [Box((0, 0, 0), (5, 24, 21)), Box((5, 0, 0), (13, 24, 21))]
    parts = [evaluate(prediction, truth, crop=crop, slabs=13, bootstrap=draws) for crop in crops]
    pooled = pool_evaluations(parts)
    assert pooled["crop"] == [str(crop) for crop in crops]
    assert pooled["slab_counts"] == parts[0]["slab_counts"] + parts[1]["slab_counts"]
    assert pooled["bootstrap"] == {"resamples": 300, "seed": 7, "level": 0.95}
    assert set(pooled) >= KEYS
    both = pool_evaluations([evaluate(*pair(seed), slabs=4, bootstrap=draws) for seed in (0, 1)])
    counts = [Counts(**counts) for counts in both["slab_counts"]]
    assert len(counts) == 8
    assert both["interval"] == {n: list(e) for n, e in bootstrap_intervals(counts, resamples=300, seed=7).items()}
    assert plain({**pooled, "crop": None}) == plain({**whole, "crop": None})
    assert plain(pool_evaluations([whole])) == plain(whole)
    with pytest.raises(ValueError, match="bands"):
        pool_evaluations([whole, evaluate(prediction, truth, bands=[1])])
    with pytest.raises(ValueError, match="no evaluation"):
        pool_evaluations([])


def test_nothing_to_find_is_nan_not_an_error():
    nothing = np.zeros((2, 5, 5), np.uint8)
    result = evaluate(ArrayVolume(nothing), ArrayVolume(nothing))
    assert math.isnan(result["jaccard_foreground"])
    assert result["jaccard_background"] == 1
    assert math.isnan(result["boundary"][0]["left_out_foreground"])
    json.dumps(result)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"crop": Box((0, 0, 0), (14, 2, 2))}, "leaves the volume"),
        ({"crop": Box((2, 0, 0), (2, 2, 2))}, "empty"),
        ({"bands": [0]}, "no width"),
        ({"threshold": 2.0}, "not a probability"),
        ({"slabs": 0}, "number of parts"),
        ({"slabs": 2.5}, "number of parts"),
        ({"prediction": ArrayVolume(np.zeros((13, 24, 20), np.float32))}, r"prediction and truth differ in shape"),
    ],
)
def test_mistakes_are_one_line(change, match):
    prediction, truth = pair()
    with pytest.raises(UserError, match=match) as caught:
        evaluate(**{"prediction": prediction, "truth": truth, **change})
    assert "\n" not in str(caught.value)
    for options in ({"resamples": -1}, {"seed": -1}, {"resamples": 1.5}, {"seed": True}):
        with pytest.raises(UserError, match="not a whole number"):
            Bootstrap(**options)


def test_real_labels_shifted_by_two_pixels(real_data):
    path = real_data / "epfl_ca1" / "testing_z000-081_groundtruth.tif"
    truth = (tifffile.imread(path, key=range(12)) > 0).astype(np.uint8)
    prediction = ArrayVolume(np.roll(truth, 2, axis=2), metadata={"kind": "mask"})
    result = evaluate(prediction, ArrayVolume(truth, (5.0, 5.0, 5.0)))
    assert 0.88 < result["jaccard_foreground"] < 0.95
    assert result["jaccard_mean"] > result["jaccard_foreground"] + 0.02
    perfect = [row["jaccard_foreground"] for row in result["boundary"] if row["distance"] >= 2]
    assert min(perfect) > 0.999


@pytest.mark.parametrize("depth", [None, 2])
@pytest.mark.parametrize("slabs", [1, 2, 4, 8, 13])
def test_slabs_are_equal_runs_of_slices(slabs, depth):
    prediction, truth = pair()
    found = evaluate(prediction, truth, slabs=slabs, depth=depth)
    ends = [13 * i // slabs for i in range(slabs + 1)]
    expected = [count(prediction.read()[a:b] >= 0.45, truth.read()[a:b]) for a, b in pairwise(ends)]
    assert [Counts(**counts) for counts in found["slab_counts"]] == expected
    assert sum(expected, Counts()) == Counts(**found["counts"])
    if slabs > 1:
        assert found["interval"] == {name: list(ends) for name, ends in bootstrap_intervals(expected).items()}


def test_few_slices_and_no_draws():
    prediction, truth = pair()
    found = evaluate(prediction, truth, crop=Box((4, 0, 0), (7, 24, 21)), slabs=8)
    expected = [count(prediction.read()[z] >= 0.45, truth.read()[z]) for z in (4, 5, 6)]
    assert [Counts(**counts) for counts in found["slab_counts"]] == expected
    single = evaluate(*pair(depth=1))
    assert len(single["slab_counts"]) == 1
    assert all(math.isnan(end) for end in single["interval"]["dice"])
    assert single["dice"] > 0
    undrawn = evaluate(prediction, truth, bootstrap=Bootstrap(0))
    assert (undrawn["interval"], len(undrawn["slab_counts"])) == ({}, 8)


def made(seed=0, dtype=np.float32, ignored=0.1):
    """A stored prediction, its truth, and both as scikit-learn takes them, without ignored voxels."""
    rng, shape = np.random.default_rng(seed), (6, 40, 50)
    truth = (rng.random(shape) < 0.15).astype(np.uint8)
    probability = (1 / (1 + np.exp(-rng.normal(4.0 * truth - 3, 1.5)))).astype(np.float32)
    if np.dtype(dtype).kind == "u":
        scale = np.iinfo(dtype).max
        stored = np.round(probability * scale).astype(dtype)
        probability = np.clip(stored / scale, 0.25 / scale, 1 - 0.25 / scale)
        prediction = ArrayVolume(stored, metadata={"kind": "probability", "scale": scale})
    else:
        prediction = ArrayVolume(probability.astype(dtype))
    truth[rng.random(shape) < ignored] = 255
    kept = truth != 255
    return prediction, ArrayVolume(truth, (5.0, 5.0, 5.0)), probability[kept], truth[kept]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.uint16])
def test_scores_of_probabilities_agree_with_scikit_learn(dtype):
    prediction, truth, p, y = made(dtype=dtype)
    found = evaluate(prediction, truth, bands=[])
    assert found["average_precision"] == pytest.approx(average_precision_score(y, p), abs=1e-3)
    assert found["brier_score"] == pytest.approx(brier_score_loss(y, p), abs=1e-4)
    assert found["negative_log_likelihood"] == pytest.approx(log_loss(y, p.astype(np.float64)), abs=1e-4)
    if dtype != np.uint8:  # each edge between two of 15 bins is one of 255 values, which falls on either side
        share, confidence = calibration_curve(y, p, n_bins=15)
        assert found["reliability"]["share"] == pytest.approx(share, abs=0.01)
        assert found["reliability"]["confidence"] == pytest.approx(confidence, abs=2e-3)
    at = np.clip((p * 15).astype(int), 0, 14)
    error = sum(abs((y - p)[at == b].sum()) for b in range(15)) / len(y)
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_the_curve_agrees_with_scikit_learn(dtype):
    prediction, truth, p, y = made(1, dtype)
    points = evaluate(prediction, truth, bands=[])["precision_recall"]
    precision, recall, _ = precision_recall_curve(y, p)
    assert points["recall"][0] == 1  # reached at many thresholds, of which the highest is given
    theirs = np.interp(points["recall"][1:], recall[::-1], precision[::-1])
    assert theirs == pytest.approx(points["precision"][1:], abs=0.01)
    assert (np.diff(points["recall"]) <= 0).all()
    assert (np.diff(points["threshold"]) > 0).all()


def test_the_oracle_is_the_best_of_all_thresholds():
    prediction, truth, p, y = made(2)
    found = evaluate(prediction, truth, bands=[])
    best = max(jaccard_score(y, p >= t) for t in np.linspace(0.01, 0.99, 197))
    assert found["jaccard_foreground_oracle"] == pytest.approx(best, abs=2e-3)
    at_best = evaluate(prediction, truth, bands=[], threshold=found["threshold_oracle"])
    assert at_best["jaccard_foreground"] == pytest.approx(found["jaccard_foreground_oracle"], abs=1e-3)
    assert found["jaccard_foreground_oracle"] > found["jaccard_foreground"]


def test_certain_and_calibrated_probabilities():
    rng = np.random.default_rng(0)
    p = rng.random((20, 100, 100)).astype(np.float32)
    found = evaluate(ArrayVolume(p), ArrayVolume((rng.random(p.shape) < p).astype(np.uint8)), bands=[])
    assert found["expected_calibration_error"] < 0.01
    assert found["adaptive_calibration_error"] < 0.01
    certain = ArrayVolume(np.array([0.0, 1.0, 0.0, 1.0], np.float32).reshape(1, 1, 4))
    found = evaluate(certain, ArrayVolume(np.array([0, 1, 1, 0], np.uint8).reshape(1, 1, 4)))
    assert found["negative_log_likelihood"] == pytest.approx(10, abs=0.01)  # half of them 20 nats wrong
    assert found["brier_score"] == pytest.approx(0.5)
    v = ArrayVolume(np.array([0, 51, 255], np.uint8).reshape(1, 1, 3), metadata={"kind": "probability", "scale": 255})
    expected = logit([0.25 / 255, 0.2, 1 - 0.25 / 255])  # the end values of bytes stand for half a step
    assert decide(v).log_odds(v.read()).ravel() == pytest.approx(expected, rel=1e-5)


def test_masks_have_no_such_scores_and_a_file_has_no_histogram():
    prediction, truth, *_ = made(4)
    found = evaluate(prediction, truth)
    assert set(found) >= KEYS
    for kind in ("mask", "instances"):
        assert not KEYS & set(evaluate(prediction, truth, kind=kind))
    assert not KEYS & set(pool_evaluations([found, evaluate(prediction, truth, kind="mask")]))
    read = json.loads(json.dumps(plain(found)))
    pooled = pool_evaluations([read, read])
    assert not KEYS & set(pooled)
    assert pooled["jaccard_foreground"] == found["jaccard_foreground"]


@pytest.mark.parametrize("value", [0, 255])
def test_one_class_or_none_is_no_error(value):
    prediction, truth, *_ = made(5)
    found = evaluate(prediction, ArrayVolume(np.full(truth.shape, value, np.uint8)))
    for key in ("average_precision", "jaccard_foreground_oracle"):
        assert math.isnan(found[key])
    assert found["precision_recall"]["recall"] == []
    assert math.isnan(found["brier_score"]) == (value == 255)
    assert len(found["reliability"]["voxels"]) == (0 if value == 255 else 15)
    json.dumps(plain(found))


SIZES = [(1, 1, 1), (5, 5, 5), (50, 4.6, 4.6), (30, 10, 5), (4, 9, 9), (1, 2.5, 1)]


def phantom(seed, shape, ignored=0.0, share=0.5):
    """Blobs, with a sprinkle of ignored voxels."""
    rng = np.random.default_rng(seed)
    coarse = rng.random([-(-n // 3) for n in shape]) < share
    truth = np.kron(coarse, np.ones((3,) * len(shape), bool))[tuple(slice(n) for n in shape)].astype(np.uint8)
    truth[rng.random(shape) < ignored] = 255
    return truth


def brute_force(truth, spacing):
    """Distance to the nearest voxel of the other class, over all pairs of voxels."""
    at = np.argwhere(np.ones(truth.shape, bool)) * np.asarray(spacing)
    labels = truth.ravel()
    out = np.full(labels.shape, np.inf)
    for own in (0, 1):
        others = at[labels == 1 - own]
        if len(others):
            mine = at[labels == own]
            out[labels == own] = np.sqrt(((mine[:, None] - others[None]) ** 2).sum(-1)).min(1)
    return out.reshape(truth.shape)


def left_out(truth, distance, band, prediction):
    out = (distance <= band + 1e-6) & (truth != 255)
    return count(prediction[out], truth[out])


@pytest.mark.parametrize("ignored", [0.0, 0.2])
@pytest.mark.parametrize("voxel_size", SIZES)
@pytest.mark.parametrize("shape", [(1, 6, 7), (5, 8, 9), (6, 5, 11)])
def test_bands_agree_with_brute_force(shape, voxel_size, ignored):
    truth = phantom(sum(shape), shape, ignored)
    prediction = np.random.default_rng(1).random(shape) < 0.5
    bands = [1, 1.5, 2, 3, 5]
    box = Box.of_shape(shape)
    distance_3d = brute_force(truth, relative_spacing(voxel_size))
    distance_2d = np.stack([brute_force(t, relative_spacing(voxel_size[1:])) for t in truth])
    for dims, distance in ((3, distance_3d), (2, distance_2d)):
        found = near_counts(prediction, truth, box, bands=bands, voxel_size=voxel_size, dims=dims)
        assert found == [left_out(truth, distance, d, prediction) for d in bands]


@pytest.mark.parametrize("voxel_size", SIZES)
def test_distances_agree_with_scipy(voxel_size):
    truth = phantom(3, (20, 31, 27), share=0.4)
    spacing = relative_spacing(voxel_size)
    ours = np.sqrt(squared_distance(truth, spacing))
    theirs = np.where(truth, distance_transform_edt(truth, spacing), distance_transform_edt(truth == 0, spacing))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_by_hand():
    truth = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.uint8).reshape(1, 1, 8)
    prediction = np.zeros((1, 1, 8), bool)
    found = near_counts(prediction, truth, Box.of_shape((1, 1, 8)), bands=[1, 2, 9], voxel_size=(1, 1, 1), dims=3)
    assert found == [Counts(fn=1, tn=1), Counts(fn=2, tn=2), Counts(fn=4, tn=4)]
    halos = [halo([1, 5], (1, 1, 1)), halo([5], (50, 5, 5)), halo([5], (1, 5, 10)), halo([], (1, 1, 1))]
    assert halos == [(5, 5, 5), (0, 5, 5), (5, 5, 2), (0, 0, 0)]  # in-plane distances count in-plane spacings
    truth, box = np.repeat(np.uint8([[[0]], [[1]]]), 16, axis=2), Box.of_shape((2, 1, 16))
    for size, dims, expected in ((1, 3, Counts(tp=16, tn=16)), (1, 2, Counts()), (5, 3, Counts())):
        found = near_counts(truth == 1, truth, box, bands=[1], voxel_size=(size, 1, 1), dims=dims)
        assert found == [expected]  # the slice above counts in 3D alone


def test_ignored_voxels_are_no_class_and_one_class_has_no_border():
    """A wall of ignored voxels hides nothing and is itself near nothing."""
    truth = np.array([0, 255, 255, 1, 255], np.uint8).reshape(1, 1, 5)
    box, prediction = Box.of_shape(truth.shape), np.ones((1, 1, 5), bool)
    found = near_counts(prediction, truth, box, bands=[1, 2, 3], voxel_size=(1, 1, 1), dims=3)
    assert found == [Counts(), Counts(), Counts(tp=1, fp=1)]
    for value, dims in product((0, 1, 255), (2, 3)):
        truth = np.full((2, 3, 4), value, np.uint8)
        box = Box.of_shape(truth.shape)
        assert near_counts(truth == 1, truth, box, bands=[99], voxel_size=(1, 1, 1), dims=dims) == [Counts()]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(SIZES),
    st.sampled_from([0.0, 0.1]),
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 6)),
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
)
def test_the_halo_suffices(seed, voxel_size, ignored, start, size):
    shape, bands = (10, 14, 15), [1, 2, 3]
    truth = phantom(seed, shape, ignored)
    prediction = np.random.default_rng(seed).random(shape) < 0.5
    inner = Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))
    outer = inner.grow(halo(bands, voxel_size)).clip(Box.of_shape(shape))
    for dims in (3, 2):
        options = {"bands": bands, "voxel_size": voxel_size, "dims": dims}
        local = near_counts(prediction[inner.slices], truth[outer.slices], inner.inside(outer), **options)
        assert local == near_counts(prediction[inner.slices], truth, inner, **options)


def printed(result, width=80):
    out = io.StringIO()
    Console(file=out, width=width).print(score_table(result, title="a [bracketed] name"))
    return out.getvalue()


def test_every_score_is_in_the_table_and_nothing_is_cut_off():
    found = evaluate(*pair(), bands=[1, 3])
    text, (low, high) = printed(found), found["interval"]["dice"]
    more = ("average_precision", "brier_score", "adaptive_calibration_error", "jaccard_foreground_oracle")
    words = [f"{found[key]:.4f}" for key in (*INTERVALS, *more)] + [f"{low:.4f} to {high:.4f}", f"{found['voxels']:,}"]
    words += ["a [bracketed] name", "0.4500", "(the prediction's metadata)", "[0:13,0:24,0:21]", "5, 5, 5 nm"]
    assert [w for w in (*words, "bootstrap over 8 z-slabs", "upper bound, no result") if w not in text] == []
    assert "…" not in text
    rows = re.findall(r"│\s+([13]) │(.*)│", text)
    assert [row[0] for row in rows] == ["1", "3"]
    for distance, cells in rows:
        expected = []
        for row in (row for row in found["boundary"] if row["distance"] == int(distance)):
            shares = (row["left_out_foreground"], row["left_out_background"])
            expected += [f"{row['jaccard_foreground']:.4f}", f"{row['jaccard_mean']:.4f}"]
            expected.append(", ".join(f"{100 * share:.1f}" for share in shares))
        assert [cell.strip() for cell in cells.split("│")] == [e.replace("nan", "-") for e in expected]


def test_what_is_missing_has_no_place_in_the_table():
    prediction, truth = pair()
    text = printed(evaluate(prediction, truth, slabs=1, kind="mask"))
    assert "one z-slab: no intervals" in text
    assert not {" to ", "Brier"} & set(re.findall(" to |Brier", text))
    assert "slab" not in printed(evaluate(prediction, truth, bootstrap=Bootstrap(0)))
    nothing = ArrayVolume(np.zeros((1, 4, 4), np.uint8))
    text = printed(evaluate(nothing, nothing, bands=[]))
    assert re.search(r"Dice\s+│\s+- │", text)
    assert "border" not in text
    assert "voxel_size=[z,y,x] sets it" in printed(evaluate(nothing, nothing))
    crops = {0.5: Box((0, 0, 0), (3, 20, 20)), 0.4: Box((3, 0, 0), (6, 20, 20))}
    parts = [evaluate(prediction, truth, crop=crop, threshold=threshold) for threshold, crop in crops.items()]
    text = printed(pool_evaluations(parts))
    assert "0.5000, 0.4000" in text
    assert "[3:6,0:20,0:20]" in text


def volume(values, dtype, **metadata):
    return ArrayVolume(np.array(values, dtype).reshape(1, 1, -1), metadata=metadata)


def foreground(v, **options):
    return decide(v, **options).foreground(v.read()).ravel().tolist()


def test_the_threshold_is_given_or_that_of_the_metadata_or_a_half_and_inclusive():
    v = volume([0.2, 0.4, 0.6], np.float32, kind="probability", threshold=0.3)
    assert foreground(v) == [False, True, True]
    assert decide(v).source == "the prediction's metadata"
    assert foreground(v, threshold=0.5) == [False, False, True]
    assert decide(v, threshold=0.5).source == "given"
    assert foreground(v, threshold=0.0) == [True, True, True]
    v = volume([0.49, 0.5, 1.0], np.float32)
    assert foreground(v) == [False, True, True]
    assert (decide(v).threshold, decide(v).source) == (0.5, "default")


def test_bytes_have_a_scale():
    v = volume([0, 76, 77, 255], np.uint8, kind="probability", threshold=0.3, scale=255)
    assert foreground(v) == [False, False, True, True]
    del v.info.metadata["scale"]
    assert foreground(v) == [False, False, True, True]
    wide = volume([0, 19660, 19661, 65535], np.uint16, kind="probability", threshold=0.3)
    assert foreground(wide) == [False, False, True, True]


@pytest.mark.parametrize("values", [[0, 1, 1], [0, 255, 255], [0, 7, 7]])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.9}])
def test_bytes_of_two_values_are_a_mask(values, options):
    v = volume(values, np.uint8)
    assert decide(v, **options).kind == "mask"
    assert foreground(v, **options) == [False, True, True]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, bool])
def test_wide_integers_are_instances_and_bool_a_mask(dtype):
    v = volume([0, 3, 300], dtype)
    assert decide(v).kind == ("mask" if dtype is bool else "instances")
    assert foreground(v) == [False, True, True]


def test_a_mask_needs_no_threshold_and_says_so(caplog):
    v = volume([0, 1], np.uint8, kind="mask", threshold=0.4)
    assert "not used" in decide(v).source
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert foreground(v, threshold=0.9) == [False, True]
    assert "not used" in caplog.text


def test_other_bytes_are_a_question_and_bad_options_one_line():
    v, probable = volume([0, 100, 200], np.uint8), volume([0.5], np.float32)
    assert foreground(v, threshold=0.5) == [False, False, True]
    assert foreground(v, kind="instances") == [False, True, True]
    for stored, options, match in (
        (v, {}, "kind=probability"),
        (probable, {"threshold": 1.5}, "not a probability"),
        (probable, {"kind": "masks"}, "choose one of"),
    ):
        with pytest.raises(UserError, match=match):
            decide(stored, **options)
    for values in ([0.5, 1.5], [-0.1, 0.5], [np.nan, 0.5], [0.5, np.inf]):
        with pytest.raises(UserError, match="no probabilities"):
            foreground(volume(values, np.float32))
