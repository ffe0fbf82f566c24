"""What is shown, and how: layers from the bottom up, colours, and where one begins to look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import neuroglancer
import numpy as np

from mitoseg.viewers.neuroglancer.levels import Level, Levels, open_levels
from mitoseg.viewers.neuroglancer.served import ServedVolume, space
from mitoseg.viewers.neuroglancer.surfaces import Surfaces, fits_memory
from mitoseg.viewers.samples import percentiles, sample
from mitoseg.viewers.shown import Shown
from mitoseg.volumes import ArrayVolume, LabelVolume, Volume, VoxelSize
from mitoseg.volumes.labels import choose_rule
from mitoseg.volumes.masks import MaskVolume
from mitoseg.volumes.survey import survey_labels

DARKEST, BRIGHTEST = 0.5, 99.5
"""Percentiles of a sample of the image that are shown as black and as white."""
MOST_SEGMENTS = 1000
"""Instances whose surfaces are shown from the beginning: the largest."""
PANEL = (500, 320)
"""Pixels of a panel, across and down, that the volume fills at first."""
COARSEST_VIEW = 4.0
"""Voxels to a pixel at first, at most: more would read much of a large volume at once."""
TILTED = (0.46, 0.3, 0.13, 0.82)
"""Quaternion (x, y, z, w) of the view in 3D: from above and aside."""
COLOURS = {"probability": "#ff3b30", "uncertainty": "#ffb000", "mask": "#ff7a1a", "truth": "#2fbf71"}
OVERLAY = 0.35

GREY = """#uicontrol invlerp grey
void main() { emitGrayscale(grey()); }
"""
TINTED = """#uicontrol invlerp value
#uicontrol vec3 colour color(default="%s")
#uicontrol float least slider(min=0, max=1, default=0, step=0.01)
void main() {
  float v = value();
  emitRGBA(vec4(colour, v < least ? 0.0 : v));
}
"""


def make_scene(shown: Shown, *, surfaces: bool = True) -> neuroglancer.ViewerState:
    """What a browser shows at first.

    A probability brings the mask of its threshold, which is made while it is read. Of several results only the last
    in the order probability, mask, instances is switched on; truth is switched off.

    Args:
        shown: The volumes.
        surfaces: Whether instances get surfaces in 3D.

    Raises:
        UserError: A file is damaged, or instances are no such.
    """
    levels = {kind: open_levels(volume, shown.axes.get(volume.path)) for kind, volume in shown.volumes.items()}
    if "probability" in levels and "mask" not in levels:
        levels["mask"] = _thresholded(levels["probability"])
    on_top = next((kind for kind in ("instances", "mask", "probability") if kind in shown.volumes), None)
    state = neuroglancer.ViewerState()
    state.title = " ".join(dict.fromkeys(Path(volume.path).name for volume in shown.volumes.values()))
    for kind in ("image", "probability", "uncertainty", "mask", "instances", "truth"):
        if kind not in levels:
            continue
        layer = _layer(kind, levels[kind], shown.voxel_size, surfaces=surfaces)
        state.layers.append(name=kind, layer=layer, visible=kind in {"image", on_top} or len(levels) == 1)
    _look(state, shown)
    return state


def _look(state: neuroglancer.ViewerState, shown: Shown) -> None:
    """Look at the middle, so that a slice fills its panel."""
    smallest = min(shown.voxel_size)
    z, y, x = (n * size / smallest for n, size in zip(shown.shape, shown.voxel_size, strict=True))
    whole = max(x / PANEL[0], y / PANEL[1], z / PANEL[1])
    state.dimensions = space(shown.voxel_size)
    state.position = [n // 2 + 0.5 for n in shown.shape[::-1]]
    state.cross_section_scale = min(whole, COARSEST_VIEW)
    state.projection_scale = 1.2 * max(z, y, x)
    state.projection_orientation = TILTED
    state.layout = "4panel"
    state.cross_section_background_color = "#000000"
    state.hide_cross_section_background_3d = True
    state.show_slices = whole <= COARSEST_VIEW


def _layer(kind: str, levels: list[Level], size: VoxelSize, *, surfaces: bool) -> neuroglancer.Layer:
    if kind in ("image", "probability", "uncertainty"):
        return _picture(kind, levels, size)
    if kind == "truth":
        levels = _truth(levels)
    return _segments(kind, Levels(levels, labels=True), size, surfaces=surfaces and kind == "instances")


def _picture(kind: str, levels: list[Level], size: VoxelSize) -> neuroglancer.ImageLayer:
    """Grey values in grey, or a share from 0 to 1 as a tint that is the denser the larger it is."""
    volume = levels[0].volume
    source = _source(ServedVolume(Levels(levels, labels=False), size, labels=False), "default", "bounds")
    if kind == "image":
        low, high = percentiles(sample(volume), DARKEST, BRIGHTEST)
        return neuroglancer.ImageLayer(
            source=source, shader=GREY, shader_controls={"grey": {"range": [low, high]}}, opacity=1.0
        )
    controls = {"value": {"range": [0.0, full_scale(volume)]}}
    return neuroglancer.ImageLayer(
        source=source, shader=TINTED % COLOURS[kind], shader_controls=controls, opacity=0.6, blend="default"
    )


def _segments(kind: str, levels: Levels, size: VoxelSize, *, surfaces: bool) -> neuroglancer.SegmentationLayer:
    made = Surfaces(levels, size) if surfaces and levels.finest.dtype.kind in "iu" else None
    source = ServedVolume(levels, size, labels=True, surfaces=made)
    layer = neuroglancer.SegmentationLayer(
        source=_source(source, "default", *(["meshes"] if made else [])), selected_alpha=OVERLAY
    )
    if kind in COLOURS and source.data_type == "uint8":
        layer.segment_colors = {1: COLOURS[kind]}
    if made is not None and fits_memory(levels.finest.shape):
        layer.segments = made.largest(MOST_SEGMENTS)
        layer.not_selected_alpha = OVERLAY / 2
    return layer


def _source(volume: ServedVolume, *parts: str) -> neuroglancer.LayerDataSource:
    """A volume with some of what the browser makes of one: voxels (default), a frame (bounds), surfaces (meshes)."""
    return neuroglancer.LayerDataSource(
        url=volume, subsources=dict.fromkeys(parts, True), enable_default_subsources=False
    )


def full_scale(volume: Volume) -> float:
    """The stored value of probability 1."""
    stored = 1.0 if volume.dtype.kind in "fb" else float(np.iinfo(volume.dtype).max)
    return float(volume.info.metadata.get("scale") or stored)


def _thresholded(levels: list[Level]) -> list[Level]:
    """The mask of a probability, by the threshold in its metadata."""
    volume = levels[0].volume
    threshold = volume.info.metadata.get("threshold")
    least = (0.5 if threshold is None else float(threshold)) * full_scale(volume)
    return _each(levels, lambda one: MaskVolume(one, lambda values: values >= least))


def _truth(levels: list[Level]) -> list[Level]:
    """Labels as numbers, or as one mask where they do not number; told from a sample."""
    values = sample(levels[0].volume, side=1024)
    if values.dtype.kind in "if" and values.min() < 0:
        return levels
    rule = choose_rule(survey_labels(ArrayVolume(values)), "auto", levels[0].volume.path)
    return levels if rule.numbered else _each(levels, lambda one: LabelVolume(one, rule, None))


def _each(levels: list[Level], change: Callable[[Volume], Volume]) -> list[Level]:
    return [replace(level, volume=change(level.volume)) for level in levels]
