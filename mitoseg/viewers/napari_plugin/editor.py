"""What the buttons of the instance panel do: measuring, correcting, saving."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from napari.layers import Points

from mitoseg.errors import UserError
from mitoseg.segmentation import Labelling, Sources
from mitoseg.viewers.napari_plugin import correcting
from mitoseg.viewers.napari_plugin.asking import ask_path
from mitoseg.viewers.napari_plugin.choosing import Chooser
from mitoseg.viewers.napari_plugin.jobs import Tell
from mitoseg.viewers.napari_plugin.layer_data import KEY
from mitoseg.viewers.napari_plugin.layers import (
    Layer,
    fitting_volume,
    labels_array,
    layer_voxel_size,
    same_place,
    voxels_of_points,
)
from mitoseg.viewers.napari_plugin.lazy import LayerVolume
from mitoseg.viewers.napari_plugin.measuring import make_sources, measure, measure_again
from mitoseg.viewers.napari_plugin.messages import told
from mitoseg.viewers.napari_plugin.saving import FORMATS, save_table, save_volume
from mitoseg.volumes import VoxelSize

if TYPE_CHECKING:
    from mitoseg.viewers.napari_plugin.widget import Segmenter

SEEDS = "seed points"


class Editor:
    """See the module.

    Args:
        window: Whose panel it serves.
    """

    def __init__(self, window: Segmenter) -> None:
        self.window, self.viewer, self.panel = window, window.viewer, window.instances
        panel, self.chooser = self.panel, Chooser(window.viewer, window.instances)
        actions = (
            (panel.measure, self.measure), (panel.save_table, self.save_table), (panel.merge, self.merge),
            (panel.delete, self.delete), (panel.undo, self.undo), (panel.split_necks, self.split_necks),
            (panel.add_seeds, self.add_seeds), (panel.split_seeds, self.split_seeds),
            (panel.save_labels, self.save_labels),
        )  # fmt: skip
        for button, action in actions:
            button.clicked.connect(action)
        panel.labels.chosen.connect(self._other_layer)

    @property
    def layer(self) -> Layer | None:
        """The labels layer that is corrected."""
        return self.panel.labels.layer

    @property
    def voxel_size(self) -> VoxelSize | None:
        """The layer's, else what the user typed, else None."""
        own = None if self.layer is None else layer_voxel_size(self.layer)
        return own or self.window.voxel_size.value

    @told
    def measure(self) -> None:
        """Measure all instances in the background."""
        self.window.tasks.start(partial(measure, self._sources()), self._show)

    @told
    def save_table(self) -> None:
        """Save all columns."""
        table = self.panel.table.table
        if not len(table):
            raise UserError("there is no table", None, "measure first")
        path = ask_path(self.window, "Save the table", "Tables (*.csv)", ".csv")
        if path is not None:
            save_table(path, table, overwrite=True)
            self.window.tasks.status.setText(f"{len(table)} rows written to {path}")

    @told
    def save_labels(self) -> None:
        """Save the layer."""
        layer, labels_zyx = self.layer, labels_array(self.layer)
        assert layer is not None
        about = {"kind": "instances", **layer.metadata.get(KEY, {})}
        if labels_zyx.max(initial=0) > 1:
            about["kind"] = "instances"
        path = ask_path(self.window, "Save the labels", FORMATS, ".tif")
        if path is not None:
            volume = LayerVolume(labels_zyx, self.voxel_size, layer.name)
            self.window.tasks.start(
                lambda tell: save_volume(path, volume, about, overwrite=True), lambda _: f"labels written to {path}"
            )

    @told
    def merge(self) -> None:
        """The chosen instances become one."""
        ids = self.chooser.ids
        self._apply(correcting.merge(labels_array(self.layer), ids), [min(ids, default=0)])

    @told
    def delete(self) -> None:
        """The chosen instances become background."""
        self._apply(correcting.delete(labels_array(self.layer), self.chooser.ids), [])

    @told
    def split_necks(self) -> None:
        """Cut the chosen instances at their necks."""
        words = (labels_array(self.layer), self.chooser.ids, self._lengths(), self._labelling())
        self._cut(partial(correcting.split_necks, *words))

    @told
    def split_seeds(self) -> None:
        """Cut what holds seed points."""
        labels_zyx, points = labels_array(self.layer), self._seeds()
        words = (labels_zyx, voxels_of_points(points, self.layer), self._lengths())
        self._cut(partial(correcting.split_seeds, *words), points)

    @told
    def add_seeds(self) -> None:
        """A layer to click seed points into, or the one that is there."""
        labels_zyx, layer = labels_array(self.layer), self.layer
        found = [one for one in self.viewer.layers if isinstance(one, Points) and one.name.startswith(SEEDS)]
        if found:
            points = found[-1]
        else:
            style = {"size": max(3, min(12, max(labels_zyx.shape) // 60)), "face_color": "yellow"}
            points = self.viewer.add_points(np.empty((0, 3)), ndim=3, name=SEEDS, **style, **same_place(layer))
        self.viewer.layers.selection.active = points
        points.mode = "add"

    @told
    def undo(self) -> None:
        """Take back the last change of the layer, whoever made it."""
        labels_zyx = labels_array(self.layer)
        before_zyx = labels_zyx.copy()
        assert self.layer is not None
        self.layer.undo()
        differs = before_zyx != labels_zyx
        if not differs.any():
            raise UserError("nothing to undo", None, "the layer is as it was")
        changed = {*np.unique(before_zyx[differs]).tolist(), *np.unique(labels_zyx[differs]).tolist()} - {0}
        self.window.tasks.status.setText("undone")
        self._measure_again(changed)

    def _cut(self, find: Callable[[], correcting.Edit], points: Layer | None = None) -> None:
        """Cut in the background, and take seed points away when that is done."""

        def job(tell: Tell) -> correcting.Edit:
            tell(0.0, "cutting")
            return find()

        def apply(edit: correcting.Edit) -> str:
            if points is not None:
                points.data = np.empty((0, 3))
            return self._apply(edit, sorted(edit.changed))

        self.window.tasks.start(job, apply)

    def _apply(self, edit: correcting.Edit, chosen: list[int]) -> str:
        """Change the layer, so that its own undo takes it back, and bring the table up to date."""
        layer = self.layer
        assert layer is not None
        layer.data_setitem(edit.index, edit.values)
        layer.metadata.setdefault(KEY, {})["corrected"] = True
        self.chooser.choose(chosen)
        said = f"corrected: {', '.join(map(str, sorted(edit.changed)))}"
        self.window.tasks.status.setText(said)
        self._measure_again(edit.changed)
        return said

    def _measure_again(self, changed: frozenset[int] | set[int]) -> None:
        """Measure the rows of what was changed, if there is a table."""
        table = self.panel.table.table
        if len(table):
            job = partial(self._changed_table, table, self._sources(), changed)
            self.window.tasks.start(job, self._show)

    @staticmethod
    def _changed_table(
        table: pd.DataFrame, sources: Sources, changed: frozenset[int] | set[int], tell: Callable[..., None]
    ) -> pd.DataFrame:
        tell(0.1, "measuring what was changed")
        return measure_again(table, sources, changed)

    def _sources(self) -> Sources:
        labels_zyx = labels_array(self.layer)
        image = self.window.image.layer
        probability = self.window.probability()
        each = (fitting_volume(one, labels_zyx.shape) for one in (image, probability))
        return make_sources(labels_zyx, self.voxel_size, *each)

    def _show(self, table: pd.DataFrame) -> str:
        self.panel.table.replace(table)
        self.panel.table.select(self.chooser.ids)
        return f"{len(table)} instances measured"

    def _labelling(self) -> Labelling:
        return Labelling(split=True, neck=self.panel.neck.value())

    def _lengths(self) -> VoxelSize:
        """The voxel size for cutting.

        Raises:
            UserError: It is not known.
        """
        size = self.voxel_size
        if size is None:
            raise UserError("cutting needs the voxel size", None, "fill in the field “Voxels (nm)”")
        return size

    def _seeds(self) -> Layer:
        """The points layer that the user looks at, else the topmost.

        Raises:
            UserError: There is none.
        """
        for one in (self.viewer.layers.selection.active, *reversed(self.viewer.layers)):
            if isinstance(one, Points):
                return one
        raise UserError("there are no seed points", None, "press “Seed points”, then click one into each part")

    def _other_layer(self) -> None:
        self.panel.table.replace(pd.DataFrame())
