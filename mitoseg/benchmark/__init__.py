"""The abstract's table: every method on the same voxels, with the same scores."""

from mitoseg.benchmark.methods import Estimator, Method, Source, open_source, read_methods

__all__ = ["Estimator", "Method", "Source", "open_source", "read_methods"]
