"""Meshes as files: PLY and OBJ with one object each, GLB with all of them, named and coloured."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.extras import import_extra
from mitoseg.segmentation.meshes import Mesh

Colour = tuple[float, float, float]

ONE_EACH = ("ply", "obj")
"""Formats that hold one object in a file."""
FORMATS = (*ONE_EACH, "glb")
"""All that can be written."""

_GOLDEN = 0.618033988749895


def colour_of(number: int) -> Colour:
    """The colour of an instance, the same in every file and picture; neighbouring numbers look different.

    Hues step by the golden ratio, which fills the circle evenly for any count of them.

    >>> colour_of(1) == colour_of(1), colour_of(1) == colour_of(2)
    (True, False)
    """
    hue = number * _GOLDEN % 1
    saturation, value = (0.55, 0.75, 0.65)[number % 3], (0.95, 0.85, 0.9)[number % 3]
    return colorsys.hsv_to_rgb(hue, saturation, value)


def write_mesh(path: Path, mesh: Mesh, number: int) -> None:
    """Write one object, PLY (binary, little-endian, float32) or OBJ (text), by the suffix.

    Args:
        path: The file; it is not written atomically, see `mitoseg.segmentation.exporting`.
        mesh: In nm.
        number: Of the instance, for its colour (PLY).

    Raises:
        UserError: The library that writes is not installed.
    """
    trimesh = import_extra("trimesh", "trimesh", "mesh")
    body = _body(trimesh, mesh)
    if path.suffix == ".obj":
        body.export(path, file_type="obj", include_color=False, include_normals=False, header=f"instance {number}, nm")
        return
    body.visual.vertex_colors = _bytes(colour_of(number))
    body.export(path, file_type="ply", encoding="binary", vertex_normal=False)


def write_scene(path: Path, meshes: Mapping[int, Mesh]) -> None:
    """Write all objects as one binary glTF 2.0 file: a node and a mesh for each, named by its number, with its colour.

    Vertices are float32, in nm: glTF itself speaks of metres, so a viewer may want a scale of 0.001 or less.

    Raises:
        UserError: The library that writes is not installed.
    """
    trimesh = import_extra("trimesh", "trimesh", "mesh")
    scene = trimesh.Scene(metadata={"unit": "nm"})
    for number, mesh in meshes.items():
        body, name = _body(trimesh, mesh), str(number)
        material = trimesh.visual.material.PBRMaterial(
            name=name, baseColorFactor=_bytes(colour_of(number)), metallicFactor=0.0, roughnessFactor=0.6
        )
        body.visual = trimesh.visual.TextureVisuals(material=material)
        scene.add_geometry(body, node_name=name, geom_name=name)
    scene.export(path, file_type="glb", include_normals=True)


def _body(trimesh: Any, mesh: Mesh) -> Any:  # noqa: ANN401 (an optional library without types)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


def _bytes(colour: Colour) -> list[int]:
    return [*(int(np.round(255 * part)) for part in colour), 255]
