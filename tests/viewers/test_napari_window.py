"""napari in a window of its own, on a virtual screen."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture
def screen():
    """The number of a virtual screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("there is no Xvfb, the virtual screen")
    read, write = os.pipe()
    words = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1600x1000x24"]
    with subprocess.Popen(words, pass_fds=[write], stderr=subprocess.DEVNULL) as process:
        os.close(write)
        with os.fdopen(read) as told:
            number = told.readline().strip()
        yield f":{number}"
        process.terminate()


def test_a_phantom_in_napari(screen, tmp_path):
    pytest.importorskip("napari", reason="napari is of the extra viewers", exc_type=ImportError)
    script, picture = Path(__file__).with_name("napari_window.py"), tmp_path / "napari.png"
    around = {name: value for name, value in os.environ.items() if name != "QT_QPA_PLATFORM"}
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script), str(picture)],
        env=around | {"DISPLAY": screen, "PYTHONPATH": root},
        capture_output=True,
        encoding="utf-8",
        timeout=900,
        check=False,
    )
    if "could not load the Qt platform plugin" in done.stderr.lower():
        pytest.skip("a library that Qt needs for X11 is missing")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["instances"] >= 3
    assert found["merged"] == found["instances"] - 1
    names = [("phantom", "Image"), ("phantom probability", "Image"), ("phantom instances", "Labels")]
    assert [(name, kind) for name, kind, _ in found["layers"]] == names
    assert found["layers"][2][2] >= 1
    with Image.open(picture) as image:
        assert image.size[0] > 1000
