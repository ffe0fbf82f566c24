"""From probabilities to masks and instances: arrays and volumes in, arrays and volumes out."""

from mitoseg.segmentation.instances import InstanceVolume
from mitoseg.segmentation.labelling import label_array, label_volume, write_instances
from mitoseg.segmentation.objects import Objects
from mitoseg.segmentation.options import Labelling
from mitoseg.segmentation.postprocess import Postprocess

__all__ = ["InstanceVolume", "Labelling", "Objects", "Postprocess", "label_array", "label_volume", "write_instances"]
