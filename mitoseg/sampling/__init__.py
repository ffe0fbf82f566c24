"""Volumes to training batches: positions, labels, balance, rotation, the LightningDataModules."""

from mitoseg.sampling.bank import VolumeBank
from mitoseg.sampling.datamodule import BlockDataModule, TileDataModule, data_module
from mitoseg.sampling.draws import BlockSampler, EpochDraws, EpochLoader
from mitoseg.sampling.positions import BlockRule, PositionTable
from mitoseg.sampling.regions import RegionDataModule, SlabLoader, SliceLoader
from mitoseg.sampling.tile_bank import EpochTiles, TileBank

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
