"""Predicting, numbering, measuring and correcting for a viewer, without one."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_volumes import dumbbell
from monai.networks.nets import UNet
from scipy import ndimage

from mitoseg.errors import UserError
from mitoseg.inference import predict_volume
from mitoseg.inference.prepare import make_prediction
from mitoseg.networks.checkpoint import FORMAT, KEY, load_model
from mitoseg.segmentation import Labelling, Postprocess, measure_instances
from mitoseg.segmentation.postprocess import CLEAN
from mitoseg.viewers.napari_plugin import computing
from mitoseg.viewers.napari_plugin.computing import (
    Choice,
    Numbering,
    delete,
    make_sources,
    measure_again,
    merge,
    middle,
    number,
    predict,
    shown,
    split_necks,
    split_seeds,
)
from mitoseg.viewers.napari_plugin.jobs import Cancelled
from mitoseg.volumes import ArrayVolume
from mitoseg.volumes.base import ArrayWriter

SIZE = (5.0, 5.0, 5.0)
PLAIN = Numbering(cleaned=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small network with random weights."""
    generator = torch.Generator().manual_seed(0)
    arguments = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
    network = UNet(**arguments)
    for parameter in network.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    record = {
        **{"format": FORMAT, "network": {"_target_": "monai.networks.nets.UNet", **arguments}, "channels": "single"},
        **{"normalization": {"mean": 120.0, "std": 60.0}, "voxel_size": [5.0, 5.0, 5.0], "threshold": 0.4},
        "calibration": {"prior_shift": 0.0, "temperature": 4.0, "bias": 0.0},
        **{"version": None, "method": "auto", "precision": {}, "grey_quantiles": [0, 60, 120, 180, 240]},
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    torch.save({KEY: record, "state_dict": weights}, path)
    return str(path)


def image(voxel_size=SIZE):
    noise = np.random.default_rng(0).normal(size=(4, 48, 64))
    image_zyx = 120 + 500 * ndimage.gaussian_filter(noise, (1, 4, 4))
    return ArrayVolume(image_zyx.clip(0, 255).astype(np.uint8), voxel_size)


def test_the_job_gives_what_inference_gives(checkpoint):
    told, source = [], image()
    outcome = predict(source, Choice(checkpoint, numbering=PLAIN), lambda *words: told.append(words))
    expected = ArrayWriter(source.shape)
    predict_volume(make_prediction(load_model(checkpoint)), source, expected)
    assert np.array_equal(outcome.probability_zyx, expected.array_zyx)
    oracle, count = ndimage.label(expected.array_zyx >= np.float32(0.4))
    assert count == outcome.instances_zyx.max() > 1
    assert np.array_equal(oracle > 0, outcome.instances_zyx > 0)
    assert outcome.probability == {"kind": "probability", "threshold": 0.4, "scale": 1, "checkpoint": "best.ckpt"}
    assert (outcome.instances["kind"], outcome.notes) == ("instances", ())
    shares = [share for share, *_ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)


def test_a_threshold_of_ones_own(checkpoint):
    outcome = predict(image(), Choice(checkpoint, threshold=0.7, numbering=PLAIN))
    assert np.array_equal(outcome.instances_zyx > 0, outcome.probability_zyx >= np.float32(0.7))
    again, about = number(outcome.probability_zyx, outcome.probability, PLAIN, SIZE, threshold=0.2)
    assert np.array_equal(again > 0, outcome.probability_zyx >= np.float32(0.2))
    assert about["threshold"] == 0.2


def test_cancelled_between_tiles(checkpoint):
    tiles = []

    def tell(share, text=""):
        if share > 0:
            tiles.append(share)
            raise Cancelled

    with pytest.raises(Cancelled):
        predict(image(), Choice(checkpoint), tell)
    assert tiles == [pytest.approx(computing.PREDICTED / 4)]


def test_notes_on_what_may_go_wrong(checkpoint):
    dark = ArrayVolume(image().read() // 8, None)
    (greys, size) = predict(dark, Choice(checkpoint, numbering=PLAIN)).notes
    assert "matched to training" in greys
    assert "5 x 5 x 5 nm" in size
    (voxels,) = predict(image((5.0, 9.0, 9.0)), Choice(checkpoint, resample=False, numbering=PLAIN)).notes
    assert "resample" in voxels
    outcome = predict(image((5.0, 9.0, 9.0)), Choice(checkpoint, numbering=PLAIN))
    assert outcome.notes == ()
    assert outcome.probability_zyx.shape == outcome.instances_zyx.shape == image().shape


def test_what_cannot_be_predicted(checkpoint, tmp_path, monkeypatch):
    for choice, message in (
        (Choice(str(tmp_path / "none.ckpt")), "no such checkpoint"),
        (Choice(checkpoint, method="dense"), "needs a block network"),
        (Choice(checkpoint, threshold=2), "not a probability"),
    ):
        with pytest.raises(UserError, match=message):
            predict(image(), choice)
    monkeypatch.setattr(computing, "memory_available", lambda: 1000)
    with pytest.raises(UserError, match="mitoseg predict"):
        predict(image(), Choice(checkpoint))


def test_clean_is_what_the_commands_call_clean():
    path = Path(__file__).parents[2] / "conf" / "postprocess" / "clean.yaml"
    steps = yaml.safe_load(path.read_text(encoding="utf-8"))
    del steps["_target_"]
    assert Postprocess(**steps | {"min_volume": float(steps["min_volume"])}) == CLEAN == Numbering().steps


def cubes():
    labels_zyx = np.zeros((12, 30, 40), np.uint32)
    for i, (y, x) in enumerate(itertools.product((2, 16), (3, 15, 27))):
        labels_zyx[3 : 8 + i % 3, y : y + 9, x : x + 8] = i + 1
    return labels_zyx


@pytest.mark.parametrize("correct", [lambda a: merge(a, [2, 5]), lambda a: delete(a, [3])])
def test_rows_after_a_correction_are_those_of_measuring_again(correct):
    labels_zyx = cubes()
    grey = ArrayVolume(np.random.default_rng(0).integers(0, 255, labels_zyx.shape).astype(np.uint8))
    table = measure_instances(make_sources(labels_zyx, SIZE, grey))
    assert shown(table)["volume (µm³)"][0] == pytest.approx(5 * 9 * 8 * 125e-9)
    assert shown(table)["instance"].tolist() == [1, 2, 3, 4, 5, 6]
    edit = correct(labels_zyx)
    labels_zyx[edit.index] = edit.values
    sources = make_sources(labels_zyx, SIZE, grey)
    again, expected = measure_again(table, sources, edit.changed), measure_instances(sources)
    kept = [name for name in expected if name != "neighbour_distance_nm"]
    pd.testing.assert_frame_equal(again[kept], expected[kept])
    changed = again["instance"].isin(edit.changed)
    assert again.loc[changed, "neighbour_distance_nm"].isna().all()


def test_probabilities_of_another_shape_are_not_measured():
    other = ArrayVolume(np.zeros((2, 3, 4), np.float32))
    assert make_sources(cubes(), SIZE, other, other).image is None


LARGE = (15.0, 15.0, 15.0)  # the distance is smoothed by 20 nm


def corrected(labels_zyx, edit):
    after_zyx = labels_zyx.copy()
    after_zyx[edit.index] = edit.values
    return after_zyx


labels = st.builds(
    lambda seed: np.random.default_rng(seed).integers(0, 5, (3, 4, 5)).astype(np.uint16), st.integers(0, 10**6)
)


@settings(max_examples=40, deadline=None)
@given(labels, st.sets(st.integers(1, 4), min_size=2))
def test_merging_gives_all_the_lowest_number_and_deleting_makes_background(labels_zyx, ids):
    if not ids <= set(np.unique(labels_zyx).tolist()):
        return
    for edit, value in ((merge(labels_zyx, list(ids)), min(ids)), (delete(labels_zyx, list(ids)), 0)):
        expected = np.where(np.isin(labels_zyx, list(ids)), value, labels_zyx)
        assert np.array_equal(corrected(labels_zyx, edit), expected)
        assert edit.changed == ids
        assert edit.values.dtype == labels_zyx.dtype


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda a: merge(a, [1, 1]), "two instances"),
        (lambda a: merge(a, [1, 9]), "no instance has the number: 9"),
        (lambda a: delete(a, []), "no instance is chosen"),
        (lambda a: delete(a, [0]), "no instance has the number: 0"),
        (lambda a: split_necks(a, [], SIZE), "no instance is chosen"),
        (lambda a: split_seeds(a, np.zeros((0, 3)), SIZE), "no instance contains two seed points"),
        (lambda a: split_seeds(a, np.array([[-5, 0, 0], [0, 99, 1]]), SIZE), "no instance contains two seed points"),
    ],
)
def test_what_cannot_be_corrected(act, message):
    labels_zyx = np.zeros((2, 3, 4), np.uint32)
    labels_zyx[1, 1, 1:3] = 1
    with pytest.raises(UserError, match=message):
        act(labels_zyx)


