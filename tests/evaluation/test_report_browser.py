"""The report in a real browser, without a network: it draws, turns, sorts and picks, and the console stays empty."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from small_report import write_full

pytestmark = pytest.mark.slow

NO_WEBGL = """
const old = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
  return kind.startsWith("webgl") ? null : old.call(this, kind, ...rest);
};
"""
LATER = "const done = arguments[0]; setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 300)"
WAIT = 120


@pytest.fixture(scope="module", autouse=True)
def window(browser):
    """Of a size that all tests of this page share."""
    browser.set_window_size(1100, 1400)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report with everything, in a folder whose name is not a plain one."""
    return write_full(tmp_path_factory.mktemp("my report #1 ü") / "report.html")


@pytest.fixture
def page(browser, report):
    """The report as it has just been drawn; at the end the console must be empty and nothing was asked for."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get_log("performance")
    browser.get(report.as_uri())
    drawn = "return ['slice', 'scene'].every((id) => document.getElementById(id).dataset.drawn !== undefined)"
    WebDriverWait(browser, WAIT).until(lambda b: b.execute_script(drawn))
    yield browser
    assert browser.get_log("browser") == []
    asked = [entry["message"] for entry in browser.get_log("performance")]
    assert not [text for text in asked if '"Network.requestWillBeSent"' in text and '"url":"http' in text]


def pixels(page, name):
    """What a canvas shows, as RGB."""
    address = page.execute_script(f"return document.getElementById('{name}').toDataURL()")
    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def after(page, change, shown=lambda: None):
    """What ``shown`` gives once a change of the page is drawn."""
    page.execute_script(change)
    page.execute_async_script(LATER)
    return shown()


def steady(page, name):
    """A canvas once it is drawn and stays as it is."""
    found = pixels(page, name)
    for _ in range(WAIT):
        page.execute_async_script(LATER)
        before, found = found, pixels(page, name)
        if found.shape == before.shape and (found == before).all():
            break
    return found


def set_input(name, value):
    said = "tool.dispatchEvent(new Event('input', {bubbles: true}));"
    return f"const tool = document.getElementById('{name}'); tool.value = {value}; {said}"


def click_at(page, name, across, down):
    """Click a place of a canvas, from 0 to 1 of its width and height."""
    from selenium.webdriver import ActionChains

    canvas = page.find_element("id", name)
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    wide, high = canvas.size["width"], canvas.size["height"]
    place = round((across - 0.5) * wide), round((down - 0.5) * high)
    ActionChains(page).move_to_element_with_offset(canvas, *place).click().perform()


def test_the_slider_moves_through_the_slices(page):
    where = page.find_element("id", "where")
    assert where.text == "z = 8 (80 nm), picture 3 of 5"
    before = pixels(page, "slice")
    now = after(page, set_input("z", 0), lambda: pixels(page, "slice"))
    assert where.text == "z = 0 (0 nm), picture 1 of 5"
    assert np.abs(now - before).mean() > 5
    page.find_element("id", "slice").send_keys("\ue014")  # the arrow to the right
    after(page, "")
    assert where.text == "z = 4 (40 nm), picture 2 of 5"
    after(page, set_input("z", 0))
    after(page, "document.querySelector('.gallery button').click()")  # an error, shown among the slices
    assert where.text.startswith("z = 8 ")
    assert page.find_element("id", "mark").is_displayed()


def test_overlays_and_opacity_change_the_picture(page):
    shown = [pixels(page, "slice")]
    errors, truth, instances = (
        f"document.querySelector('[data-layer={name}]').click();" for name in ("errors", "truth", "instances")
    )
    for change in (errors, truth, set_input("opacity", 90), "outline.click()", instances):
        shown.append(after(page, change, lambda: pixels(page, "slice")))
        assert np.abs(shown[-1] - shown[-2]).max() > 40, change
    colourful = [float((image.max(axis=-1) - image.min(axis=-1)).mean()) for image in shown]
    assert colourful[1] < 0.2 * colourful[0]  # the bare image is grey


def test_the_scene_is_drawn_and_turns(page):
    before = steady(page, "scene")
    assert len(np.unique(before.reshape(-1, 3), axis=0)) > 100
    background = before[2, 2]
    assert 0.02 < (np.abs(before - background).sum(axis=-1) > 60).mean() < 0.9
    page.find_element("id", "scene").send_keys("\ue014" * 6)
    now = after(page, "", lambda: steady(page, "scene"))
    assert np.abs(now - before).mean() > 2
    again = after(page, "reset.click()", lambda: steady(page, "scene"))
    assert np.abs(again - before).max() < 10
    after(page, set_input("colour-by", "'sphericity'"))
    assert page.find_element("id", "ramp").is_displayed()
    assert np.abs(steady(page, "scene") - before).mean() > 0.5


def test_clicks_on_surfaces_and_slices_pick_in_the_table(page):
    def picked():
        return page.find_elements("css selector", "tr.picked-row")

    image = pixels(page, "scene")
    surface = np.argwhere(image.max(axis=-1) - image.min(axis=-1) > 60)
    down, across = (surface[len(surface) // 2] + 0.5) / image.shape[:2]
    click_at(page, "scene", across, down)
    (row,) = picked()
    assert page.find_element("id", "picked").text.startswith(f"instance {row.get_attribute('data-instance')}")
    row.find_element("css selector", "td").click()
    assert picked() == []
    click_at(page, "slice", 30.5 / 80, 42.5 / 60)
    assert [row.get_attribute("data-instance") for row in picked()] == ["30"]
    assert page.find_element("id", "under").text == "y 42, x 30, instance 30"


def test_the_table_sorts(page):
    def column():
        return [row.get_attribute("data-instance") for row in page.find_elements("css selector", "#table tbody tr")]

    heads = page.find_elements("css selector", "#table thead button")
    assert column() == ["20", "10", "40", "30"]
    heads[1].click()
    assert column() == ["30", "10", "20", "40"]
    heads[1].click()
    assert column() == ["40", "20", "10", "30"]
    assert heads[1].find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    heads[3].click()
    assert column() == ["10", "20", "30", "40"]  # what has no value comes last


def test_without_webgl_a_text_says_so(browser, report):
    done = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NO_WEBGL})
    try:
        browser.get(report.as_uri())
        assert browser.find_element("id", "no-webgl").is_displayed()
        assert not browser.find_element("id", "scene").is_displayed()
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", done)


def test_nothing_is_wider_than_the_window_and_dark_and_light_differ(page):
    size, seen = {"height": 900, "deviceScaleFactor": 1, "mobile": False}, set()
    try:
        for width in (380, 1100):
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, **size})
            assert page.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        seen.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(seen) == 2
