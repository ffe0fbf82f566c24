"""The volume predicted along each of its axes."""

import math

import numpy as np
import pytest
import torch
from small_networks import NORMALIZATION, Memory, SmallBlock, SmallUNet, grey, predict, shaken

from mitoseg.errors import UserError
from mitoseg.geometry import tiles
from mitoseg.inference import Prediction, Predictor
from mitoseg.inference.views import symmetries
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
    cost = working.sizing.network_bytes(plenty) + working.sizing.buffer_bytes(plenty)
    little = working.choose_tile(cost / 5)
    assert math.prod(little) < math.prod(plenty)
    assert max(little) <= 2.5 * min(little)


def test_views_along_other_axes_count_as_much_work():
    image = grey((40, 40, 40))
    once, thrice = (
        predictor(shaken(SmallBlock()), image, tta=tta).operations((40, 40, 40)) for tta in ("none", "axes")
    )
    assert thrice == pytest.approx(3 * once)


def test_voxels_that_are_not_cubic_are_refused(adjacent, caplog):
    image = grey(SHAPE)
    with pytest.raises(UserError, match="needs cubic voxels"):
        predictor(adjacent, image, (30, 4, 4), "adjacent", tta="axes")
    with pytest.raises(UserError, match="needs cubic voxels"):
        predictor(adjacent, image, None, "adjacent", tta="axes", voxel_size=(30, 4, 4))
    assert predictor(adjacent, image, None, "adjacent", tta="axes").views
    assert "takes the voxels as cubic" in caplog.text


def test_a_volume_too_thin_to_lie_on_its_side_is_told(adjacent):
    with pytest.raises(UserError, match=r"smaller than the network's window: \(16, 5\)"):
        predictor(adjacent, grey((5, 12, 16)), channels="adjacent", tta="axes")
