"""The panel of one labels layer: its table, what is chosen, and the buttons that correct it. No logic."""

from __future__ import annotations

from qtpy.QtWidgets import (
    QCheckBox,
    QDoubleSpinBox,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from mitoseg.viewers.napari_plugin.fields import IdsField, LayerChoice
from mitoseg.viewers.napari_plugin.table import InstanceTable


class InstancePanel(QWidget):
    """The widgets; the window connects them.

    Args:
        labels: The choice of the layer.
    """

    def __init__(self, labels: LayerChoice) -> None:
        super().__init__()
        self.labels, self.table, self.ids = labels, InstanceTable(), IdsField()
        self.measure = _button("Measure", "Measure every instance of the layer")
        self.save_table = _button("Save table …", "All columns, in nm, as CSV")
        self.pick = _button("Pick", "While it is down, a click in the viewer chooses an instance or lets it go")
        self.pick.setCheckable(True)
        self.alone = QCheckBox("show the chosen one alone")
        self.merge = _button("Merge", "The chosen instances become one, with the lowest number")
        self.delete = _button("Delete", "The chosen instances become background")
        self.undo = _button("Undo", "Take back the last correction or brush stroke (Ctrl+Z in the viewer)")
        self.neck = QDoubleSpinBox()
        self.neck.setRange(0.0, 1.0)
        self.neck.setSingleStep(0.05)
        self.neck.setValue(0.5)
        self.neck.setToolTip(
            "A neck is cut where it is thinner than this share of the thinner body; 1 cuts everywhere"
        )
        self.split_necks = _button("Split at necks", "Cut the chosen instances where they are thin")
        self.add_seeds = _button("Seed points", "A layer of points: click one into each part of an instance")
        self.split_seeds = _button("Split at seeds", "Cut every instance that holds two seed points or more")
        self.save_labels = _button("Save labels …", "As a volume, with voxel size and metadata")
        self._lay_out()

    @property
    def editing(self) -> tuple[QWidget, ...]:
        """What must rest while something is computed."""
        return (self.measure, self.merge, self.delete, self.undo, self.split_necks, self.split_seeds, self.save_labels)

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        top = QHBoxLayout()
        top.addWidget(QLabel("Instances"))
        top.addWidget(self.labels, 1)
        layout.addLayout(top)
        row = QHBoxLayout()
        row.addWidget(self.measure)
        row.addWidget(self.save_table)
        layout.addLayout(row)
        layout.addWidget(self.table, 1)
        chosen = QHBoxLayout()
        chosen.addWidget(QLabel("Chosen"))
        chosen.addWidget(self.ids, 1)
        chosen.addWidget(self.pick)
        layout.addLayout(chosen)
        layout.addWidget(self.alone)
        grid = QGridLayout()
        rows = ((self.merge, self.delete, self.undo), (self.split_necks, self.add_seeds, self.split_seeds))
        for y, buttons in enumerate(rows):
            for x, button in enumerate(buttons):
                grid.addWidget(button, y, x)
        layout.addLayout(grid)
        last = QHBoxLayout()
        last.addWidget(QLabel("Neck at most"))
        last.addWidget(self.neck)
        last.addStretch(1)
        last.addWidget(self.save_labels)
        layout.addLayout(last)


def _button(text: str, tip: str) -> QPushButton:
    button = QPushButton(text)
    button.setToolTip(tip)
    return button
