"""Volumes to training batches: positions, labels, balance, rotation, the LightningDataModule."""

from mitoseg.blocks.bank import VolumeBank
from mitoseg.blocks.draws import Draws, EpochDraws
from mitoseg.blocks.loaders import BlockLoader, SliceLoader
from mitoseg.blocks.module import BlockDataModule
from mitoseg.blocks.positions import BlockRule, PositionTable
from mitoseg.blocks.sampler import BlockSampler

__all__ = [
    "BlockDataModule",
    "BlockLoader",
    "BlockRule",
    "BlockSampler",
    "Draws",
    "EpochDraws",
    "PositionTable",
    "SliceLoader",
    "VolumeBank",
]
