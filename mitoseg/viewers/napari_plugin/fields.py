"""What the panels are made of: fields, the table of measurements, buttons, rows and forms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from qtpy import QtWidgets
from qtpy.QtCore import QItemSelection, QItemSelectionModel, QSignalBlocker, Qt, Signal

from mitoseg.errors import UserError
from mitoseg.networks.checkpoint import AUTO, bundled
from mitoseg.viewers.napari_plugin.computing import shown
from mitoseg.viewers.napari_plugin.jobs import TaskBar
from mitoseg.viewers.napari_plugin.layers import Layer, layer_voxel_size
from mitoseg.volumes import VoxelSize

_WIDE = (QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)


class LayerChoice(QtWidgets.QComboBox):
    """The layers of one class that a viewer, or its model, has, and that are wanted."""

    chosen = Signal()

    def __init__(
        self,
        viewer: Any,  # noqa: ANN401 (napari's viewer has no stubs here)
        kind: type[Any],
        wanted: Callable[[Layer], bool] = lambda layer: True,
    ) -> None:
        super().__init__()
        self._viewer, self._kind, self._wanted = viewer, kind, wanted
        self.setMinimumContentsLength(12)
        self.setSizeAdjustPolicy(QtWidgets.QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setSizePolicy(*_WIDE)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed, viewer.layers.events.renamed):
            event.connect(self.refill)
        self.currentIndexChanged.connect(lambda _: self.chosen.emit())
        self.refill()

    @property
    def layer(self) -> Layer | None:
        """The chosen one."""
        return self.currentData()

    def choose(self, layer: Layer) -> None:
        """Choose a layer."""
        self.setCurrentIndex(next(i for i in range(self.count()) if self.itemData(i) is layer))

    def refill(self, *_: object) -> None:
        """Take the viewer's layers as they are now."""
        before = self.layer
        layers: list[Layer] = [one for one in self._viewer.layers if isinstance(one, self._kind) and self._wanted(one)]
        with QSignalBlocker(self):
            self.clear()
            for layer in layers:
                self.addItem(layer.name, layer)
            if any(layer is before for layer in layers):
                self.choose(before)
        if self.layer is not before:
            self.chosen.emit()


class VoxelSizeField(QtWidgets.QLineEdit):
    """Three numbers in nm; filled from a layer that knows its own, else to be filled in."""

    def __init__(self) -> None:
        super().__init__()
        self.setPlaceholderText("not known: fill in z, y, x")
        self.setToolTip("Size of a voxel along z, y and x in nm; lengths, volumes and cutting at necks need it")

    def take(self, layer: Layer | None) -> None:
        """Show the voxel size of a layer; what was typed stays where it has none."""
        size = None if layer is None or layer.ndim != 3 else layer_voxel_size(layer)
        if size is not None:
            self.setText(", ".join(f"{n:g}" for n in size))

    @property
    def value(self) -> VoxelSize | None:
        """(z, y, x) in nm; None where nothing is filled in."""
        words = _words(self.text())
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if words and (len(numbers) != 3 or not all(0 < n < math.inf for n in numbers)):
            raise UserError("this is not a voxel size", self.text(), "write z, y, x in nm, such as 30, 5, 5")
        return (numbers[0], numbers[1], numbers[2]) if numbers else None


class IdsField(QtWidgets.QLineEdit):
    """Instance numbers, such as ``3, 7``."""

    def __init__(self) -> None:
        super().__init__()
        self.setPlaceholderText("select rows, pick in the viewer, or type: 3, 7")
        self.setToolTip("The instances that are corrected")

    @property
    def ids(self) -> list[int]:
        """The numbers."""
        words = _words(self.text())
        if not all(word.isdecimal() for word in words):
            raise UserError("these are not instance numbers", self.text(), "write them like 3, 7")
        return list(dict.fromkeys(int(word) for word in words))

    def show_ids(self, ids: Sequence[int]) -> None:
        """Replace the numbers."""
        self.setText(", ".join(map(str, ids)))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,;\s]+", text) if word]


class Cell(QtWidgets.QTableWidgetItem):
    """A measurement, sorted by its value; what is missing comes last.

    >>> [Cell.text_of(value) for value in (np.float64(0.123456), np.float64("nan"), np.bool_(True), np.uint64(7))]
    ['0.1235', '', 'yes', '7']
    """

    def __init__(self, value: Any) -> None:  # noqa: ANN401 (a number of any kind)
        super().__init__(self.text_of(value))
        self.value = value
        self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def __lt__(self, other: QtWidgets.QTableWidgetItem) -> bool:
        ascending = self.tableWidget().horizontalHeader().sortIndicatorOrder() == Qt.SortOrder.AscendingOrder
        last = math.inf if ascending else -math.inf
        ours, theirs = (last if v != v else v for v in (self.value, other.value))  # NaN differs from itself
        return bool(ours < theirs)

    @staticmethod
    def text_of(value: object) -> str:
        """What is shown."""
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if isinstance(value, float | np.floating):
            number = float(value)
            return "" if math.isnan(number) else f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}"
        return str(value)


