"""Named public data, your own volumes, and the synthetic phantom, each as a recipe that yields labelled splits."""

from mitoseg.datasets.base import IGNORE, Recipe, Region, Splits
from mitoseg.datasets.domains import Domains
from mitoseg.datasets.files import Files
from mitoseg.datasets.phantom import Phantom
from mitoseg.datasets.published import Lucchi, LucchiPP, Vnc

__all__ = [
    "IGNORE",
    "Domains",
    "Files",
    "Lucchi",
    "LucchiPP",
    "Phantom",
    "Recipe",
    "Region",
    "Splits",
    "Vnc",
]
