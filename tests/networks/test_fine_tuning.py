"""Weights of another run, adapted or refused; layers kept as they are."""

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from mitoseg.errors import UserError
from mitoseg.networks import ContextCNN, PatchCNN, UNet
from mitoseg.networks.checkpoint import FORMAT, KEY
from mitoseg.networks.fine_tuning import PREFIX, freeze, hold_frozen, init_from


@pytest.fixture
def save(tmp_path):
    def saved(network):
        torch.manual_seed(1)
        network.apply(lambda m: nn.init.normal_(m.weight, std=0.1) if isinstance(m, nn.Conv2d) else None)
        weights = {f"{PREFIX}{name}": value for name, value in network.state_dict().items()}
        torch.save({KEY: {"format": FORMAT, "version": "0"}, "state_dict": weights}, tmp_path / "a.ckpt")
        return tmp_path / "a.ckpt"

    return saved


def test_the_same_layers_take_every_weight(save):
    source = PatchCNN()
    path, network, other = save(source), PatchCNN(), ContextCNN()
    assert init_from(network, path)["version"] == init_from(other, path)["version"] == "0"
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(image), source(image))
    assert torch.equal(other.layers.conv3.weight, source.layers.conv3.weight)


def small_unet(channels):
    return UNet(2, channels, filters=[4, 8, 8], strides=[2, 2]).eval()  # whose first layer sees voxels as channels


@pytest.mark.parametrize(
    ("make", "before", "now"), [(PatchCNN, 3, 1), (PatchCNN, 1, 3), (small_unet, 5, 1), (small_unet, 1, 9)]
)
def test_channels_adapt_so_that_equal_slices_give_the_same_answer(make, before, now, save, caplog):
    source, network = make(before), make(now)
    init_from(network, save(source))
    image = torch.randn(2, 1, 32, 32)
    there, here = source(image.expand(-1, before, -1, -1)), network(image.expand(-1, now, -1, -1))
    assert torch.allclose(there, here, atol=1e-4)
    assert f"from {before} to {now} input channels" in caplog.text


def test_other_classes_start_the_last_layer_afresh(save, caplog):
    source, network = PatchCNN(), PatchCNN(classes=4)
    last = network.layers.fc.weight.clone()
    init_from(network, save(source))
    assert torch.equal(network.layers.fc.weight, last)
    assert torch.equal(network.layers.conv4.weight, source.layers.conv4.weight)
    assert "has 4 classes now and had 2" in caplog.text


@pytest.mark.parametrize(
    ("source", "network", "line"),
    [
        (
            PatchCNN(3),
            PatchCNN(2),
            "conv1.weight has shape .32, 3, 5, 5. there and .32, 2, 5, 5. here; channels",
        ),
        (BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)), PatchCNN(), "only this network has layers.conv1.weight"),
        (
            BasicUNet(2, 1, 2, (4, 4, 8, 8, 8, 4)),
            BasicUNet(2, 1, 2, (4, 4, 8, 8, 4, 4)),
            "has shape .* there and .* here; only channels and classes can adapt",
        ),
    ],
)
def test_what_cannot_adapt_is_refused_with_a_reason(source, network, line, save):
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(UserError, match=line):
        init_from(network, save(source))
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_frozen_layers_keep_their_weights():
    network = PatchCNN()
    assert freeze(network, ["layers.conv1", "layers.conv[23]"]) == [
        f"layers.conv{i}.{kind}" for i in (1, 2, 3) for kind in ("bias", "weight")
    ]
    before = network.layers.conv2.weight.clone()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(2, 3, 32, 32)).square().mean().backward()
    optimizer.step()
    assert torch.equal(network.layers.conv2.weight, before)
    assert network.layers.conv2.weight.grad is None
    assert network.layers.conv4.weight.grad is not None


def test_frozen_statistics_stay_too():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    freeze(network, ["0", "1"])
    hold_frozen(network.train())
    network(torch.randn(4, 1, 9, 9) + 5)
    assert network[1].running_mean.tolist() == [0, 0]
    assert network[3].running_mean.tolist() != [0, 0]


def test_mistakes_in_freeze_are_told_in_one_line():
    with pytest.raises(UserError, match=r"no such layer: 'conv9'; choose among layers\.conv1, layers\.conv2"):
        freeze(PatchCNN(), ["conv9"])
    with pytest.raises(UserError, match="nothing to train"):
        freeze(PatchCNN(), ["layers"])
    network = PatchCNN()
    assert freeze(network, []) == []
    assert all(p.requires_grad for p in network.parameters())
