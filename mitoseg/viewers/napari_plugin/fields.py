"""Small fields of the panels: a choice of layers, a voxel size, a list of instance numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from qtpy.QtCore import QSignalBlocker, Signal
from qtpy.QtWidgets import QComboBox, QLineEdit, QSizePolicy

from mitoseg.errors import UserError
from mitoseg.viewers.napari_plugin.layers import Layer, layer_voxel_size
from mitoseg.volumes import VoxelSize


class LayerChoice(QComboBox):
    """The layers of one kind that a viewer has.

    Args:
        viewer: Of napari, or its model.
        kind: The class of the layers.
        wanted: Which of them.
    """

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
        self.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
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

    def let_go(self) -> None:
        """Listen to the viewer no longer."""
        events = self._viewer.layers.events
        for event in (events.inserted, events.removed, events.renamed):
            event.disconnect(self.refill)


class VoxelSizeField(QLineEdit):
    """Three numbers in nm; filled from a layer that knows its own, else to be filled in."""

    def __init__(self) -> None:
        super().__init__()
        self.setPlaceholderText("not known: fill in z, y, x")
        self.setToolTip("Size of a voxel along z, y and x in nm; lengths, volumes and cutting at necks need it")

    def take(self, layer: Layer | None) -> None:
        """Show the voxel size of a layer; what was typed stays where it has none."""
        size = None if layer is None or layer.ndim != 3 else layer_voxel_size(layer)
        if size is not None:
            self.set(size)

    def set(self, voxel_size: Sequence[float]) -> None:
        """Show a voxel size."""
        self.setText(", ".join(f"{size:g}" for size in voxel_size))

    @property
    def value(self) -> VoxelSize | None:
        """(z, y, x) in nm; None where nothing is filled in.

        Raises:
            UserError: There are not three numbers above zero.
        """
        words = _words(self.text())
        try:
            numbers = [float(word) for word in words]
        except ValueError:
            numbers = []
        if words and (len(numbers) != 3 or not all(0 < n < math.inf for n in numbers)):
            raise UserError("this is no voxel size", self.text(), "write z, y, x in nm, such as 30, 5, 5")
        return (numbers[0], numbers[1], numbers[2]) if numbers else None


class IdsField(QLineEdit):
    """Instance numbers, such as ``3, 7``."""

    def __init__(self) -> None:
        super().__init__()
        self.setPlaceholderText("select rows, pick in the viewer, or type: 3, 7")
        self.setToolTip("The instances that are corrected")

    @property
    def ids(self) -> list[int]:
        """The numbers.

        Raises:
            UserError: There is something else in it.
        """
        words = _words(self.text())
        if not all(word.isdecimal() for word in words):
            raise UserError("these are no instance numbers", self.text(), "write them like 3, 7")
        return list(dict.fromkeys(int(word) for word in words))

    def show_ids(self, ids: Sequence[int]) -> None:
        """Replace the numbers."""
        self.setText(", ".join(map(str, ids)))

    def toggle(self, i: int) -> None:
        """Add a number, or take it out."""
        before = self.ids
        self.show_ids([n for n in before if n != i] if i in before else [*before, i])


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,;\s]+", text) if word]
