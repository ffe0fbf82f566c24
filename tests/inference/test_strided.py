"""Scores lie where their windows are."""

import numpy as np
import pytest
import torch
from torch import nn

from mitoseg.geometry import anchor
from mitoseg.inference import log_odds_in_memory
from mitoseg.networks import ContextCNN, PatchCNN


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


def window_mean_at(image_yx, y, x, window):
    """The mean of the window that answers pixel (y, x), on the reflected image."""
    pad = 2 * window
    padded = np.pad(image_yx, pad, mode="reflect")
    top, left = y - anchor(window) + pad, x - anchor(window) + pad
    return padded[top : top + window, left : left + window].mean()


@pytest.mark.parametrize("window", [32, 67])
@pytest.mark.parametrize("shape", [(96, 128), (97, 131), (70, 101)])
def test_each_answered_pixel_has_its_own_window(window, shape):
    image = np.random.default_rng(0).random(shape)
    log_odds = log_odds_in_memory("strided", WindowMean(window), torch.from_numpy(image)[None, None])[0].numpy()
    assert log_odds.shape == shape
    for y in range(0, shape[0], 8):
        for x in range(0, shape[1], 8):
            assert log_odds[y, x] == pytest.approx(window_mean_at(image, y, x, window), abs=1e-6)


def centroid(image_yx):
    weights = image_yx / image_yx.sum()
    return np.array([(weights * index).sum() for index in np.indices(image_yx.shape)])


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
        log_odds = log_odds_in_memory("strided", WindowMean(window), torch.from_numpy(image)[None, None])[0].numpy()
        errors.append(centroid(log_odds) - spot)
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
