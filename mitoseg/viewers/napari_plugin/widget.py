"""The dock widget: an image is predicted, its instances are measured and corrected."""

from __future__ import annotations

from typing import Any

import numpy as np
from napari.layers import Image, Labels
from qtpy.QtWidgets import QFormLayout, QTabWidget, QVBoxLayout, QWidget

from mitoseg.errors import UserError
from mitoseg.viewers.napari_plugin.editor import Editor
from mitoseg.viewers.napari_plugin.fields import LayerChoice, VoxelSizeField
from mitoseg.viewers.napari_plugin.instance_panel import InstancePanel
from mitoseg.viewers.napari_plugin.layer_data import KEY, probability_style
from mitoseg.viewers.napari_plugin.layers import Layer, is_probability, layer_volume, same_place
from mitoseg.viewers.napari_plugin.messages import show_note, told
from mitoseg.viewers.napari_plugin.predict_panel import PredictPanel
from mitoseg.viewers.napari_plugin.predicting import Outcome, number, predict
from mitoseg.viewers.napari_plugin.tasks import TaskBar


class Segmenter(QWidget):
    """See the module; napari makes one for a viewer.

    Args:
        napari_viewer: The viewer, or its model.
    """

    def __init__(self, napari_viewer: Any) -> None:  # noqa: ANN401 (napari's viewer has no stubs here)
        super().__init__()
        self.viewer = napari_viewer
        self.image = LayerChoice(napari_viewer, Image, lambda layer: not is_probability(layer))
        self.voxel_size = VoxelSizeField()
        self.tasks = TaskBar()
        self.predicting = PredictPanel(self.run_prediction, self.run_numbering)
        self.instances = InstancePanel(LayerChoice(napari_viewer, Labels))
        self.editor = Editor(self)
        self.image.chosen.connect(self._take_voxel_size)
        self.tasks.running.connect(self._rest)
        self._lay_out()
        self._take_voxel_size()

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

    @told
    def run_prediction(self) -> None:
        """Predict the chosen image; layers of probabilities and of instances follow."""
        layer, choice = self.image.layer, self.predicting.choice
        volume = layer_volume(layer, self.voxel_size.value)
        self.tasks.start(lambda tell: predict(volume, choice, tell), lambda outcome: self._add(layer, outcome))

    @told
    def run_numbering(self) -> None:
        """New instances of probabilities that are there."""
        layer = self.probability()
        if layer is None:
            raise UserError("there is no layer of probabilities", None, "predict first")
        volume, options = layer_volume(layer, self.voxel_size.value), self.predicting.numbering
        about, threshold = dict(volume.info.metadata), self.predicting.least
        about.setdefault("threshold", 0.5)

        def job(tell: Any) -> Any:  # noqa: ANN401 (see `TaskBar.start`)
            probability_zyx = volume.read().astype(np.float32) / np.float32(about.get("scale") or 1.0)
            return number(probability_zyx, about, options, volume.voxel_size, threshold=threshold, tell=tell)

        self.tasks.start(job, lambda found: self._add_instances(layer, *found))

    def probability(self) -> Layer | None:
        """The layer that the viewer has selected, if it holds probabilities, else the topmost one that does."""
        layers = [self.viewer.layers.selection.active, *reversed(self.viewer.layers)]
        return next((one for one in layers if isinstance(one, Image) and is_probability(one)), None)

    def _add(self, image: Layer, outcome: Outcome) -> str:
        """Show what came out."""
        options = {**same_place(image), **probability_style(), "metadata": {KEY: outcome.probability}}
        layer = self.viewer.add_image(outcome.probability_zyx, name=f"{image.name} probability", **options)
        for note in outcome.notes:
            show_note(note)
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

    def _take_voxel_size(self) -> None:
        self.voxel_size.take(self.image.layer)

    def _rest(self, running: bool) -> None:
        for widget in (self.predicting.predict, self.predicting.number, *self.instances.editing):
            widget.setEnabled(not running)

    def closeEvent(self, event: Any) -> None:  # noqa: N802, ANN401 (Qt's own)
        """Qt's: what runs is stopped."""
        self.tasks.stop()
        super().closeEvent(event)
