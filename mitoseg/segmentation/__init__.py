"""From probabilities to masks, instances, shapes and measurements: arrays and volumes in, the same and tables out."""

from mitoseg.segmentation.centreline import Skeleton, skeletonize
from mitoseg.segmentation.exporting import export_meshes, export_skeletons
from mitoseg.segmentation.labelling import InstanceVolume, Labelling, label_array, label_volume, write_instances
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.segmentation.morphometry import Sources, measure_instances, summarise
from mitoseg.segmentation.postprocess import Postprocess

__all__ = [
    "InstanceVolume",
    "Labelling",
    "Mesh",
    "Postprocess",
    "Skeleton",
    "Sources",
    "export_meshes",
    "export_skeletons",
    "label_array",
    "label_volume",
    "measure_instances",
    "mesh_object",
    "skeletonize",
    "summarise",
    "write_instances",
]
