"""What the methods answer, that scores lie where their windows are, and that nothing depends on the tiles."""

import numpy as np
import pytest
import torch
from small_networks import NORMALIZATION, SmallBlock, SmallUNet, grey, predict, shaken
from torch import nn

from mitoseg.errors import UserError
from mitoseg.geometry import anchor
from mitoseg.inference import Options, choose_method, log_odds_in_memory, make_method
from mitoseg.inference.methods import starts
from mitoseg.networks import ContextCNN, PatchCNN, UNet

SHAPE = (4, 21, 26)
TILES = [SHAPE, (1, 21, 26), (2, 16, 16), (3, 7, 11)]


def literal_window(network, image_zyx, ndim, z, y, x, channels=(0,)):
    """The network on one window, cut from the reflected image by hand."""
    pad, window = 2 * network.window, network.window
    depth = len(image_zyx)
    normal = (image_zyx.astype(np.float32) - np.float32(120)) / np.float32(60)
    low = [p - anchor(window) + pad for p in (z, y, x)]
    if ndim == 3:
        padded = np.pad(normal, pad, mode="reflect")
        cut = padded[tuple(slice(a, a + window) for a in low)][None, None]
    else:
        neighbours = [z + c if 0 <= z + c < depth else z for c in channels]
        padded = np.pad(normal[neighbours], ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
        cut = padded[:, low[1] : low[1] + window, low[2] : low[2] + window][None]
    with torch.inference_mode():
        background, foreground = network(torch.from_numpy(np.ascontiguousarray(cut))).flatten()
    return float(foreground - background)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", ["dense", "window"])
def test_every_voxel_is_answered_by_its_own_window(ndim, method):
    network, image = shaken(SmallBlock(ndim)), grey((9, 13, 12))
    result = predict(network, image, (4, 8, 8), method=method)
    corners = [(0, 0, 0), (8, 12, 11), (8, 0, 11), (4, 6, 7), (3, 12, 1)]
    expected = [literal_window(network, image, ndim, *p) for p in corners]
    np.testing.assert_allclose([result[p] for p in corners], expected, rtol=0, atol=1e-5)


def test_neighbouring_slices_are_the_channels():
    network, image = shaken(SmallBlock(2, in_channels=3)), grey((5, 12, 13))
    result = predict(network, image, (2, 8, 8), channels="adjacent")
    for p in [(0, 0, 0), (4, 11, 12), (2, 6, 6)]:
        assert result[p] == pytest.approx(literal_window(network, image, 2, *p, channels=(-1, 0, 1)), abs=1e-5)


@pytest.mark.parametrize("tta", ["none", "flips", "turns", "all", "axes"])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", ["dense", "strided", "window"])
def test_the_tile_does_not_matter_to_the_last_bit(method, ndim, tta):
    network, image = shaken(SmallBlock(ndim)), grey((9, 21, 26))
    if (ndim == 3 and tta in ("turns", "all")) or (method == "window" and tta not in ("none", "flips")):
        pytest.skip("covered by the faster ones")
    results = [predict(network, image, tile, method=method, tta=tta) for tile in TILES]
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("network_class", [PatchCNN, ContextCNN])
@pytest.mark.parametrize("method", ["dense", "strided"])
def test_the_tile_does_not_matter_to_the_papers_network(network_class, method):
    network, image = shaken(network_class(3)), grey((3, 90, 101))
    whole = predict(network, image, image.shape, "adjacent", method=method)
    for tile in [(1, 90, 101), (2, 48, 64), (1, 37, 41)]:
        np.testing.assert_array_equal(predict(network, image, tile, "adjacent", method=method), whole)


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_a_window_with_a_stride_is_answered_there_and_linear_between(stride):
    network, image = shaken(SmallBlock()), grey((2, 23, 31))
    every = predict(network, image, method="window")
    some = predict(network, image, (1, 9, 10), method="window", window_stride=stride)
    np.testing.assert_allclose(some[:, ::stride, ::stride], every[:, ::stride, ::stride], rtol=0, atol=1e-6)
    between = (some[:, 0, 0] * (stride - 1) + some[:, 0, stride]) / stride
    np.testing.assert_allclose(some[:, 0, 1], between, rtol=0, atol=1e-6)


def test_strided_is_dense_where_it_answers():
    for network in (shaken(SmallBlock()), shaken(SmallBlock(padding=1))):
        image = grey((2, 23, 31))
        dense, strided = (predict(network, image, (1, 8, 16), method=m) for m in ("dense", "strided"))
        np.testing.assert_allclose(strided[:, ::2, ::2], dense[:, ::2, ::2], rtol=0, atol=1e-6)
        assert np.abs(strided - dense).max() > 1e-3


@pytest.mark.parametrize("ndim", [2, 3])
def test_blend_does_not_depend_on_what_is_computed_together(ndim):
    network, image = shaken(SmallUNet(ndim)), grey((9, 21, 26))
    results = [predict(network, image, tile, tile=(4, 8, 12)) for tile in TILES]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=0, atol=1e-5)


