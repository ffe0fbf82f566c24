"""The abstract's table: every method on the same voxels, with the same scores.

estimator.py   what a method that is no network must offer
methods.py     which methods, and the options that a result depends on
data.py        the split, opened without what only training needs
fitting.py     one estimator: fit, tune, predict
networks.py    one checkpoint: where it comes from, predict
measure.py     time and memory
records.py     how a method stands in a benchmark's folder
rows.py        records and published figures as rows; table.py writes them
picture.py     the same crop under every method
"""

from mitoseg.benchmark.estimator import Estimator
from mitoseg.benchmark.methods import Method, Source, open_source, read_methods

__all__ = ["Estimator", "Method", "Source", "open_source", "read_methods"]
