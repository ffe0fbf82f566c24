"""The dock widget: an image is predicted, its instances are chosen, measured, corrected and saved."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from napari.layers import Image, Labels, Points
from napari.utils.notifications import show_warning
from qtpy.QtWidgets import (
    QCheckBox,
    QGridLayout,
    QLabel,
    QPushButton,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from mitoseg.errors import UserError
from mitoseg.inference import METHODS
from mitoseg.segmentation import Labelling, Sources, measure_instances
from mitoseg.tables import write_table
from mitoseg.viewers.napari_plugin import computing
from mitoseg.viewers.napari_plugin.computing import Choice, Edit, Numbering, Outcome
from mitoseg.viewers.napari_plugin.fields import (
    IdsField,
    InstanceTable,
    LayerChoice,
    ModelChoice,
    VoxelSizeField,
    beside,
    button,
    choice,
    form,
    share,
)
from mitoseg.viewers.napari_plugin.jobs import Progress, TaskBar, showing_mistakes
from mitoseg.viewers.napari_plugin.layers import (
    KEY,
    LABELS,
    PREDICTED_SIZE,
    Layer,
    ask_path,
    fitting_volume,
    is_kind,
    is_probability,
    labels_array,
    layer_volume,
    layer_voxel_size,
    probability_style,
    same_place,
    save_volume,
    voxels_of_points,
)
from mitoseg.viewers.napari_plugin.teaching import TeachPanel
from mitoseg.volumes import Array, ArrayVolume, VoxelSize
from mitoseg.volumes.opening import written_suffixes

SEEDS = "seed points"
DIGITS = 9  # of floats in tables, as of `mitoseg measure`
GREYS = {"as in training": "checkpoint", "matched to training": "match", "by their own mean": "volume"}


class Segmenter(QWidget):
    """What the tabs share, image, voxel size and the one computation that runs; napari makes one for a viewer."""

    def __init__(self, napari_viewer: Any) -> None:  # noqa: ANN401 (napari's viewer has no stubs here)
        super().__init__()
        # plugins get a proxy, whose layers are other proxies each time: none would be found again
        self.viewer = getattr(napari_viewer, "__wrapped__", napari_viewer)
        self.image = LayerChoice(self.viewer, Image, lambda layer: not is_kind(layer, "probability", "preview"))
        self.image.setToolTip("The image that is predicted, measured or painted: a grey volume, z, y, x")
        self.voxel_size = VoxelSizeField()
        self.tasks = TaskBar()
        self.predicting, self.instances, self.teaching = PredictPanel(self), InstancePanel(self), TeachPanel(self)
        self.image.chosen.connect(lambda: self.voxel_size.take(self.image.layer))
        self.image.chosen.connect(self.teaching.take)
        self.voxel_size.take(self.image.layer)
        self.tabs = QTabWidget()
        self.tabs.addTab(self.predicting, "Predict")
        self.tabs.addTab(self.instances, "Measure and correct")
        self.tabs.addTab(self.teaching, "Teach")
        self.teaching.take()
        layout = QVBoxLayout(self)
        layout.addLayout(form(("Image", self.image), ("Voxels (nm)", self.voxel_size)))
        layout.addWidget(self.tabs, 1)
        layout.addWidget(self.tasks)
        self.setMinimumWidth(340)

    def topmost(self, kind: type[Any], wanted: Callable[[Layer], bool] = lambda layer: True) -> Layer | None:
        """The layer of a class that the viewer has selected, else the topmost one."""
        layers = [self.viewer.layers.selection.active, *reversed(self.viewer.layers)]
        return next((one for one in layers if isinstance(one, kind) and wanted(one)), None)

    @property
    def camera(self) -> Any:  # noqa: ANN401 (napari's own)
        """What the viewer looks through; a scene's from napari 0.9 on."""
        return getattr(self.viewer, "scene", self.viewer).camera

    def look_at(self, layer: Layer, at: Sequence[float]) -> None:
        """Bring a voxel of a layer into the middle of the view."""
        world = layer.data_to_world(at)
        self.viewer.dims.point = world
        self.camera.center = tuple(world)

    def add_model(self, path: Path) -> None:
        """List a checkpoint wherever models are chosen."""
        for panel in (self.predicting, self.teaching):
            panel.model.add(path)

    def closeEvent(self, event: Any) -> None:  # noqa: N802, ANN401 (Qt's own)
        """Qt's: what runs is stopped, and what was painted is saved."""
        self.tasks.stop()
        self.teaching.save()
        super().closeEvent(event)


