"""napari without a screen: a viewer's model and an application of Qt, of this project's own.

napari's fixture for a viewer is not used: its canvas needs OpenGL, which Qt's offscreen platform has not, and its
pytest plugin imports napari for every test of the project. `test_napari_window.py` opens a real window.
"""

import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

TRY = "from qtpy.QtWidgets import QApplication; QApplication([])"


@pytest.fixture(scope="session")
def application():
    """Qt's application; skips where Qt or napari cannot be loaded."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    tried = subprocess.run([sys.executable, "-c", TRY], capture_output=True, text=True, check=False)
    if tried.returncode:  # one of Qt's libraries may be missing, such as libEGL, and then Qt may end the process
        pytest.skip(f"Qt cannot be started: {tried.stderr.strip().splitlines()[-1:]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # napari 0.9 and npe2 0.10 use what pydantic 2.12 calls deprecated
        try:
            from napari.components import ViewerModel
            from qtpy.QtWidgets import QApplication

            import mitoseg.viewers.napari_plugin.widget  # noqa: F401
        except ImportError as error:
            pytest.skip(f"napari cannot be loaded: {error}")
        found = QApplication.instance() or QApplication([])
        ViewerModel().add_labels(np.ones((2, 2, 2), np.uint8))  # imports what layers need
    return found


@pytest.fixture
def viewer(application):
    """A viewer's model without a window."""
    from napari.components import ViewerModel

    return ViewerModel()


@pytest.fixture
def said(application, monkeypatch):
    """What is shown in napari's notifications: (severity, text)."""
    from napari.utils import notifications

    found = []
    monkeypatch.setattr(
        notifications.notification_manager, "dispatch", lambda one: found.append((str(one.severity), one.message))
    )
    return found


@pytest.fixture
def window(application, viewer, said, monkeypatch):
    """The plugin's widget on a viewer; an exception that Qt swallowed fails the test."""
    from mitoseg.viewers.napari_plugin.widget import Segmenter

    swallowed = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: swallowed.append(error))
    made = Segmenter(viewer)
    yield made
    made.close()
    made.deleteLater()
    application.processEvents()
    assert swallowed == []


@pytest.fixture
def wait(application):
    """Lets Qt work until something holds; fails after a minute or two."""

    def until(holds, seconds=120):
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "it takes too long"
            application.processEvents()
            time.sleep(0.005)

    return until
