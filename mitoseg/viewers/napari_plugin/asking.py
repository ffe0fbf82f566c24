"""Questions to the user."""

from __future__ import annotations

from typing import Any

from mitoseg.viewers.napari_plugin.saving import is_there


def may_replace(path: str) -> bool:
    """Whether something that lies under this name may be replaced; without a window nobody can say yes."""
    if not is_there(path):
        return False
    from qtpy.QtWidgets import QApplication, QMessageBox

    if QApplication.instance() is None:
        return False
    answer = QMessageBox.question(None, "mitoseg", f"{path}\nexists. Replace it?")
    return bool(answer == QMessageBox.StandardButton.Yes)


def ask_path(parent: Any, title: str, kinds: str, suffix: str) -> str | None:  # noqa: ANN401 (any widget)
    """Where to save; None where the user would rather not, or not replace what is there.

    Args:
        parent: Of the dialog.
        title: Of the dialog.
        kinds: Of files, as Qt writes them.
        suffix: Put to a name without one.
    """
    from qtpy.QtWidgets import QFileDialog

    options = QFileDialog.Option.DontConfirmOverwrite  # asked below, for folders as well
    path, _ = QFileDialog.getSaveFileName(parent, title, "", kinds, options=options)
    if not path:
        return None
    path = path if "." in path.replace("\\", "/").rsplit("/", 1)[-1] else path + suffix
    return path if not is_there(path) or may_replace(path) else None
