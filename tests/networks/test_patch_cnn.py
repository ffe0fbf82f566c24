"""The block CNNs against a forward pass written out in numpy."""

import numpy as np
import pytest
import torch

from mitoseg.networks import ContextCNN, PatchCNN


def convolve(x_cyx, weight, bias, pad):
    x = np.pad(x_cyx, ((0, 0), (pad, pad), (pad, pad)))
    k = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))
    return np.einsum("cyxij,ocij->oyx", windows, weight) + bias[:, None, None]


def pool(x_cyx, kind, pad):
    """3x3, stride 2, padded at the bottom and right only; an average divides by the number of real cells."""
    x = np.pad(x_cyx, ((0, 0), (0, pad), (0, pad)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return (np.nanmax if kind == "max" else np.nanmean)(windows, axis=(-1, -2))


def forward(parameters, x_cyx, padded):
    pad, edge = (2, 1) if padded else (0, 0)
    p = {name: value.detach().numpy() for name, value in parameters.items()}

    def conv(x, name, pad):
        return convolve(x, p[f"layers.{name}.weight"], p[f"layers.{name}.bias"], pad)

    def relu(x):
        return np.maximum(x, 0)

    x = relu(pool(conv(x_cyx, "conv1", pad), "max", edge))
    x = pool(relu(conv(x, "conv2", pad)), "mean", edge)
    x = pool(relu(conv(x, "conv3", pad)), "mean", edge)
    return conv(relu(conv(x, "conv4", 0)), "fc", 0)


@pytest.mark.parametrize(
    ("network_class", "size"), [(PatchCNN, (32, 32)), (PatchCNN, (64, 48)), (ContextCNN, (67, 75))]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_numpy(network_class, size, channels):
    torch.manual_seed(0)
    network = network_class(channels).double()
    with torch.no_grad():  # biases other than zero, so that a forgotten one shows
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    x = torch.randn(1, channels, *size, dtype=torch.float64)
    expected = forward(dict(network.named_parameters()), x[0].numpy(), network_class is PatchCNN)
    np.testing.assert_allclose(network(x)[0].detach().numpy(), expected, atol=1e-10)


def test_initialisation():
    for network_class in (PatchCNN, ContextCNN):
        assert [sum(p.numel() for p in network_class(n).parameters()) for n in (3, 1)] == [145_058, 143_458]
    torch.manual_seed(0)
    for name, parameter in PatchCNN().named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            std = 0.01 if "conv1" in name else 0.05
            assert parameter.std().item() == pytest.approx(std, rel=0.15)
            assert abs(parameter.mean().item()) < 4 * std / parameter.numel() ** 0.5


def test_whole_image_of_context_cnn_equals_each_window():
    torch.manual_seed(1)
    network = ContextCNN().double()
    image = torch.randn(1, 3, 67 + 24, 67 + 16, dtype=torch.float64)
    whole = network(image)[0]
    assert whole.shape == (2, 4, 3)
    for i in range(4):
        for j in range(3):
            alone = network(image[..., 8 * i : 8 * i + 67, 8 * j : 8 * j + 67])[0, :, 0, 0]
            torch.testing.assert_close(whole[:, i, j], alone, rtol=0, atol=1e-12)


def test_what_an_output_of_patch_cnn_sees_in_an_image():
    """Output i depends on pixels 8i-14 .. 8i+52, as `spill` says."""
    torch.manual_seed(2)
    network = PatchCNN(1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()  # no ReLU is ever closed
    image = torch.rand(1, 1, 160, 160, dtype=torch.float64, requires_grad=True)
    network(image)[0, 1, 5, 6].backward()
    assert image.grad is not None
    rows, columns = (image.grad[0, 0].abs().sum(axis).nonzero().flatten() for axis in (1, 0))
    before, after = PatchCNN.spill
    assert (before, after) == (14, 21)
    # A maximum takes one pixel of its nine, so the outermost may have no gradient in one draw.
    assert 40 - before <= rows.min() <= 40 - before + 2
    assert 40 + 31 + after - 2 <= rows.max() <= 40 + 31 + after
    assert 48 - before <= columns.min() <= 48 - before + 2
    assert 48 + 31 + after - 2 <= columns.max() <= 48 + 31 + after
