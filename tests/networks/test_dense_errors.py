"""What has no dense form is refused, with what, the value and the remedy."""

import pytest
import torch
from torch import nn

from mitoseg.errors import UserError
from mitoseg.networks import DenseForm


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (nn.GroupNorm(1, 3), "normalises"),
        (nn.InstanceNorm2d(3), "normalises"),
        (nn.LayerNorm(3), "normalises"),
        (nn.AdaptiveAvgPool2d(1), "pools the whole image"),
        (nn.AdaptiveMaxPool3d(1), "pools the whole image"),
        (nn.ConvTranspose2d(3, 3, 2), "enlarges"),
        (nn.Upsample(scale_factor=2), "enlarges"),
        (nn.Flatten(), "convolution with kernel 1"),
        (nn.Linear(3, 3), "convolution with kernel 1"),
        (nn.Bilinear(3, 3, 3), "Bilinear"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (nn.BatchNorm2d(3, track_running_stats=False), "track_running_stats"),
        (nn.Softmax(-1), "dim=1"),
        (nn.Conv3d(3, 3, 1), "2D and 3D"),
        (nn.MaxPool3d(2), "2D and 3D"),
        (type("Residual", (nn.Sequential,), {"forward": lambda self, x: x})(), "Residual"),
        (type("Special", (nn.Conv2d,), {})(3, 3, 1), "Special"),
    ],
)
def test_a_layer_without_a_dense_form(bad, name):
    with pytest.raises(UserError, match=name):
        DenseForm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.ReLU(), bad)))


def test_a_network_without_a_dense_form():
    with pytest.raises(UserError, match="without a convolution"):
        DenseForm(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)))
    with pytest.raises(UserError, match=r"Conv2d.*Sequential"):
        DenseForm(nn.Conv2d(1, 1, 1))
    hooked = nn.Sequential(nn.Conv2d(1, 1, 1))
    hooked[0].register_forward_pre_hook(lambda module, args: None)
    with pytest.raises(UserError, match="hooks"):
        DenseForm(hooked)


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ((2, 20, 20), "B, C, Y, X"),
        ((1, 2, 4, 20, 20), "axes"),
        ((1, 3, 20, 20), "channels"),
        ((1, 2, 20, 11), "(12, 12)"),
    ],
)
def test_an_image_that_does_not_fit(shape, name):
    with pytest.raises(UserError) as error:
        DenseForm(nn.Sequential(nn.Conv2d(2, 1, 4), nn.MaxPool2d(3), nn.Conv2d(1, 1, 3)))(torch.zeros(shape))
    assert name in str(error.value)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.Dropout(), nn.RReLU()])
def test_training_mode(layer):
    network = nn.Sequential(nn.Conv2d(1, 3, 1), layer)
    dense = DenseForm(network)
    assert dense.training
    with pytest.raises(UserError, match=type(layer).__name__):
        dense(torch.zeros(1, 1, 4, 4))
    assert dense.eval()(torch.zeros(1, 1, 4, 4)).shape == (1, 3, 4, 4)
    assert not network.training
    network.train()
    with pytest.raises(UserError, match="training"):
        dense(torch.zeros(1, 1, 4, 4))
