"""From probabilities to masks: arrays in, arrays out."""

from mitoseg.segmentation.postprocess import Postprocess

__all__ = ["Postprocess"]
