"""The dock widget: an image is predicted, its instances are chosen, measured, corrected and saved."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from napari.layers import Image, Labels, Points
from napari.utils.notifications import show_warning
from qtpy.QtWidgets import QFormLayout, QTabWidget, QVBoxLayout, QWidget

from mitoseg.errors import UserError
from mitoseg.segmentation import Labelling, Sources, measure_instances
from mitoseg.tables import write_table
from mitoseg.viewers.napari_plugin import computing
from mitoseg.viewers.napari_plugin.computing import Outcome, make_sources, measure_again, middle, number, predict
from mitoseg.viewers.napari_plugin.jobs import Progress, TaskBar, showing_mistakes
from mitoseg.viewers.napari_plugin.layers import (
    KEY,
    LABELS,
    Layer,
    ask_path,
    fitting_volume,
    is_probability,
    labels_array,
    layer_volume,
    layer_voxel_size,
    probability_style,
    same_place,
    save_volume,
    voxels_of_points,
)
from mitoseg.viewers.napari_plugin.panels import InstancePanel, LayerChoice, PredictPanel, VoxelSizeField
from mitoseg.volumes import ArrayVolume, VoxelSize
from mitoseg.volumes.opening import written_suffixes

SEEDS = "seed points"
DIGITS = 9  # of floats in tables, as of `mitoseg measure`


class Segmenter(QWidget):
    """The panels and what their buttons do; napari makes one for a viewer."""

    def __init__(self, napari_viewer: Any) -> None:  # noqa: ANN401 (napari's viewer has no stubs here)
        super().__init__()
        self.viewer = napari_viewer
        self.image = LayerChoice(napari_viewer, Image, lambda layer: not is_probability(layer))
        self.voxel_size = VoxelSizeField()
        self.tasks = TaskBar()
        self.predicting = PredictPanel(self.run_prediction, self.run_numbering)
        self.instances = InstancePanel(LayerChoice(napari_viewer, Labels))
        self.chooser = Chooser(napari_viewer, self.instances)
        self.image.chosen.connect(lambda: self.voxel_size.take(self.image.layer))
        self.tasks.running.connect(self._rest)
        self._connect_buttons()
        self._lay_out()
        self.voxel_size.take(self.image.layer)

    def _connect_buttons(self) -> None:
        panel = self.instances
        actions = (
            (panel.measure, self.measure), (panel.save_table, self.save_table), (panel.merge, self.merge),
            (panel.delete, self.delete), (panel.undo, self.undo), (panel.split_necks, self.split_necks),
            (panel.add_seeds, self.add_seeds), (panel.split_seeds, self.split_seeds),
            (panel.save_labels, self.save_labels),
        )  # fmt: skip
        for button, action in actions:
            button.clicked.connect(action)
        panel.labels.chosen.connect(lambda: panel.table.replace(pd.DataFrame()))

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Image", self.image)
        form.addRow("Voxels (nm)", self.voxel_size)
        self.tabs = QTabWidget()
        self.tabs.addTab(self.predicting, "Predict")
        self.tabs.addTab(self.instances, "Measure and correct")
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addWidget(self.tabs, 1)
        layout.addWidget(self.tasks)
        self.setMinimumWidth(340)

    @showing_mistakes
    def run_prediction(self) -> None:
        """Predict the chosen image; layers of probabilities and of instances follow."""
        layer, choice = self.image.layer, self.predicting.choice
        volume = layer_volume(layer, self.voxel_size.value)
        self.tasks.start(lambda progress: predict(volume, choice, progress), lambda outcome: self._add(layer, outcome))

    @showing_mistakes
    def run_numbering(self) -> None:
        """New instances of probabilities that are there."""
        layer = self.probability()
        if layer is None:
            raise UserError("there is no layer of probabilities", None, "predict first")
        volume, options = layer_volume(layer, self.voxel_size.value), self.predicting.numbering
        about, threshold = dict(volume.info.metadata), self.predicting.least
        about.setdefault("threshold", 0.5)

        def job(progress: Any) -> Any:  # noqa: ANN401 (see `TaskBar.start`)
            probability_zyx = volume.read().astype(np.float32) / np.float32(about.get("scale") or 1.0)
            return number(probability_zyx, about, options, volume.voxel_size, threshold=threshold, progress=progress)

        self.tasks.start(job, lambda found: self._add_instances(layer, *found))

    def probability(self) -> Layer | None:
        """The layer that the viewer has selected, if it holds probabilities, else the topmost one that does."""
        layers = [self.viewer.layers.selection.active, *reversed(self.viewer.layers)]
        return next((one for one in layers if isinstance(one, Image) and is_probability(one)), None)

    def _add(self, image: Layer, outcome: Outcome) -> str:
        options = {**same_place(image), **probability_style(), "metadata": {KEY: outcome.probability}}
        layer = self.viewer.add_image(outcome.probability_zyx, name=f"{image.name} probability", **options)
        for note in outcome.notes:
            show_warning(note)
        said = self._add_instances(layer, outcome.instances_zyx, outcome.instances, name=image.name)
        layer.visible = False
        return said

    def _add_instances(self, like: Layer, instances_zyx: Any, about: dict[str, Any], name: str = "") -> str:  # noqa: ANN401
        name = name or like.name.removesuffix(" probability")
        layer = self.viewer.add_labels(
            instances_zyx, name=f"{name} instances", opacity=0.5, metadata={KEY: about}, **same_place(like)
        )
        self.instances.labels.choose(layer)
        count = int(instances_zyx.max(initial=0))
        return f"{count} mitochondria, threshold {about['threshold']:.3f}"

    def _rest(self, running: bool) -> None:
        panel = self.instances
        for widget in (
            *(self.predicting.predict, self.predicting.number, panel.measure, panel.merge, panel.delete, panel.undo),
            *(panel.split_necks, panel.split_seeds, panel.save_labels),
        ):
            widget.setEnabled(not running)

    @property
    def layer(self) -> Layer | None:
        """The labels layer that is corrected."""
        return self.instances.labels.layer

    @property
    def labels_size(self) -> VoxelSize | None:
        """The voxel size of the labels: the layer's, else what the user typed, else None."""
        own = None if self.layer is None else layer_voxel_size(self.layer)
        return own or self.voxel_size.value

    @showing_mistakes
    def measure(self) -> None:
        """Measure all instances in the background."""
        sources = self._sources()
        self.tasks.start(
            lambda progress: measure_instances(sources, on_part=lambda share: progress(share, "measuring")), self._show
        )

    @showing_mistakes
    def save_table(self) -> None:
        """Save all columns."""
        table = self.instances.table.table
        if not len(table):
            raise UserError("there is no table", None, "measure first")
        path = ask_path(self, "Save the table", "Tables (*.csv)", ".csv")
        if path is not None:
            write_table(Path(path), table, overwrite=True, digits=DIGITS)
            self.tasks.status.setText(f"{len(table)} rows written to {path}")

    @showing_mistakes
    def save_labels(self) -> None:
        """Save the layer."""
        layer, labels_zyx = self.layer, labels_array(self.layer)
        assert layer is not None
        about = {"kind": "instances", **layer.metadata.get(KEY, {})}
        if labels_zyx.max(initial=0) > 1:
            about["kind"] = "instances"
        formats = f"Volumes ({' '.join(f'*{suffix}' for suffix in written_suffixes(LABELS.name))})"
        path = ask_path(self, "Save the labels", formats, ".tif")
        if path is not None:
            volume = ArrayVolume(labels_zyx, self.labels_size, layer.name)
            self.tasks.start(
                lambda _: save_volume(path, volume, about, overwrite=True),
                lambda _: f"labels written to {path}",
            )

    @showing_mistakes
    def merge(self) -> None:
        """The chosen instances become one."""
        ids = self.instances.ids.ids
        self._apply(computing.merge(labels_array(self.layer), ids), [min(ids, default=0)])

    @showing_mistakes
    def delete(self) -> None:
        """The chosen instances become background."""
        self._apply(computing.delete(labels_array(self.layer), self.instances.ids.ids), [])

    @showing_mistakes
    def split_necks(self) -> None:
        """Cut the chosen instances at their necks."""
        labelling = Labelling(split=True, neck=self.instances.neck.value())
        arguments = (labels_array(self.layer), self.instances.ids.ids, self._lengths(), labelling)
        self._cut(partial(computing.split_necks, *arguments))

    @showing_mistakes
    def split_seeds(self) -> None:
        """Cut what holds seed points."""
        labels_zyx = labels_array(self.layer)
        layers = (self.viewer.layers.selection.active, *reversed(self.viewer.layers))
        points = next((one for one in layers if isinstance(one, Points)), None)
        if points is None:
            raise UserError("there are no seed points", None, "press “Seed points”, then place one in each part")
        arguments = (labels_zyx, voxels_of_points(points, self.layer), self._lengths())
        self._cut(partial(computing.split_seeds, *arguments), points)

    @showing_mistakes
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

    @showing_mistakes
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
        self.tasks.status.setText("undone")
        self._measure_again(changed)

    def _cut(self, find: Callable[[], computing.Edit], points: Layer | None = None) -> None:
        """Cut in the background, and take seed points away when that is done."""

        def job(progress: Progress) -> computing.Edit:
            progress(0.0, "cutting")
            return find()

        def apply(edit: computing.Edit) -> str:
            if points is not None:
                points.data = np.empty((0, 3))
            return self._apply(edit, sorted(edit.changed))

        self.tasks.start(job, apply)

    def _apply(self, edit: computing.Edit, chosen: list[int]) -> str:
        """Change the layer, so that its own undo takes it back, and bring the table up to date."""
        layer = self.layer
        assert layer is not None
        layer.data_setitem(edit.index, edit.values)
        layer.metadata.setdefault(KEY, {})["corrected"] = True
        self.chooser.choose(chosen)
        said = f"corrected: {', '.join(map(str, sorted(edit.changed)))}"
        self.tasks.status.setText(said)
        self._measure_again(edit.changed)
        return said

    def _measure_again(self, changed: frozenset[int] | set[int]) -> None:
        """Measure the rows of what was changed, if there is a table."""
        table = self.instances.table.table
        if not len(table):
            return
        sources = self._sources()

        def job(progress: Progress) -> pd.DataFrame:
            progress(0.1, "measuring what was changed")
            return measure_again(table, sources, changed)

        self.tasks.start(job, self._show)

    def _sources(self) -> Sources:
        labels_zyx = labels_array(self.layer)
        each = (fitting_volume(one, labels_zyx.shape) for one in (self.image.layer, self.probability()))
        return make_sources(labels_zyx, self.labels_size, *each)

    def _show(self, table: pd.DataFrame) -> str:
        self.instances.table.replace(table)
        self.instances.table.select(self.instances.ids.ids)
        return f"{len(table)} instances measured"

    def _lengths(self) -> VoxelSize:
        """The voxel size for cutting, which needs it."""
        size = self.labels_size
        if size is None:
            raise UserError("splitting needs the voxel size", None, "fill in the field “Voxels (nm)”")
        return size

    def closeEvent(self, event: Any) -> None:  # noqa: N802, ANN401 (Qt's own)
        """Qt's: what runs is stopped."""
        self.tasks.stop()
        super().closeEvent(event)


