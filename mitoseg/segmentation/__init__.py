"""From probabilities to masks, instances and shapes: arrays and volumes in, arrays and volumes out."""

from mitoseg.segmentation.exporting import export_meshes, export_skeletons
from mitoseg.segmentation.instances import InstanceVolume
from mitoseg.segmentation.labelling import label_array, label_volume, write_instances
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.segmentation.objects import Objects
from mitoseg.segmentation.options import Labelling
from mitoseg.segmentation.postprocess import Postprocess
from mitoseg.segmentation.skeletons import Skeleton, skeletonize

__all__ = [
    "InstanceVolume",
    "Labelling",
    "Mesh",
    "Objects",
    "Postprocess",
    "Skeleton",
    "export_meshes",
    "export_skeletons",
    "label_array",
    "label_volume",
    "mesh_object",
    "skeletonize",
    "write_instances",
]
