"""Small models to export, and what prediction says of a volume with them."""

import numpy as np
import torch

from mitoseg.inference import predict_volume
from mitoseg.inference.prepare import make_prediction
from mitoseg.networks import ContextCNN, Ensemble, PatchCNN, UNet
from mitoseg.networks.checkpoint import Model
from mitoseg.volumes import CHANNEL_OFFSETS, ArrayVolume
from mitoseg.volumes.base import ArrayWriter

CALIBRATION = {"prior_shift": -0.3, "temperature": 10.0, "bias": 0.2}
"""Of a temperature that keeps the answers of random weights away from 0 and 1."""


def model_of(network, channels="single", *, seed=0, **changes):
    """A model with weights that are always the same and a calibration that changes something."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in [] if isinstance(network, UNet) else network.parameters():
        parameter.data = 2 * torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5
    known = {
        "normalization": {"mean": 120.0, "std": 60.0},
        "calibration": CALIBRATION,
        "voxel_size": (5.0, 5.0, 5.0),
        "threshold": 0.4,
        "record": {"version": "0"},
        **changes,
    }
    name = f"mitoseg.networks.{type(network).__name__}"
    return Model(network=network.eval(), config={"_target_": name}, channels=channels, **known)


def block_model(kind="PatchCNN", channels="adjacent"):
    """A model of one of the block networks."""
    network = {"PatchCNN": PatchCNN, "ContextCNN": ContextCNN}[kind]
    return model_of(network(len(CHANNEL_OFFSETS[channels])), channels)


def unet_model(ndim=2, channels="single", **arguments):
    """A model of a small U-Net, whose BatchNorm has seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(ndim, len(CHANNEL_OFFSETS[channels]), filters=[4, 8, 8], strides=[2, 2], **arguments)
    model = model_of(network, channels)
    with torch.no_grad():
        network.train()(torch.randn(2, network.in_channels, *[32] * ndim, generator=torch.Generator().manual_seed(1)))
    network.eval()
    return model


def ensemble_model():
    """Two block networks that saw other grey values."""
    members = [
        {
            "name": "mitoseg.networks.PatchCNN",
            "arguments": {"in_channels": 1},
            "normalization": {"mean": mean, "std": 50.0},
            "calibration": {"bias": bias},
        }
        for mean, bias in ((100.0, -0.5), (140.0, 0.3))
    ]
    return model_of(Ensemble(members, {"mean": 120.0, "std": 60.0}))


def grey_volume(shape, seed=0):
    """Blurred noise, uint8."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), (0.5, 2, 2))
    return np.clip(120 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)


def predicted(model, image_zyx, method="auto", box=None, **options):
    """What ``mitoseg predict`` writes, or a box of it."""
    kept = ArrayWriter(image_zyx.shape if box is None else box.shape)
    kept.array_zyx[:] = np.nan
    prediction = make_prediction(model, method=method, accelerator="cpu", precision="fp32", **options)
    predict_volume(prediction, ArrayVolume(image_zyx), kept, box=box)
    assert np.isfinite(kept.array_zyx).all()
    return kept.array_zyx