def test_a_neck_is_cut_and_the_larger_part_keeps_its_number():
    labels_zyx, first, second = dumbbell(3)
    labels_zyx[0, 0, 0] = 8  # the highest number, of another instance
    edit = split_necks(labels_zyx, [3], LARGE, Labelling(split=True, fragment=0))
    after_zyx = corrected(labels_zyx, edit)
    assert (after_zyx[first], after_zyx[second]) == (3, 9)
    assert edit.changed == {3, 9}
    assert np.array_equal(after_zyx > 0, labels_zyx > 0)
    at = np.nonzero(after_zyx == 9)[2].min()
    assert abs(at - 22) <= 2  # where the smaller ball begins


def test_two_instances_that_are_cut_at_once_get_different_numbers():
    one, first, second = dumbbell(1)
    labels_zyx = np.concatenate([one, 2 * one])
    after_zyx = corrected(labels_zyx, split_necks(labels_zyx, [1, 2], LARGE, Labelling(split=True, fragment=0)))
    below = [(24 + z, y, x) for z, y, x in (first, second)]
    assert len({int(after_zyx[at]) for at in (first, second, *below)}) == 4


def test_a_ball_has_no_neck():
    labels_zyx, _, _ = dumbbell(radius=(9, 0))
    labels_zyx[:, :, 22:] = 0
    with pytest.raises(UserError, match="no neck to cut at"):
        split_necks(labels_zyx, [1], LARGE)


