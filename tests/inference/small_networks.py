"""Small networks for the tests of prediction."""

import numpy as np
import torch
from torch import nn

from mitoseg.inference import Prediction, predict_volume
from mitoseg.metrics import Calibration
from mitoseg.networks import Ensemble
from mitoseg.volumes import ArrayVolume, Normalization

NORMALIZATION = Normalization(120.0, 60.0)


def shaken(network, seed=0):
    """A network in eval mode, the same for the same seed, whose scores differ from pixel to pixel."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        fan_in = parameter[0].numel()
        parameter.data = 1.5 * torch.randn(parameter.shape, generator=generator) / fan_in**0.5
    return network.eval()


class SmallBlock(nn.Module):
    """A block network of a few layers; 2D or 3D, padded or not."""

    def __init__(self, ndim=2, in_channels=1, padding=0):
        super().__init__()
        convolution, maximum = (nn.Conv2d, nn.MaxPool2d) if ndim == 2 else (nn.Conv3d, nn.MaxPool3d)
        self.in_channels = in_channels
        self.window, self.stride, self.spill = (8, 2, (0, 0)) if not padding else (6, 2, (1, 1))
        self.layers = nn.Sequential(
            convolution(in_channels, 4, 3, padding=padding),
            nn.ReLU(),
            maximum(2, 2),
            convolution(4, 2, 3),
        )

    def forward(self, image):
        return self.layers(image)


class SmallUNet(nn.Module):
    """A network that answers a whole tile; what it sees depends on where the tile lies."""

    def __init__(self, ndim=2, in_channels=1):
        super().__init__()
        convolution, average = (nn.Conv2d, nn.AvgPool2d) if ndim == 2 else (nn.Conv3d, nn.AvgPool3d)
        self.fine = convolution(in_channels, 2, 5, padding=2)
        self.coarse = convolution(in_channels, 2, 3, padding=1)
        self.pool, self.up = average(4), nn.Upsample(scale_factor=4)

    def forward(self, image):
        return self.fine(image) + self.up(self.coarse(self.pool(image)))


def grey(shape, seed=0):
    """Random grey values."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Memory:
    """Takes boxes into an array; every voxel once."""

    def __init__(self, shape, dtype=np.float32):
        self.array = np.zeros(shape, dtype)
        self.written = np.zeros(shape, np.int8)

    def write(self, box, array_zyx):
        self.array[box.slices] = array_zyx
        self.written[box.slices] += 1


def predict(network, image_zyx, at_once=None, channels="single", voxel_size=(5, 5, 5), **options):
    """What a network says of a volume: log-odds, unless told otherwise; every voxel once."""
    given = {"save": "log_odds", "normalization": NORMALIZATION, "calibration": Calibration()} | options
    prediction = Prediction(network, channels=channels, threshold=0.5, **given)
    writer = Memory(image_zyx.shape, prediction.dtype)
    predict_volume(prediction, ArrayVolume(image_zyx, voxel_size), writer, tile=at_once)
    assert (writer.written == 1).all()
    return writer.array


def member(network, mean=120.0, std=60.0, **more):
    """A network of this file as the config of an ensemble's member; more: its arguments, or a calibration."""
    calibration = more.pop("calibration", {})
    name = f"{type(network).__module__}.{type(network).__name__}"
    numbers = {"normalization": {"mean": mean, "std": std}, "calibration": calibration}
    return {"name": name, "arguments": more, **numbers}


def ensemble(networks, members):
    """Networks, and the configs that `member` makes of them, as one."""
    made = Ensemble(members, {"mean": NORMALIZATION.mean, "std": NORMALIZATION.std}, trust=True)
    for part, network in zip(made.parts, networks, strict=True):
        part.network.load_state_dict(network.state_dict())
    return made.eval()
