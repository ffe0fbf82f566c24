"""The volume predicted along each of its axes; turning there and back; several answers to one, against numpy."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from small_networks import NORMALIZATION, Memory, SmallBlock, SmallUNet, ensemble, grey, member, predict, shaken

from mitoseg.errors import UserError
from mitoseg.geometry import Box, tiles
from mitoseg.inference import Prediction, Predictor
from mitoseg.inference.views import CONSENSUS, SYMMETRIES, TurnedVolume, check_answers, check_cubic, gather, symmetries
from mitoseg.metrics import Calibration
from mitoseg.volumes import ArrayVolume

SHAPE = (14, 19, 16)
TILES = [SHAPE, (5, 7, 9), (1, 19, 16)]


@pytest.fixture
def adjacent():
    return shaken(SmallBlock(in_channels=3))


def predictor(network, image, stated=(5, 5, 5), channels="single", **options):
    prediction = Prediction(network, NORMALIZATION, channels, Calibration(), 0.5, save="log_odds", **options)
    return Predictor(prediction, ArrayVolume(image, stated))


def test_axes_are_the_mean_of_the_volume_lying_in_three_ways(adjacent):
    image = grey(SHAPE)
    result = predict(adjacent, image, channels="adjacent", tta="axes")
    ways = [((0, 1, 2), (0, 1, 2)), ((1, 2, 0), (2, 0, 1)), ((2, 0, 1), (1, 2, 0))]
    each = [predict(adjacent, image.transpose(there), channels="adjacent").transpose(back) for there, back in ways]
    np.testing.assert_allclose(result, np.mean(each, axis=0), rtol=0, atol=1e-5)
    assert np.abs(result - each[0]).max() > 1e-2


@pytest.mark.parametrize("method", ["dense", "strided", "blend"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_turning_the_volume_turns_the_result(method, ndim):
    network = shaken(SmallUNet(ndim) if method == "blend" else SmallBlock(ndim))
    image, tile = grey((12, 16, 13)), (8, 8, 8) if method == "blend" else None
    result = predict(network, image, tta="axes", method=method, tile=tile)
    lying = np.ascontiguousarray(image.transpose(1, 2, 0))
    turned = predict(network, lying, tta="axes", method=method, tile=tile)
    np.testing.assert_allclose(turned, result.transpose(1, 2, 0), rtol=0, atol=1e-5)


def test_any_turn_turns_the_result_of_all_48():
    network, image = shaken(SmallBlock()), grey((9, 11, 10))
    result = predict(network, image, tta="cube", method="strided")
    for symmetry in symmetries("cube")[5::11]:
        turned = predict(network, symmetry.turn_array(image), tta="cube", method="strided")
        np.testing.assert_allclose(turned, symmetry.turn_array(result), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("ndim", "channels"), [(2, 3), (3, 1)])
def test_tiles_that_are_filled_up_beyond_the_volume(ndim, channels):
    """As compiled code needs them, along every axis."""
    network, image = shaken(SmallBlock(ndim, channels)), grey(SHAPE)
    named = {1: "single", 3: "adjacent"}[channels]
    working, result, tile = predictor(network, image, channels=named, tta="axes"), Memory(SHAPE), (8, 8, 8)
    working.whole_tile = tile
    for part in tiles(working.volume.box, tile):
        result.write(part, working.compute(working.read(part), part))
    assert (result.written == 1).all()
    np.testing.assert_array_equal(result.array, predict(network, image, channels=named, tta="axes"))


def test_each_shape_is_compiled_once(monkeypatch):
    compiled = []
    monkeypatch.setattr("mitoseg.networks.dense.DenseForm.compile_segments", lambda network: compiled.append(network))
    for tta, count in (("all", 2), ("axes", 3), ("cube", 6)):
        working = predictor(shaken(SmallBlock()), grey(SHAPE), tta=tta)
        working.compile((8, 8, 8))
        assert len(compiled) == len(set(map(id, compiled))) == count
        compiled.clear()


def test_too_little_memory_on_the_device_cuts_the_longest_axis():
    image, network = grey((9, 10, 11)), shaken(SmallBlock())
    expected = predict(network, image, tta="axes")
    working, sizes = predictor(network, image, tta="axes"), []
    compute = working._compute

    def stingy(greys, write):
        if write.size > 300:
            raise torch.OutOfMemoryError("out of memory")
        sizes.append(write.shape)
        return compute(greys, write)

    working._compute = stingy
    result = working.compute(working.read(working.volume.box), working.volume.box)
    np.testing.assert_array_equal(result, expected)
    assert all(max(size) <= 2 * min(size) for size in sizes)


@pytest.mark.parametrize("network", [SmallBlock(), SmallBlock(3), SmallUNet(), SmallUNet(3)])
def test_tiles_are_as_thick_as_they_are_wide(network):
    """So that no view sees slivers with more margin than voxels."""
    tile = (64, 64, 64) if isinstance(network, SmallUNet) else None
    working = predictor(shaken(network), grey((200, 150, 180)), tta="axes", tile=tile)
    plenty = working.choose_tile(1e12)
    assert plenty == (200, 150, 180)
    cost = working.network_bytes(plenty) + working.buffer_bytes(plenty)
    little = working.choose_tile(cost / 5)
    assert math.prod(little) < math.prod(plenty)
    assert max(little) <= 2.5 * min(little)


def test_views_along_other_axes_count_as_much_work():
    shape = (40, 40, 40)
    once, thrice = (predictor(SmallBlock(), grey(shape), tta=tta).operations(shape) for tta in ("none", "axes"))
    assert thrice == pytest.approx(3 * once)


def test_axes_change_places_with_z_where_voxels_are_cubic(adjacent, caplog):
    image = grey(SHAPE)
    for stated, trained in (((30, 4, 4), None), (None, (30, 4, 4))):
        with pytest.raises(UserError, match=r"needs cubic voxels.*\(30, 4, 4\); use tta=turns or tta=all"):
            predictor(adjacent, image, stated, "adjacent", tta="axes", voxel_size=trained)
    for name in ("none", "flips", "turns", "all"):
        check_cubic(name, (50.0, 5.0, 5.0))
        check_cubic(name, None)
    check_cubic("cube", (5.2, 5.0, 5.0))
    assert not caplog.records
    assert predictor(adjacent, image, None, "adjacent", tta="axes").views
    assert "assumes cubic voxels" in caplog.text


def test_a_volume_too_thin_to_lie_on_its_side_is_told(adjacent):
    with pytest.raises(UserError, match=r"smaller than the network's window: \(16, 5\)"):
        predictor(adjacent, grey((5, 12, 16)), channels="adjacent", tta="axes")


COUNTS = {"none": 1, "flips": 4, "turns": 8, "all": 16, "axes": 3, "cube": 48}


@pytest.mark.parametrize("name", SYMMETRIES)
def test_each_symmetry_is_another_one(name):
    image = np.arange(60).reshape(3, 4, 5)
    turned = {(symmetry.shape(image.shape), symmetry.turn_array(image).tobytes()) for symmetry in symmetries(name)}
    assert len(turned) == COUNTS[name]
    with pytest.raises(UserError, match="no such test-time augmentation"):
        symmetries(name + "s")


@pytest.mark.parametrize("name", [name for name in SYMMETRIES if name != "cube"])
def test_one_after_the_other_is_a_third(name):
    """So the result of a turned volume is the turned result."""
    image = np.arange(27).reshape(3, 3, 3)
    single = {symmetry.turn_array(image).tobytes() for symmetry in symmetries(name)}
    pairs = itertools.product(symmetries(name), repeat=2)
    assert {a.turn_array(b.turn_array(image)).tobytes() for a, b in pairs} == single


def test_the_cube_has_all_that_numpy_can_do():
    image = np.arange(60).reshape(3, 4, 5)
    expected = {
        (turned.shape, turned.tobytes())
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
        for turned in [np.ascontiguousarray(image.transpose(order)[tuple(slice(None, None, s) for s in signs)])]
    }
    assert {(t.shape, t.tobytes()) for t in (s.turn_array(image) for s in symmetries("cube"))} == expected


@given(st.sampled_from(SYMMETRIES["cube"]), st.data())
def test_a_box_of_the_turned_volume_is_the_turned_box(symmetry, data):
    shape = (4, 5, 7)
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    box, image = Box(start, stop), np.arange(4 * 5 * 7).reshape(shape)
    turned = symmetry.turn(box, shape)
    assert symmetry.turn_back(turned, shape) == box
    read = TurnedVolume(ArrayVolume(image), symmetry).read(turned)
    np.testing.assert_array_equal(read, symmetry.turn_array(image)[turned.slices])
    back = symmetry.turn_tensor_back(torch.from_numpy(read))
    np.testing.assert_array_equal(back.numpy(), image[box.slices])


CALIBRATION = Calibration(-1.0, 1.5, 0.3)


def gathered(save, consensus, maps):
    return gather(map(torch.from_numpy, maps), save, consensus, CALIBRATION).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_against_numpy(count):
    maps = np.random.default_rng(count).normal(0, 3, (count, 3, 5, 4)).astype(np.float32)
    np.testing.assert_allclose(gathered("probability", "mean", maps), maps.mean(0), atol=1e-6)
    np.testing.assert_allclose(gathered("probability", "median", maps), np.median(maps, 0), atol=1e-6)
    deviation = expit(CALIBRATION.apply(maps.astype(float))).std(0)
    np.testing.assert_allclose(gathered("uncertainty", "mean", maps), deviation, atol=1e-6)


def test_small_deviations_keep_their_digits():
    maps = (5 + np.random.default_rng(0).normal(0, 1e-3, (8, 1, 1, 50))).astype(np.float32)
    expected = expit(CALIBRATION.apply(maps.astype(float))).std(0)
    np.testing.assert_allclose(gathered("uncertainty", "mean", maps), expected, rtol=0.01)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 2.0])
def test_the_median_of_an_odd_number_is_a_vote(threshold):
    maps = np.random.default_rng(1).normal(0, 3, (3, 4, 6, 5)).astype(np.float32)
    votes = (maps >= threshold).sum(0) >= 2
    np.testing.assert_array_equal(gathered("mask", "median", maps) >= threshold, votes)


def each_view(network, image, name):
    """What the network says of each turned volume, turned back."""
    found = []
    for symmetry in symmetries(name):
        turned = torch.from_numpy(predict(network, symmetry.turn_array(image)))
        found.append(symmetry.turn_tensor_back(turned).numpy())
    return np.stack(found)


@pytest.mark.parametrize("tta", ["flips", "axes"])
def test_the_deviation_is_over_views(tta):
    network, image = shaken(SmallBlock()), grey((10, 12, 9))
    maps = each_view(network, image, tta)
    options = {"tta": tta, "calibration": CALIBRATION}
    deviation = predict(network, image, (4, 8, 9), save="uncertainty", **options)
    np.testing.assert_allclose(deviation, expit(CALIBRATION.apply(maps)).std(0), atol=1e-5)
    median = predict(network, image, (4, 8, 9), consensus="median", **options)
    np.testing.assert_allclose(median, np.median(maps, 0), atol=1e-5)


@pytest.mark.parametrize("tta", ["none", "flips"])
def test_the_deviation_is_over_members_and_views(tta):
    networks, image = [shaken(SmallBlock(), seed) for seed in (1, 2, 3)], grey((3, 12, 11))
    both = ensemble(networks, [member(network) for network in networks])
    maps = np.concatenate([each_view(network, image, tta) for network in networks])
    deviation = predict(both, image, save="uncertainty", tta=tta)
    np.testing.assert_allclose(deviation, expit(maps).std(0), atol=1e-5)
    np.testing.assert_allclose(predict(both, image, consensus="median", tta=tta), np.median(maps, 0), atol=1e-5)


def test_bytes_hold_255_times_the_deviation():
    network, image = shaken(SmallBlock()), grey((2, 12, 11))
    options = {"save": "uncertainty", "tta": "flips"}
    exact = predict(network, image, **options)
    coarse = predict(network, image, dtype=np.dtype(np.uint8), **options)
    assert coarse.dtype == np.uint8
    np.testing.assert_allclose(coarse / 255, exact, atol=0.5 / 255 + 1e-6)
    assert 0 < exact.max() <= 0.5


def test_one_answer_has_no_deviation():
    with pytest.raises(UserError, match=r"here there is: 1; give tta=flips or an ensemble"):
        predict(shaken(SmallBlock()), grey((2, 12, 11)), save="uncertainty")
    for consensus in CONSENSUS:
        check_answers("probability", consensus, 1)
    with pytest.raises(UserError, match="no such consensus: 'vote'; choose one of mean, median"):
        check_answers("mask", "vote", 3)
