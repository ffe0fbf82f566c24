"""From probabilities to masks, and from instances to what they measure: arrays in, arrays and tables out."""

from mitoseg.segmentation.morphometry import Sources, measure_instances
from mitoseg.segmentation.postprocess import Postprocess
from mitoseg.segmentation.summary import summarise

__all__ = ["Postprocess", "Sources", "measure_instances", "summarise"]