def test_blend_gives_a_network_of_one_pixel_back_unchanged():
    network = torch.nn.Conv2d(1, 2, 1).eval()
    network.in_channels = 1
    image = grey((3, 30, 33))
    result = predict(network, image, tile=(1, 16, 8), overlap=0.3)
    weight, bias = network.weight.detach().numpy()[:, 0, 0, 0], network.bias.detach().numpy()
    expected = (image.astype(np.float32) - 120) / 60 * (weight[1] - weight[0]) + bias[1] - bias[0]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5)


def test_turning_the_volume_turns_the_augmented_result():
    network, image = shaken(SmallBlock()), grey((3, 16, 18))
    result = predict(network, image, tta="turns")
    turned = predict(network, np.ascontiguousarray(np.rot90(image, axes=(1, 2))), tta="turns")
    np.testing.assert_allclose(turned, np.rot90(result, axes=(1, 2)), rtol=0, atol=1e-5)
    assert np.abs(result - predict(network, image)).max() > 1e-3


def test_whole_slices_in_memory_are_predicted_alike():
    network, image = shaken(SmallBlock()), grey((2, 19, 22))
    normal = torch.from_numpy(NORMALIZATION.apply(image))[:, None]
    with torch.inference_mode():
        for method in ("dense", "strided"):
            together = log_odds_in_memory(method, network, normal).numpy()
            np.testing.assert_allclose(together, predict(network, image, method=method), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "method", "shape", "what"),
    [
        (SmallBlock(), "blend", SHAPE, "does not fit a block network"),
        (SmallUNet(), "dense", SHAPE, "needs a block network"),
        (SmallUNet(), "window", SHAPE, "needs a block network"),
        (SmallBlock(), "sliding", SHAPE, "no such method"),
        *((SmallBlock(), m, (4, 7, 26), "smaller than the network's window") for m in ("dense", "strided", "window")),
        (SmallBlock(3), "dense", (4, 21, 26), "volume is smaller than the network's window"),
        (SmallUNet(3), "auto", (1, 21, 26), "the image is one slice"),
    ],
)
def test_a_misfit_is_one_line(network, method, shape, what):
    with pytest.raises(UserError, match=what):
        make_method(network, shape, Options(method=method))


def test_the_last_tile_of_an_axis_ends_where_the_axis_ends():
    assert [starts(length, 4, 0.5) for length in (10, 9, 3)] == [[0, 2, 4, 6], [0, 2, 4, 5], [0]]
    assert [choose_method("auto", network) for network in (SmallBlock(), SmallUNet())] == ["dense", "blend"]