class PredictPanel(QWidget):
    """Options, a prediction with them, and new instances of probabilities that are there."""

    def __init__(self, main: Segmenter) -> None:
        super().__init__()
        self.main = main
        self.model = ModelChoice("auto: the bundled model that suits the image; or a checkpoint of yours")
        self.method = choice(("auto", *METHODS), "How the network goes over the image; auto fits it to the network")
        self.threshold = share("Probability from which on a voxel is mitochondrion; at the lowest, the model's own")
        self.threshold.setSizePolicy(self.method.sizePolicy())
        self.threshold.setSpecialValueText("the model's")
        self.greys = choice(GREYS, "For images of another microscope: matched to training")
        self.cleaning = choice(("clean", "none"), "clean: smooth the probabilities, fill holes, drop specks")
        self.split = QCheckBox("cut touching mitochondria at necks")
        self.split.setToolTip("Where one instance has a thin neck it becomes two; look whether that suits the tissue")
        self.resample = QCheckBox("resample to the model's voxels")
        self.resample.setToolTip("Scale an image of another voxel size to that of training; the result is scaled back")
        self.resample.setChecked(True)
        rows = form(
            *(("Model", self.model), ("Method", self.method), ("Grey values", self.greys)),
            *((self.resample,), ("Threshold", self.threshold), ("Clean-up", self.cleaning), (self.split,)),
        )
        again = "Take the threshold, clean-up and cutting as they are now; quick, since the network is not run again"
        layout = QVBoxLayout(self)
        layout.addLayout(rows)
        layout.addLayout(
            beside(
                button("Predict", "Probabilities and instances of the image", self.predict, main.tasks),
                button("Update instances", again, self.number, main.tasks),
            )
        )
        layout.addStretch(1)

    def _numbering(self) -> Numbering:
        return Numbering(cleaned=self.cleaning.currentText() == "clean", split=self.split.isChecked())

    @showing_mistakes
    def predict(self) -> None:
        """Predict the chosen image; layers of probabilities and of instances follow."""
        chosen = Choice(
            checkpoint=self.model.path,
            method=self.method.currentText(),
            threshold=self.threshold.value() or None,
            greys=GREYS[self.greys.currentText()],
            resample=self.resample.isChecked(),
            numbering=self._numbering(),
        )
        image = self.main.image.layer
        volume = layer_volume(image, self.main.voxel_size.value)
        self.main.tasks.start(partial(computing.predict, volume, chosen), partial(self._add, image))

    @showing_mistakes
    def number(self) -> None:
        """New instances of probabilities that are there."""
        layer = self.main.topmost(Image, is_probability)
        if layer is None:
            raise UserError("there is no layer of probabilities", None, "predict first")
        volume, numbering = layer_volume(layer, self.main.voxel_size.value), self._numbering()
        about, threshold = {"threshold": 0.5, **volume.info.metadata}, self.threshold.value() or None

        def job(progress: Progress) -> Any:  # noqa: ANN401 (see `TaskBar.start`)
            probability_zyx = volume.read().astype(np.float32) / np.float32(about.get("scale") or 1.0)
            options: dict[str, Any] = {"threshold": threshold, "progress": progress}
            return computing.number(probability_zyx, about, numbering, volume.voxel_size, **options)

        name = layer.name.removesuffix(" probability")
        size = volume.voxel_size
        self.main.tasks.start(job, lambda found: self._add_instances(layer, name, found[0], found[1], size))

    def _add(self, image: Layer, outcome: Outcome) -> str:
        options = {**same_place(image), **probability_style(), "metadata": {KEY: outcome.probability}}
        options["metadata"][PREDICTED_SIZE] = outcome.voxel_size
        layer = self.main.viewer.add_image(outcome.probability_zyx, name=f"{image.name} probability", **options)
        for note in outcome.notes:
            show_warning(note)
        size = outcome.voxel_size
        said = self._add_instances(layer, image.name, outcome.instances_zyx, outcome.instances, size)
        layer.visible = False
        if self.main.voxel_size.value is None and size is not None:
            self.main.voxel_size.setText(", ".join(f"{n:g}" for n in size))
        return "\n".join([said, *outcome.notes])

    def _add_instances(
        self, like: Layer, name: str, instances_zyx: computing.Ids, about: dict[str, Any], size: VoxelSize | None
    ) -> str:
        options = {**same_place(like), "opacity": 0.5, "metadata": {KEY: about, PREDICTED_SIZE: size}}
        layer = self.main.viewer.add_labels(instances_zyx, name=f"{name} instances", **options)
        self.main.instances.labels.choose(layer)
        return f"{instances_zyx.max(initial=0)} mitochondria, threshold {about['threshold']:.3f}"


