"""The foreground JAC that is expected without labels: high where a network is sure and consistent, low elsewhere."""

import numpy as np
import pytest
import torch
from torch import nn

from mitoseg.geometry import Box
from mitoseg.inference import Prediction, Predictor
from mitoseg.inference.confidence import FIELDS, SIDE, choose_fields, examine, expected_jaccard
from mitoseg.metrics import Calibration
from mitoseg.volumes import ArrayVolume, Normalization


class Grey(nn.Module):
    """Scores of single pixels: the darker, the more foreground; ``sure`` is the steepness."""

    classes, in_channels, multiple, tile = 2, 1, (1, 1), (1, 64, 64)

    def __init__(self, sure):
        super().__init__()
        self.scores = nn.Conv2d(1, 2, 1)
        self.scores.weight.data = torch.tensor([0.0, -sure]).view(2, 1, 1, 1)
        self.scores.bias.data.zero_()

    def forward(self, image):
        return self.scores(image)


class FineDots(Grey):
    """Finds only what is darker than its neighbours, which depends on the pixel size."""

    def forward(self, image):
        around = nn.functional.avg_pool2d(image, 3, 1, 1)
        return super().forward(image - around)


def discs(side=512, depth=2):
    yx = np.indices((side, side)) % 64 - 32
    image = np.where((yx**2).sum(0) < 20**2, 60, 180).astype(np.uint8)
    return np.repeat(image[None], depth, axis=0)


def expect(network, image, noise=0):
    image = np.clip(image + np.random.default_rng(0).normal(0, noise, image.shape), 0, 255).astype(np.uint8)
    prediction = Prediction(network.eval(), Normalization(120.0, 60.0), "single", Calibration(), 0.5, method="blend")
    return expected_jaccard(examine(Predictor(prediction, ArrayVolume(image, (5.0, 5.0, 5.0)))))


def test_a_sure_and_consistent_network_is_trusted_and_others_are_not():
    assert expect(Grey(30), discs()) > 0.9
    assert expect(Grey(0.5), discs()) < 0.5, "unsure"
    assert expect(FineDots(60), np.full((2, 512, 512), 120), noise=40) < 0.7, "other pixels, other mask"
    assert expect(Grey(30), np.full((2, 300, 300), 200)) is None, "nothing found"
    assert expected_jaccard([]) is None


@pytest.mark.parametrize("shape", [(1, 100, 90), (3, 800, 2000), (200, 1500, 1500)])
def test_fields_are_spread_and_distinct(shape):
    volume = ArrayVolume(np.broadcast_to(np.uint8(0), shape))
    found = choose_fields(volume, 1)
    assert len(found) == len(set(found)) <= FIELDS[1]
    assert all(
        volume.check_box(box) == box and box.shape[1:] == (min(SIDE, shape[1]), min(SIDE, shape[2])) for box in found
    )
    if shape[1] > SIDE:
        assert len(found) >= FIELDS[0]
        assert np.ptp([box.start for box in found], axis=0)[1:] == pytest.approx(np.array(shape[1:]) - SIDE, rel=0.5)


def test_padding_is_not_judged():
    class Margin:
        def find(self, box):
            inside = np.zeros(box.shape, bool)
            inside[..., max(0, 600 - box.start[2]) :] = True
            return inside

    volume = ArrayVolume(np.broadcast_to(np.uint8(0), (4, 400, 4000)))
    volume.padding = Margin()
    assert all(box.start[2] < 600 for box in choose_fields(volume, 1))
    assert isinstance(choose_fields(volume, 1)[0], Box)
