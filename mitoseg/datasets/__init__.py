"""Named public data, your own volumes, and the synthetic phantom, each as a recipe that yields labelled splits."""

from mitoseg.datasets.base import IGNORE, Recipe, Region, Splits
from mitoseg.datasets.files import Files
from mitoseg.datasets.lucchi import Lucchi, LucchiPP
from mitoseg.datasets.phantom import Phantom
from mitoseg.datasets.splitting import fold_slabs, split_slabs
from mitoseg.datasets.vnc import Vnc

__all__ = [
    "IGNORE",
    "Files",
    "Lucchi",
    "LucchiPP",
    "Phantom",
    "Recipe",
    "Region",
    "Splits",
    "Vnc",
    "fold_slabs",
    "split_slabs",
]