class InstancePanel(QWidget):
    """Instances of a labels layer are measured, corrected and saved.

    They are chosen by rows of the table, clicks in the viewer, or typed numbers; all show the same.
    """

    def __init__(self, main: Segmenter) -> None:
        super().__init__()
        self.main, self.viewer, tasks = main, main.viewer, main.tasks
        self.labels = LayerChoice(main.viewer, Labels, lambda layer: not is_kind(layer, "paint"))
        self.labels.setToolTip("The labels that are measured, corrected and saved")
        self.table, self.ids = InstanceTable(), IdsField()
        self.table.setToolTip("Click a row to see the instance, with Ctrl several; click a column's title to sort")
        self.labels.chosen.connect(lambda: self.table.replace(pd.DataFrame()))
        self.table.chosen.connect(self._selected)
        self.ids.editingFinished.connect(self._typed)
        self.pick = QPushButton("Pick")
        self.pick.setToolTip("While it is down, a click in the viewer chooses an instance or lets it go")
        self.pick.setCheckable(True)
        self.pick.toggled.connect(self._listen)
        self.alone = QCheckBox("show the chosen one alone")
        self.alone.setToolTip("Hide all instances but the last one chosen")
        self.alone.toggled.connect(self._show_alone)
        thin = "A neck is cut where it is thinner than this share of the thinner body; 1 cuts everywhere"
        self.neck = share(thin, 0.5)
        necks, points = "Cut the chosen instances where they are thin", "A layer of points: click one into each part"
        corrections = (
            button("Merge", "The chosen instances become one, with the lowest number", self.merge, tasks),
            button("Delete", "The chosen instances become background", self.delete, tasks),
            button("Undo", "Take back the last correction or brush stroke (Ctrl+Z in the viewer)", self.undo, tasks),
            button("Split at necks", necks, self.split_necks, tasks),
            button("Seed points", f"{points} of an instance", self.add_seeds),
            button("Split at seeds", "Cut every instance that holds two seed points or more", self.split_seeds, tasks),
        )
        grid = QGridLayout()
        for i, one in enumerate(corrections):
            grid.addWidget(one, i // 3, i % 3)
        measure = button("Measure", "Measure every instance of the layer", self.measure, tasks)
        save = button("Save labels …", "As a volume, with voxel size and metadata", self.save_labels, tasks)
        last = beside(QLabel("Neck at most"), self.neck, save)
        last.insertStretch(2, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(beside(QLabel("Instances"), self.labels))
        layout.addLayout(beside(measure, button("Save table …", "All columns, in nm, as CSV", self.save_table)))
        layout.addWidget(self.table, 1)
        layout.addLayout(beside(QLabel("Chosen"), self.ids, self.pick))
        layout.addWidget(self.alone)
        layout.addLayout(grid)
        layout.addLayout(last)

    @property
    def layer(self) -> Layer | None:
        """The labels layer that is corrected."""
        return self.labels.layer

    def choose(self, ids: list[int]) -> None:
        """Choose instances, wherever the choice is shown."""
        self.ids.show_ids(ids)
        self.table.select(ids)

    def _selected(self, ids: list[int]) -> None:
        self.ids.show_ids(ids)
        self._centre(ids)

    @showing_mistakes
    def _typed(self) -> None:
        self.table.select(self.ids.ids)
        self._centre(self.ids.ids)

    def _centre(self, ids: list[int]) -> None:
        """Bring the last of some instances into the middle of the view."""
        layer = self.layer
        if layer is None or not ids or layer.multiscale or not isinstance(layer.data, np.ndarray):
            return
        layer.selected_label = ids[-1]
        at = computing.middle(layer.data, ids[-1])
        if at is not None:
            self.main.look_at(layer, at)

    def _show_alone(self, alone: bool) -> None:
        if self.layer is not None:
            self.layer.show_selected_label = alone

    def _listen(self, on: bool) -> None:
        """Heed clicks in the viewer, or no longer."""
        callbacks, layer = self.viewer.mouse_drag_callbacks, self.layer
        if on and layer is not None:
            layer.mode = "pan_zoom"
            self.viewer.layers.selection.active = layer
        if on:
            callbacks.append(self.clicked)
        elif self.clicked in callbacks:
            callbacks.remove(self.clicked)

    def clicked(self, viewer: Any, event: Any) -> None:  # noqa: ANN401 (napari's own)
        """Choose the instance under the mouse, or let it go."""
        layer = self.layer
        if layer is None or event.button != 1:
            return
        where = {"view_direction": event.view_direction, "dims_displayed": list(event.dims_displayed)}
        value = layer.get_value(event.position, world=True, **where)
        if value:
            before = self.ids.ids
            layer.selected_label = int(value)
            self.choose([n for n in before if n != value] if value in before else [*before, int(value)])

    @showing_mistakes
    def measure(self) -> None:
        """Measure all instances in the background."""
        sources = self._sources()
        self.main.tasks.start(
            lambda progress: measure_instances(sources, on_part=lambda share: progress(share, "measuring")), self._show
        )

    def _measure_again(self, changed: Collection[int]) -> None:
        """Measure the rows of what was changed, if there is a table."""
        table = self.table.table
        if not len(table):
            return
        sources = self._sources()

        def job(progress: Progress) -> pd.DataFrame:
            progress(0.1, "measuring what was changed")
            return computing.measure_again(table, sources, changed)

        self.main.tasks.start(job, self._show)

    def _sources(self) -> Sources:
        labels_zyx = labels_array(self.layer)
        others = (self.main.image.layer, self.main.topmost(Image, is_probability))
        each = (fitting_volume(one, labels_zyx.shape) for one in others)
        return computing.make_sources(labels_zyx, self._voxel_size(), *each)

    def _voxel_size(self) -> VoxelSize | None:
        """The layer's, else what the user typed, else None."""
        own = None if self.layer is None else layer_voxel_size(self.layer)
        return own or self.main.voxel_size.value

    def _show(self, table: pd.DataFrame) -> str:
        self.table.replace(table)
        self.table.select(self.ids.ids)
        return f"{len(table)} instances measured"

    @showing_mistakes
    def save_table(self) -> None:
        """Save all columns."""
        table = self.table.table
        if not len(table):
            raise UserError("there is no table", None, "measure first")
        path = ask_path(self, "Save the table", "Tables (*.csv)", ".csv")
        if path is not None:
            write_table(Path(path), table, overwrite=True, digits=DIGITS)
            self.main.tasks.status.setText(f"{len(table)} rows written to {path}")

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
            volume = ArrayVolume(labels_zyx, self._voxel_size(), layer.name)
            self.main.tasks.start(
                lambda _: save_volume(path, volume, about, overwrite=True),
                lambda _: f"labels written to {path}",
            )

    @showing_mistakes
    def merge(self) -> None:
        """The chosen instances become one."""
        ids = self.ids.ids
        self._apply(computing.merge(labels_array(self.layer), ids), [min(ids, default=0)])

    @showing_mistakes
    def delete(self) -> None:
        """The chosen instances become background."""
        self._apply(computing.delete(labels_array(self.layer), self.ids.ids), [])

    @showing_mistakes
    def split_necks(self) -> None:
        """Cut the chosen instances at their necks."""
        labelling = Labelling(split=True, neck=self.neck.value())
        self._cut(partial(computing.split_necks, labelling=labelling), self.ids.ids)

    @showing_mistakes
    def split_seeds(self) -> None:
        """Cut what holds seed points."""
        labels_array(self.layer)
        points = self.main.topmost(Points)
        if points is None:
            raise UserError("there are no seed points", None, "press “Seed points”, then place one in each part")
        self._cut(computing.split_seeds, voxels_of_points(points, self.layer), points)

    def _cut(self, split: Callable[..., Edit], what: list[int] | Array, points: Layer | None = None) -> None:
        """Cut in the background at the necks of instances or at seeds, whose points are taken away when it is done."""
        labels_zyx, size = labels_array(self.layer), self._voxel_size()
        if size is None:
            raise UserError("splitting needs the voxel size", None, "fill in the field “Voxels (nm)”")

        def job(progress: Progress) -> Edit:
            progress(0.0, "cutting")
            return split(labels_zyx, what, size)

        def apply(edit: Edit) -> str:
            if points is not None:
                points.data = np.empty((0, 3))
            return self._apply(edit, sorted(edit.changed))

        self.main.tasks.start(job, apply)

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
        changed = computing.find_edit(before_zyx, labels_zyx).changed
        if not changed:
            raise UserError("nothing to undo", None, "the layer is as it was")
        self.main.tasks.status.setText("undone")
        self._measure_again(changed)

    def _apply(self, edit: Edit, chosen: list[int]) -> str:
        """Change the layer, so that its own undo takes it back, and bring the table up to date."""
        layer = self.layer
        assert layer is not None
        layer.data_setitem(edit.index, edit.values)
        layer.metadata.setdefault(KEY, {})["corrected"] = True
        self.choose(chosen)
        said = f"corrected: {', '.join(map(str, sorted(edit.changed)))}"
        self.main.tasks.status.setText(said)
        self._measure_again(edit.changed)
        return said
