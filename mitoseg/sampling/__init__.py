"""Volumes to training batches: positions, labels, balance, rotation, the LightningDataModules."""

from mitoseg.sampling.bank import VolumeBank
from mitoseg.sampling.choice import data_module
from mitoseg.sampling.draws import BlockLoader, BlockSampler, Draws, EpochDraws, TileLoader
from mitoseg.sampling.module import BlockDataModule
from mitoseg.sampling.positions import BlockRule, PositionTable
from mitoseg.sampling.regions import RegionDataModule, SlabLoader, SliceLoader
from mitoseg.sampling.tile_bank import EpochTiles, TileBank, TileDraws
from mitoseg.sampling.tile_module import TileDataModule

__all__ = [
    "BlockDataModule",
    "BlockLoader",
    "BlockRule",
    "BlockSampler",
    "Draws",
    "EpochDraws",
    "EpochTiles",
    "PositionTable",
    "RegionDataModule",
    "SlabLoader",
    "SliceLoader",
    "TileBank",
    "TileDataModule",
    "TileDraws",
    "TileLoader",
    "VolumeBank",
    "data_module",
]
