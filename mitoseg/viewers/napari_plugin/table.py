"""The table of measurements; selected rows are the chosen instances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from qtpy.QtCore import QAbstractTableModel, QItemSelection, QItemSelectionModel, QModelIndex, Qt, Signal
from qtpy.QtWidgets import QAbstractItemView, QTableView

from mitoseg.viewers.napari_plugin.measuring import shown

Index = Any
"""``QModelIndex``, whose stubs differ between Qt's bindings."""


class TableModel(QAbstractTableModel):
    """A data frame, sorted by a column.

    Attributes:
        table: All measurements, in the order that is shown.
        view: What is shown of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table, self.view = pd.DataFrame(), pd.DataFrame()

    def replace(self, table: pd.DataFrame) -> None:
        """Show another table."""
        self.beginResetModel()
        self.table, self.view = table, shown(table)
        self.endResetModel()

    def rowCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008 (Qt's own)
        """Qt's."""
        return 0 if parent.isValid() else len(self.view)

    def columnCount(self, parent: Index = QModelIndex()) -> int:  # noqa: N802, B008 (Qt's own)
        """Qt's."""
        return 0 if parent.isValid() else len(self.view.columns)

    def data(self, index: Index, role: int = Qt.ItemDataRole.DisplayRole) -> object:
        """Qt's."""
        if role == Qt.ItemDataRole.DisplayRole:
            return as_text(self.view.iat[index.row(), index.column()])
        if role == Qt.ItemDataRole.TextAlignmentRole:
            return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
        return None

    def headerData(  # noqa: N802 (Qt's own)
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> object:
        """Qt's."""
        if role != Qt.ItemDataRole.DisplayRole or orientation != Qt.Orientation.Horizontal:
            return None
        return str(self.view.columns[section])

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Qt's."""
        if not 0 <= column < len(self.view.columns):
            return
        keys = self.view.iloc[:, column]
        rows = keys.sort_values(ascending=order == Qt.SortOrder.AscendingOrder, kind="stable").index
        self.layoutAboutToBeChanged.emit()
        self.table = self.table.loc[rows].reset_index(drop=True)
        self.view = self.view.loc[rows].reset_index(drop=True)
        self.layoutChanged.emit()


def as_text(value: object) -> str:
    """A cell.

    >>> as_text(np.float64(0.123456)), as_text(np.float64("nan")), as_text(np.bool_(True)), as_text(np.uint64(7))
    ('0.1235', '', 'yes', '7')
    """
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        number = float(value)
        return "" if math.isnan(number) else f"{number:.4g}" if abs(number) < 1000 else f"{number:.0f}"
    return str(value)


class InstanceTable(QTableView):
    """The table as a widget.

    Attributes:
        chosen: Emitted with the numbers of the selected rows, when the user selects others.
    """

    chosen = Signal(list)

    def __init__(self) -> None:
        super().__init__()
        self.rows = TableModel()
        self.setModel(self.rows)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setSortingEnabled(True)
        self.verticalHeader().hide()
        self.verticalHeader().setDefaultSectionSize(22)
        self.horizontalHeader().setSortIndicator(0, Qt.SortOrder.AscendingOrder)
        self.setMinimumHeight(120)
        self.selectionModel().selectionChanged.connect(self._tell)

    @property
    def table(self) -> pd.DataFrame:
        """All measurements, as they are shown."""
        return self.rows.table

    def replace(self, table: pd.DataFrame) -> None:
        """Show another table, sorted as the last one."""
        self.rows.replace(table)
        header = self.horizontalHeader()
        self.rows.sort(header.sortIndicatorSection(), header.sortIndicatorOrder())
        self.resizeColumnsToContents()

    def select(self, ids: list[int]) -> None:
        """Select the rows of some instances, without telling."""
        selection = QItemSelection()
        places: list[int] = np.flatnonzero(self.table["instance"].isin(ids)).tolist() if len(self.table) else []
        for row in places:
            selection.select(self.rows.index(row, 0), self.rows.index(row, self.rows.columnCount() - 1))
        model = self.selectionModel()
        model.blockSignals(True)
        model.select(selection, QItemSelectionModel.SelectionFlag.ClearAndSelect)
        model.blockSignals(False)
        self.viewport().update()
        if places:
            self.scrollTo(self.rows.index(places[0], 0))

    def _tell(self, *_: object) -> None:
        rows = sorted(index.row() for index in self.selectionModel().selectedRows())
        self.chosen.emit(self.table["instance"].iloc[rows].tolist())
