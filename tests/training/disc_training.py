"""A training run in miniature: bright discs on noise, the datamodule, module and Trainer of a test."""

import numpy as np
import pytorch_lightning as pl
import torch

from mitoseg.datasets import Region, Splits
from mitoseg.geometry import Box
from mitoseg.networks import PatchCNN
from mitoseg.sampling import BlockDataModule
from mitoseg.training import SegmentationModule, adamw, one_cycle
from mitoseg.training.checkpointing import BestCheckpoint, LastCheckpoint
from mitoseg.volumes import ArrayVolume

CONFIG = {"_target_": "mitoseg.networks.PatchCNN", "in_channels": 3, "classes": 2}


class Discs:
    """Bright discs on noise: easy, so that a few steps show."""

    def prepare(self):
        pass

    def splits(self):
        rng = np.random.default_rng(0)
        y, x = np.indices((96, 128))
        label = np.zeros((8, 96, 128), np.uint8)
        for cy, cx in [(30, 30), (60, 90), (80, 20), (20, 110)]:
            label[:, (y - cy) ** 2 + (x - cx) ** 2 < 12**2] = 1
        image = (60 * label + rng.integers(50, 110, label.shape)).astype(np.uint8)
        volumes = ArrayVolume(image, (5, 5, 5)), ArrayVolume(label, (5, 5, 5))
        parts = (Box((0, 0, 0), (4, 96, 128)), Box((5, 0, 0), (8, 96, 128)))
        return Splits(*((Region(*volumes, box),) for box in parts), voxel_size=(5.0, 5.0, 5.0))


def datamodule(**options):
    given = {
        "label_rule": "center",
        "positions": "any",
        "balance": "subsample",
        "epoch_blocks": 1200,
        "batch_size": 40,
    } | options
    return BlockDataModule(Discs, **given)


def checkpoints(folder):
    return [BestCheckpoint(folder), LastCheckpoint(folder)]


def trainer(folder, **options):
    given = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "callbacks": checkpoints(folder),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    } | options
    return pl.Trainer(**given)


def module(lr=2e-3, network=None, schedule=False, optimizer=adamw, **options):
    torch.manual_seed(0)
    return SegmentationModule(
        network or PatchCNN(),
        CONFIG,
        optimizer=lambda network: optimizer(network, lr=lr),
        scheduler=one_cycle if schedule else None,
        **options,
    )