class Chooser:
    """Which instances are chosen: by rows of the table, clicks in the viewer, or typed numbers; all show the same."""

    def __init__(self, viewer: Any, panel: InstancePanel) -> None:  # noqa: ANN401 (napari's viewer has no stubs here)
        self.viewer, self.panel = viewer, panel
        panel.table.chosen.connect(self._selected)
        panel.ids.editingFinished.connect(self._typed)
        panel.pick.toggled.connect(self._listen)
        panel.alone.toggled.connect(self._show_alone)

    def choose(self, ids: list[int]) -> None:
        """Choose instances, wherever the choice is shown."""
        self.panel.ids.show_ids(ids)
        self.panel.table.select(ids)

    def centre(self, ids: list[int]) -> None:
        """Bring the last of some instances into the middle of the view."""
        layer = self.panel.labels.layer
        if layer is None or not ids or layer.multiscale or not isinstance(layer.data, np.ndarray):
            return
        layer.selected_label = ids[-1]
        at = middle(layer.data, ids[-1])
        if at is not None:
            world = layer.data_to_world(at)
            self.viewer.dims.point = world
            getattr(self.viewer, "scene", self.viewer).camera.center = tuple(world)  # a scene's from napari 0.9 on

    def _selected(self, ids: list[int]) -> None:
        self.panel.ids.show_ids(ids)
        self.centre(ids)

    @showing_mistakes
    def _typed(self) -> None:
        self.panel.table.select(self.panel.ids.ids)
        self.centre(self.panel.ids.ids)

    def _show_alone(self, alone: bool) -> None:
        if self.panel.labels.layer is not None:
            self.panel.labels.layer.show_selected_label = alone

    def _listen(self, on: bool) -> None:
        """Heed clicks in the viewer, or no longer."""
        callbacks, layer = self.viewer.mouse_drag_callbacks, self.panel.labels.layer
        if on and layer is not None:
            layer.mode = "pan_zoom"
            self.viewer.layers.selection.active = layer
        if on:
            callbacks.append(self.clicked)
        elif self.clicked in callbacks:
            callbacks.remove(self.clicked)

    def clicked(self, viewer: Any, event: Any) -> None:  # noqa: ANN401 (napari's own)
        """Choose the instance under the mouse, or let it go."""
        layer = self.panel.labels.layer
        if layer is None or event.button != 1:
            return
        where = {"view_direction": event.view_direction, "dims_displayed": list(event.dims_displayed)}
        value = layer.get_value(event.position, world=True, **where)
        if value:
            before = self.panel.ids.ids
            self.panel.ids.show_ids([n for n in before if n != value] if value in before else [*before, int(value)])
            layer.selected_label = int(value)
            self.panel.table.select(self.panel.ids.ids)