def test_seeds_cut_where_the_neck_is():
    labels_zyx, first, second = dumbbell(2)
    labels_zyx[0, 0, 0] = 5
    seeds = np.array([first, second, (0, 20, 40)]) + 0.3  # the last lies in the background
    after_zyx = corrected(labels_zyx, split_seeds(labels_zyx, seeds, SIZE))
    assert (after_zyx[first], after_zyx[second], after_zyx[0, 0, 0]) == (2, 6, 5)
    assert np.array_equal(after_zyx > 0, labels_zyx > 0)
    assert abs(np.nonzero(after_zyx == 6)[2].min() - 22) <= 2
    z, y, x = first  # two in one ball cut it as well
    after_zyx = corrected(labels_zyx, split_seeds(labels_zyx, np.array([(z - 5, y, x), (z + 5, y, x)]), SIZE))
    assert after_zyx[z - 5, y, x] != after_zyx[z + 5, y, x]


def test_numbers_that_the_type_does_not_have_are_not_given():
    labels_zyx, first, second = dumbbell(255)
    with pytest.raises(UserError, match="no free numbers"):
        split_seeds(labels_zyx.astype(np.uint8), np.array([first, second]), SIZE)


def test_the_middle_of_a_ring_lies_on_the_ring():
    labels_zyx = np.zeros((3, 9, 9), np.uint32)
    labels_zyx[1, 1:8, 1:8] = 4
    labels_zyx[1, 2:7, 2:7] = 0
    assert labels_zyx[middle(labels_zyx, 4)] == 4
    assert middle(labels_zyx, 5) is None
