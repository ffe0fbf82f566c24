"""Checkpoints of tiny networks with weights that are always the same, and the words to predict with them."""

from pathlib import Path

import tifffile
import torch
from tiny_training import command as run_command
from torch import nn

from mitoseg.geometry import Box
from mitoseg.inference.predictor import Predictor
from mitoseg.networks import PatchCNN
from mitoseg.networks.checkpoint import FORMAT, KEY
from mitoseg.volumes import create_volume


class OneConvolution(nn.Module):
    """The smallest block network: one convolution of 3 pixels; 2D or 3D."""

    stride, spill, window = 1, (0, 0), 3

    def __init__(self, in_channels=1, ndim=2):
        super().__init__()
        self.in_channels = in_channels
        self.layers = nn.Sequential((nn.Conv2d if ndim == 2 else nn.Conv3d)(in_channels, 2, 3))

    def forward(self, image):
        return self.layers(image)


class Padded(nn.Module):
    """The smallest network that answers a whole tile."""

    def __init__(self, in_channels=1, ndim=2):
        super().__init__()
        self.layer = (nn.Conv2d if ndim == 2 else nn.Conv3d)(in_channels, 2, 3, padding=1)

    def forward(self, image):
        return self.layer(image)


def save_checkpoint(path, network=None, *, arguments=None, draw=True, **changes):
    """Write a checkpoint of a network, its weights drawn anew; PatchCNN on single slices unless another is given."""
    network = network or PatchCNN(in_channels=1)
    arguments = arguments or {"in_channels": 1}
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters() if draw else ():
        parameter.data = 2 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    kind = type(network)
    package = "mitoseg.networks" if isinstance(network, PatchCNN) else kind.__module__
    record = {
        "format": FORMAT,
        "network": {"_target_": f"{package}.{kind.__name__}", **arguments},
        "normalization": {"mean": 120.0, "std": 60.0},
        "channels": "single",
        "voxel_size": [5.0, 5.0, 5.0],
        "calibration": {"prior_shift": 0.0, "temperature": 1.0, "bias": 0.0},
        "threshold": 0.5,
    }
    weights = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, KEY: record | changes}, path)
    return path


def predict(monkeypatch, *words):
    """Run the command in this process; its exit code."""
    return run_command(monkeypatch, "predict", "progress=false", "accelerator=cpu", "expect=false", *words)


def interrupt_at(patch, number):
    """Have a Ctrl-C come when the tile of that number is computed."""
    compute, seen = Predictor.compute, []

    def count(*args):
        seen.append(1)
        if len(seen) == number:
            raise KeyboardInterrupt
        return compute(*args)

    patch.setattr(Predictor, "compute", count)


def prepare(folder, monkeypatch, image=None, truth=None):
    """Make a folder the current one, with a checkpoint and, if they are given, a volume and its labels."""
    monkeypatch.chdir(folder)
    save_checkpoint("a.ckpt", OneConvolution(), arguments={"in_channels": 1})
    for name, array in (("in.tif", image), ("truth.tif", truth)):
        if array is not None:
            tif(name, array)
    return folder


def tif(path, array, **options):
    """Write a TIFF, with its folders; its path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="minisblack", **options)
    return str(path)


def write_volume(path, array_zyx, voxel_size=None, **metadata):
    """Write a volume of any format."""
    shape, kind = array_zyx.shape, array_zyx.dtype
    with create_volume(str(path), shape, kind, voxel_size=voxel_size, metadata=metadata) as writer:
        writer.write(Box.of_shape(shape), array_zyx)