class InstanceTable(QtWidgets.QTableWidget):
    """Some columns of a ``table``; ``chosen`` is emitted with the numbers of the rows that the user selects."""

    chosen = Signal(list)

    def __init__(self) -> None:
        super().__init__()
        self.table = pd.DataFrame()
        self.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QtWidgets.QAbstractItemView.EditTrigger.NoEditTriggers)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(22)
        self.horizontalHeader().setSortIndicator(0, Qt.SortOrder.AscendingOrder)
        self.setMinimumHeight(120)
        self.itemSelectionChanged.connect(self._selected)

    def replace(self, table: pd.DataFrame) -> None:
        """Show another table, sorted as the last one."""
        self.table, view = table, shown(table)
        self.setSortingEnabled(False)  # or cells would move while they are filled in
        with QSignalBlocker(self):  # the selected rows go, but what the user has chosen stays
            self.clearSelection()
            self.setRowCount(len(view))
            self.setColumnCount(len(view.columns))
            self.setHorizontalHeaderLabels(list(view.columns))
            for row, values in enumerate(view.itertuples(index=False)):
                for column, value in enumerate(values):
                    self.setItem(row, column, Cell(value))
            self.setSortingEnabled(True)
        self.resizeColumnsToContents()

    def select(self, ids: list[int]) -> None:
        """Select the rows of some instances, without a signal."""
        chosen = set(ids)
        rows = [row for row in range(self.rowCount()) if self._number(row) in chosen]
        model, selection = self.model(), QItemSelection()
        for row in rows:
            selection.select(model.index(row, 0), model.index(row, self.columnCount() - 1))
        with QSignalBlocker(self):
            self.selectionModel().select(selection, QItemSelectionModel.SelectionFlag.ClearAndSelect)
        if rows:
            self.scrollToItem(self.item(rows[0], 0))

    def _number(self, row: int) -> int:
        return int(self.item(row, 0).value)

    def _selected(self) -> None:
        self.chosen.emit([self._number(row) for row in sorted({item.row() for item in self.selectedItems()})])


def choice(names: Iterable[str], tip: str) -> QtWidgets.QComboBox:
    """One of several names."""
    box = QtWidgets.QComboBox()
    box.addItems(list(names))
    box.setToolTip(tip)
    box.setSizePolicy(*_WIDE)
    return box


class ModelChoice(QtWidgets.QWidget):
    """A bundled model, the one that suits the image, or a checkpoint of the user's."""

    def __init__(self, tip: str) -> None:
        super().__init__()
        self.box = choice((AUTO, *bundled()), tip)
        row = beside(self.box, button("…", "Another checkpoint of yours (.ckpt, .safetensors)", self._browse))
        row.setContentsMargins(0, 0, 0, 0)
        self.setLayout(row)

    @property
    def path(self) -> str:
        """A path, or the name of a bundled model."""
        return str(self.box.currentData() or self.box.currentText())

    def add(self, path: Path) -> int:
        """List a checkpoint, a run's by the name of its folder; returns its place in the list."""
        found: int = self.box.findData(str(path))
        if found < 0:
            found = self.box.count()
            self.box.addItem(path.parents[1].name if path.parent.name == "checkpoints" else path.name, str(path))
            self.box.setItemData(found, str(path), Qt.ItemDataRole.ToolTipRole)
        return found

    def _browse(self, *_: object) -> None:
        kinds = "Checkpoints (*.ckpt *.safetensors);;All files (*)"
        path, _kind = QtWidgets.QFileDialog.getOpenFileName(self, "Open a checkpoint", "", kinds)
        if path:
            self.box.setCurrentIndex(self.add(Path(path)))


def share(tip: str, value: float = 0.0) -> QtWidgets.QDoubleSpinBox:
    """A number from 0 to 1."""
    box = QtWidgets.QDoubleSpinBox()
    box.setRange(0.0, 1.0)
    box.setSingleStep(0.05)
    box.setValue(value)
    box.setToolTip(tip)
    return box


def button(text: str, tip: str, act: Callable[..., None], tasks: TaskBar | None = None) -> QtWidgets.QPushButton:
    """A button that cannot be pressed while one of the ``tasks`` runs."""
    made = QtWidgets.QPushButton(text)
    made.setToolTip(tip)
    made.clicked.connect(act)
    if tasks is not None:
        tasks.running.connect(made.setDisabled)
    return made


def beside(*widgets: QtWidgets.QWidget) -> QtWidgets.QHBoxLayout:
    """Widgets side by side; fields to fill in take what is left."""
    row = QtWidgets.QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget, int(isinstance(widget, QtWidgets.QLineEdit | QtWidgets.QComboBox)))
    return row


def form(*rows: tuple[Any, ...]) -> QtWidgets.QFormLayout:
    """Rows of a label and a widget, or of a widget."""
    made = QtWidgets.QFormLayout()
    made.setFieldGrowthPolicy(QtWidgets.QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
    for row in rows:
        made.addRow(*row)
    return made