@pytest.mark.parametrize("options", [{"window_stride": 0}, {"tile": (1, 0, 5)}, {"tile": (1, 5)}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UserError, match=r"window_stride|tile"):
        Options(**options)


@pytest.mark.parametrize(
    ("network", "bad", "options", "what"),
    [
        (torch.nn.Conv2d(1, 2, 3), 0, {"tile": (1, 16, 16)}, "scores of the size of the tile"),
        (SmallBlock(), np.nan, {}, "NaN"),
        (SmallBlock(), 0, {"channels": "adjacent"}, "takes 1 channels"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(network, bad, options, what):
    image = np.zeros((2, 20, 20), np.float32)
    image[1, 4, 4] = bad
    with pytest.raises(UserError, match=what):
        predict(network.eval(), image, **options)


@pytest.mark.parametrize(
    "dtype", ["uint8", "uint16", "int16", "uint32", "int64", "float16", "float32", "float64", "bool"]
)
def test_every_type_of_voxels_is_normalised_alike(dtype):
    network, image = shaken(SmallBlock()), (grey((1, 12, 12)) % 2).astype(dtype)
    expected = predict(network, image.astype(np.uint8))
    np.testing.assert_allclose(predict(network, image), expected, rtol=0, atol=1e-5)


class WindowMean(nn.Module):
    """A stand-in network: its foreground score is the mean of the window."""

    stride, spill, in_channels = 8, (0, 0), 1

    def __init__(self, window):
        super().__init__()
        self.window = window
        self.pool, self.unused = nn.AvgPool2d(window, self.stride), nn.Conv2d(1, 1, 1)  # whose axes are the network's

    def forward(self, image_bcyx):
        mean = self.pool(image_bcyx[:, :1])
        return torch.cat([torch.zeros_like(mean), mean], 1)


def strided_means(window, image_yx):
    """Log-odds (y, x) of that network by the method strided."""
    return log_odds_in_memory("strided", WindowMean(window), torch.from_numpy(image_yx)[None, None])[0].numpy()


@pytest.mark.parametrize("window", [32, 67])
@pytest.mark.parametrize("shape", [(96, 128), (97, 131), (70, 101)])
def test_each_answered_pixel_has_its_own_window(window, shape):
    image = np.random.default_rng(0).random(shape)
    log_odds = strided_means(window, image)
    assert log_odds.shape == shape
    pad = 2 * window
    padded = np.pad(image, pad, mode="reflect")
    for y in range(0, shape[0], 8):
        for x in range(0, shape[1], 8):
            top, left = y - anchor(window) + pad, x - anchor(window) + pad
            expected = padded[top : top + window, left : left + window].mean()
            assert log_odds[y, x] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(log_odds[8, 16:25], np.linspace(log_odds[8, 16], log_odds[8, 24], 9), atol=1e-6)


@pytest.mark.parametrize("window", [32, 67])
@pytest.mark.parametrize("corner", [(40, 40), (96, 120), (140, 204)])
def test_a_bright_spot_is_found_where_it_is(window, corner):
    """At both edges and in the middle, over all phases of the stride, the response has no offset.

    A window of 32 answers the pixel right of its centre, so its response leans by half a pixel.
    """
    errors = []
    for phase in range(8):
        spot = np.add(corner, phase)
        image = np.zeros((192, 256))
        image[tuple(spot)] = 1
        log_odds = strided_means(window, image)
        weights = log_odds / log_odds.sum()
        errors.append([(weights * index).sum() for index in np.indices(image.shape)] - spot)
    lean = 0.5 if window == 32 else 0
    np.testing.assert_allclose(np.mean(errors, axis=0), lean, atol=0.01)


@pytest.mark.parametrize("network_class", [PatchCNN, ContextCNN])
def test_each_output_is_the_network_on_its_own_neighbourhood(network_class):
    """What a far part of the slice holds does not matter, and the placement is that of the window."""
    torch.manual_seed(0)
    network = network_class(1).double().eval()
    image = torch.randn(1, 1, 200, 216, dtype=torch.float64)
    with torch.inference_mode():
        log_odds = log_odds_in_memory("strided", network, image)[0]
        for y, x in [(96, 96), (104, 120)]:
            before, after = network.spill
            top, left = (p - anchor(network.window) - 16 for p in (y, x))
            size = network.window + 16 + 24
            assert before <= 16
            assert after <= 24
            crop = image[..., top : top + size, left : left + size]
            scores = network(crop)[0, :, 2, 2]  # two outputs in: its field lies inside the crop
            expected = (scores[1] - scores[0]).float()
            torch.testing.assert_close(log_odds[y, x], expected, rtol=0, atol=1e-6)


def test_context_cnn_equals_the_literal_window_up_to_the_corner():
    torch.manual_seed(0)
    network = ContextCNN(1).double().eval()
    image = np.random.default_rng(0).normal(size=(80, 97))
    padded = np.pad(image, 80, mode="reflect")
    with torch.inference_mode():
        log_odds = log_odds_in_memory("strided", network, torch.from_numpy(image)[None, None])[0]
        for y in (0, 8, 40, 72):
            for x in (0, 48, 96):
                window = padded[y - 33 + 80 : y + 34 + 80, x - 33 + 80 : x + 34 + 80]
                scores = network(torch.from_numpy(window.copy())[None, None])[0, :, 0, 0]
                torch.testing.assert_close(log_odds[y, x], (scores[1] - scores[0]).float(), rtol=0, atol=1e-6)


def test_between_answered_pixels_the_log_odds_are_linear():
    image = np.random.default_rng(0).random((64, 64))
    log_odds = log_odds_in_memory("strided", WindowMean(32), torch.from_numpy(image)[None, None])[0].numpy()
    np.testing.assert_allclose(log_odds[8, 16:25], np.linspace(log_odds[8, 16], log_odds[8, 24], 9), atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "shape", "tile"),
    [
        ("batch", (3, 70, 1500), (1, 128, 256)),
        ("batch", (3, 40, 60), (1, 64, 64)),
        ("instance", (3, 40, 60), (1, 256, 256)),
    ],
)
def test_a_slice_within_a_tile_is_whole_unless_the_network_normalises_over_it(norm, shape, tile):
    network = UNet(
        spatial_dims=2, in_channels=1, filters=[4, 8, 8], strides=[2, 2], norm=norm, tile=[1, 256, 256]
    ).eval()
    assert make_method(network, shape, Options()).tile == tile
    assert make_method(network, shape, Options(tile=(1, 32, 48))).tile == (1, 32, 48)
