"""From volumes to training batches: positions, labels, class balance, augmentation, the LightningDataModules."""

from mitoseg.sampling.bank import VolumeBank
from mitoseg.sampling.datamodule import BlockDataModule, RegionDataModule, SlabLoader, TileDataModule, data_module
from mitoseg.sampling.domains import DomainDataModule
from mitoseg.sampling.draws import BlockSampler

__all__ = [
    "BlockDataModule",
    "BlockSampler",
    "DomainDataModule",
    "RegionDataModule",
    "SlabLoader",
    "TileDataModule",
    "VolumeBank",
    "data_module",
]
