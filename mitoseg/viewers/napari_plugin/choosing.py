"""Which instances are chosen: by rows of the table, clicks in the viewer, or numbers that are typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mitoseg.viewers.napari_plugin.correcting import middle
from mitoseg.viewers.napari_plugin.messages import told

if TYPE_CHECKING:
    from mitoseg.viewers.napari_plugin.instance_panel import InstancePanel


class Chooser:
    """Keeps table, field and viewer alike.

    Args:
        viewer: Of napari, or its model.
        panel: Of the instances.
    """

    def __init__(self, viewer: Any, panel: InstancePanel) -> None:  # noqa: ANN401 (napari's viewer has no stubs here)
        self.viewer, self.panel = viewer, panel
        panel.table.chosen.connect(self._selected)
        panel.ids.editingFinished.connect(self._typed)
        panel.pick.toggled.connect(self._listen)
        panel.alone.toggled.connect(self._show_alone)

    @property
    def ids(self) -> list[int]:
        """The chosen ones.

        Raises:
            UserError: Something else was typed.
        """
        return self.panel.ids.ids

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

    @told
    def _typed(self) -> None:
        self.panel.table.select(self.ids)
        self.centre(self.ids)

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
            self.panel.ids.toggle(int(value))
            layer.selected_label = int(value)
            self.panel.table.select(self.ids)
