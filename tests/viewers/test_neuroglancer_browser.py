"""The local neuroglancer in a real browser, without a network: it draws, nothing fails, and nothing else is asked."""

import io
import time

import numpy as np
import pytest
from made_volumes import two_cells
from PIL import Image

pytestmark = pytest.mark.slow

WAIT = 240


@pytest.fixture(scope="module", autouse=True)
def window(browser):
    """Of a size that all tests of this page share."""
    browser.set_window_size(1200, 900)


@pytest.fixture(scope="module")
def viewer():
    """A dark image with a bright half (large x), instances 3 and 7 on it, and a probability."""
    pytest.importorskip("neuroglancer", reason="neuroglancer is not installed")
    from mitoseg.viewers.neuroglancer.scene import make_scene, serving
    from mitoseg.viewers.shown import Shown
    from mitoseg.volumes import ArrayVolume

    labels_zyx = two_cells()
    image_zyx = np.full(labels_zyx.shape, 40, np.uint8)
    image_zyx[:, :, 15:] = 200
    size = (10.0, 5.0, 5.0)
    volumes = {
        "image": ArrayVolume(image_zyx, size),
        "probability": ArrayVolume((labels_zyx == 3).astype(np.float32), size, metadata={"threshold": 0.5}),
        "instances": ArrayVolume(labels_zyx, size, metadata={"kind": "instances"}),
    }
    with serving(make_scene(Shown(volumes, size))) as started:
        yield started


def panels(browser):
    """The four panels as RGB: xy, xz, 3D, yz."""
    image = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")).astype(int)[60:]
    middle, half = image.shape[0] // 2, image.shape[1] // 2
    return image[:middle, :half], image[:middle, half:], image[middle:, :half], image[middle:, half:]


def colourful(image):
    """Where pixels are neither grey, nor pure red, green, blue or yellow as the lines are."""
    spread = image.max(axis=-1) - image.min(axis=-1)
    return (spread > 25) & ~((image < 20) | (image > 235)).all(axis=-1)


def wait_until(true):
    """Wait for a condition of the screen."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "nothing is drawn"
        time.sleep(0.5)


@pytest.fixture
def page(browser, viewer):
    """The page with everything drawn; at the end the console holds no error and nothing left this machine."""
    browser.get_log("performance")
    browser.get(viewer.get_viewer_url())
    wait_until(lambda: colourful(panels(browser)[0]).sum() > 500 and colourful(panels(browser)[2]).sum() > 500)
    yield browser
    said = [entry for entry in browser.get_log("browser") if entry["level"] in {"WARNING", "SEVERE"}]
    assert [entry for entry in said if "favicon.ico" not in entry["message"]] == []  # the library's server has none
    asked = [e["message"] for e in browser.get_log("performance") if '"Network.requestWillBeSent"' in e["message"]]
    assert asked
    assert not [message for message in asked if '"url":"http' in message and '"url":"http://127.0.0.1:' not in message]


def test_slices_and_surfaces_are_drawn_in_place(page):
    slice_yx, _, scene, _ = panels(page)
    bright = np.argwhere((slice_yx > 230).all(axis=-1) & (np.ptp(slice_yx, axis=-1) < 10))
    cells = np.argwhere(colourful(slice_yx))
    assert len(bright) > 1000
    assert bright[:, 1].min() > cells[:, 1].min()  # ball 3 lies in the dark half, at small x
    assert cells[:, 1].max() > np.median(bright[:, 1])  # box 7 in the bright one
    assert len(np.unique(scene[colourful(scene)], axis=0)) > 50  # surfaces with light and shade


def test_layers_are_switched(page, viewer):
    before = colourful(panels(page)[0]).sum()
    with viewer.txn() as state:
        state.layers["instances"].visible = False
    wait_until(lambda: colourful(panels(page)[0]).sum() < 0.1 * before)
    with viewer.txn() as state:
        state.layers["mask"].visible = True  # only ball 3 has a probability
    wait_until(lambda: colourful(panels(page)[0]).sum() > 0.1 * before)
    assert colourful(panels(page)[0]).sum() < 0.8 * before
    with viewer.txn() as state:
        state.layers["mask"].visible, state.layers["instances"].visible = False, True
