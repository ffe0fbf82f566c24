"""The panel that predicts: model, options, and the layers that come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from mitoseg.errors import UserError
from mitoseg.inference import METHODS
from mitoseg.networks.bundle import DEFAULT, bundled
from mitoseg.viewers.napari_plugin.predicting import Choice, Numbering

FILE = "a checkpoint file …"
GREYS = {"as in training": "checkpoint", "matched to training": "match", "by their own mean": "volume"}
CLEANING = {"clean": True, "none": False}


class PredictPanel(QWidget):
    """Options and two buttons.

    Args:
        on_predict: Called when the user wants a prediction.
        on_number: Called when she wants instances of probabilities that are there.
    """

    def __init__(self, on_predict: Callable[[], None], on_number: Callable[[], None]) -> None:
        super().__init__()
        self.model = QComboBox()
        self.model.addItems([*bundled(), FILE])
        self.model.setCurrentText(DEFAULT)
        self.model.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.file = QLineEdit()
        self.file.setPlaceholderText("best.ckpt or .safetensors")
        self.browse = QPushButton("Browse …")
        self.browse.clicked.connect(self._browse)
        self.method = _choice(("auto", *METHODS), "How the network goes over the image; auto fits it to the network")
        self.threshold = QDoubleSpinBox()
        self.threshold.setRange(0.0, 1.0)
        self.threshold.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.threshold.setSingleStep(0.05)
        self.threshold.setSpecialValueText("the model's")
        self.threshold.setToolTip("Probability from which on a voxel is mitochondrion; at the lowest, the model's own")
        self.greys = _choice(GREYS, "For images of another microscope: matched to training")
        self.cleaning = _choice(CLEANING, "clean: smooth the probabilities, fill holes, drop specks")
        self.split = QCheckBox("cut touching mitochondria at necks")
        self.resample = QCheckBox("resample to the model's voxels")
        self.resample.setChecked(True)
        self.predict = QPushButton("Predict")
        self.number = QPushButton("Only number again")
        self.number.setToolTip("New instances of the last probabilities: other threshold, post-processing or cutting")
        self.predict.clicked.connect(lambda _: on_predict())
        self.number.clicked.connect(lambda _: on_number())
        self._lay_out()
        self.model.currentTextChanged.connect(self._show_file)
        self._show_file(self.model.currentText())

    def _lay_out(self) -> None:
        form = QFormLayout()
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        form.addRow("Model", self.model)
        self.file_row = QWidget()
        row = QHBoxLayout(self.file_row)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.file, 1)
        row.addWidget(self.browse)
        form.addRow("File", self.file_row)
        self.form = form
        form.addRow("Method", self.method)
        form.addRow("Grey values", self.greys)
        form.addRow(self.resample)
        form.addRow("Threshold", self.threshold)
        form.addRow("Clean-up", self.cleaning)
        form.addRow(self.split)
        buttons = QHBoxLayout()
        buttons.addWidget(self.predict)
        buttons.addWidget(self.number)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(buttons)
        layout.addStretch(1)

    @property
    def numbering(self) -> Numbering:
        """How instances are made."""
        return Numbering(cleaned=CLEANING[self.cleaning.currentText()], split=self.split.isChecked())

    @property
    def least(self) -> float | None:
        """The threshold; None for the model's."""
        return self.threshold.value() or None

    @property
    def choice(self) -> Choice:
        """What is chosen.

        Raises:
            UserError: A checkpoint file is wanted, and none is named.
        """
        name = self.model.currentText()
        if name == FILE and not self.file.text().strip():
            raise UserError("no checkpoint file is named", None, "choose one, or a model that comes along")
        return Choice(
            checkpoint=self.file.text().strip() if name == FILE else name,
            method=self.method.currentText(),
            threshold=self.least,
            greys=GREYS[self.greys.currentText()],
            resample=self.resample.isChecked(),
            numbering=self.numbering,
        )

    def _show_file(self, name: str) -> None:
        self.form.setRowVisible(self.file_row, name == FILE)

    def _browse(self, *_: object) -> None:
        kinds = "Checkpoints (*.ckpt *.safetensors);;All files (*)"
        path, _kind = QFileDialog.getOpenFileName(self, "Open a checkpoint", "", kinds)
        if path:
            self.file.setText(path)


def _choice(names: Any, tip: str) -> QComboBox:  # noqa: ANN401 (anything that gives names)
    box = QComboBox()
    box.addItems(list(names))
    box.setToolTip(tip)
    box.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
    return box
