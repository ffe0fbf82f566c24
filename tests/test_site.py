"""The site builds strictly, holds every page, and asks nothing of any other host."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from pages import PAGES, ROOT

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.slow


def module_of_docs(name):
    """A module in docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """What ``make docs`` writes; the first warning ends the build."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Loaded(HTMLParser):
    """What a browser fetches by itself when it shows a page; links are not followed."""

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if tag != "a" and key in {"src", "href", "srcset", "data", "poster"}:
                assert not re.match(r"(https?:)?//", value or ""), value


def test_every_page_is_there(site):
    names = {path.stem for path in PAGES} - {"README"} | {"index", "model-card"}
    assert {path.stem for path in site.glob("*.html")} >= names
    assert '<div class="language-sh highlight">' in (site / "TRAINING.html").read_text(encoding="utf-8")  # extra.css
    api = {path.stem for path in (site / "api").glob("*.html")}
    assert api == set(module_of_docs("hooks").documented())
    assert {"mitoseg.volumes", "mitoseg.networks", "mitoseg.errors", "mitoseg.training"} <= api
    texts = {
        name: (site / "api" / f"mitoseg.{name}.html").read_text("utf-8") for name in ("errors", "volumes", "networks")
    }
    assert 'id="mitoseg.errors.UserError"' in texts["errors"]
    assert 'id="mitoseg.volumes.open_volume"' in texts["volumes"]
    assert "<th>Type</th>" in texts["networks"], "what a function raises is a table"


def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        Loaded().feed(path.read_text(encoding="utf-8"))
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^'\")]+)", path.read_text(encoding="utf-8"))
        assert found == [], path.name


def test_every_link_of_the_site_leads_somewhere(site):
    for path in set(site.rglob("*.html")) - {site / "404.html"}:  # which does not know where it is shown
        for target in re.findall(r'<a href="([^"#:]+)(?:#[^"]*)?"', path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
