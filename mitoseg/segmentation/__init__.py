"""From probabilities to masks and shapes: arrays in, arrays out."""

from mitoseg.segmentation.exporting import export_meshes, export_skeletons
from mitoseg.segmentation.meshes import Mesh, mesh_object
from mitoseg.segmentation.postprocess import Postprocess
from mitoseg.segmentation.skeletons import Skeleton, skeletonize

__all__ = ["Mesh", "Postprocess", "Skeleton", "export_meshes", "export_skeletons", "mesh_object", "skeletonize"]
