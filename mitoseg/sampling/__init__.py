"""Volumes to training batches: positions, labels, balance, rotation, the LightningDataModules."""

from mitoseg.sampling.bank import TileBank, VolumeBank
from mitoseg.sampling.datamodule import (
    BlockDataModule,
    RegionDataModule,
    SlabLoader,
    SliceLoader,
    TileDataModule,
    data_module,
)
from mitoseg.sampling.draws import BlockSampler, EpochDraws, EpochLoader, EpochTiles
from mitoseg.sampling.positions import BlockRule, PositionTable

__all__ = [
    "BlockDataModule",
    "BlockRule",
    "BlockSampler",
    "EpochDraws",
    "EpochLoader",
    "EpochTiles",
    "PositionTable",
    "RegionDataModule",
    "SlabLoader",
    "SliceLoader",
    "TileBank",
    "TileDataModule",
    "VolumeBank",
    "data_module",
]
