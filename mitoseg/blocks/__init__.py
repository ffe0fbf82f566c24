"""Volumes to training batches: positions, labels, balance, rotation, the LightningDataModules."""

from mitoseg.blocks.bank import VolumeBank
from mitoseg.blocks.choice import data_module
from mitoseg.blocks.draws import Draws, EpochDraws
from mitoseg.blocks.loaders import BlockLoader, TileLoader
from mitoseg.blocks.module import BlockDataModule
from mitoseg.blocks.positions import BlockRule, PositionTable
from mitoseg.blocks.regions import RegionDataModule
from mitoseg.blocks.sampler import BlockSampler
from mitoseg.blocks.tile_bank import TileBank
from mitoseg.blocks.tile_draws import EpochTiles, TileDraws
from mitoseg.blocks.tile_module import TileDataModule
from mitoseg.blocks.validation import SlabLoader, SliceLoader

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
