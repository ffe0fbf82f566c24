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

    def __init__(self):
        super().__init__()
        self.names = []

    def handle_starttag(self, tag, attributes):
        if tag != "a":
            self.names += [v for k, v in attributes if k in {"src", "href", "srcset", "data", "poster"} and v]


def test_every_page_is_there(site):
    names = {path.stem for path in PAGES} - {"README"} | {"index", "model-card"}
    assert {path.stem for path in site.glob("*.html")} >= names
    assert '<div class="language-sh highlight">' in (site / "TRAINING.html").read_text(encoding="utf-8")  # extra.css
    api = {path.stem for path in (site / "api").glob("*.html")}
    assert api == set(module_of_docs("hooks").documented())
    assert {"mitoseg.volumes", "mitoseg.networks", "mitoseg.errors", "mitoseg.training"} <= api


def test_the_api_comes_from_the_docstrings(site):
    page = (site / "api" / "mitoseg.errors.html").read_text(encoding="utf-8")
    assert 'id="mitoseg.errors.UserError"' in page
    assert 'id="mitoseg.volumes.open_volume"' in (site / "api" / "mitoseg.volumes.html").read_text(encoding="utf-8")
    networks = (site / "api" / "mitoseg.networks.html").read_text(encoding="utf-8")
    assert "<th>PARAMETER</th>" in networks or "Parameters:" in networks


def test_nothing_is_fetched_from_elsewhere(site):
    for path in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(path.read_text(encoding="utf-8"))
        assert [name for name in parser.names if re.match(r"(https?:)?//", name)] == [], path.name
    for path in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^'\")]+)", path.read_text(encoding="utf-8"))
        assert found == [], path.name


def test_every_link_of_the_site_leads_somewhere(site):
    for path in set(site.rglob("*.html")) - {site / "404.html"}:  # which does not know where it is shown
        for target in re.findall(r'<a href="([^"#:]+)(?:#[^"]*)?"', path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_links_are_bent():
    target = module_of_docs("hooks").target
    assert target("docs/TRAINING.md", "README.md", "index.md") == "TRAINING.md"
    assert target("CITATION.cff", "README.md", "index.md") == "CITATION.cff"
    card = "../mitoseg/models/epfl-unet25d/CARD.md"
    assert target(card, "docs/MICROSCOPIST.md", "MICROSCOPIST.md") == "model-card.md"
    assert target("images/report.png", "docs/REPORT.md", "REPORT.md") == "images/report.png"
    assert target("https://doi.org/x", "README.md", "index.md") == "https://doi.org/x"


def test_examples_become_code():
    fenced = module_of_docs("doctests").fenced
    assert fenced("Say.\n\n>>> f(1)\n2\n\nMore.") == "Say.\n\n```pycon\n>>> f(1)\n2\n```\n\nMore."
    assert fenced("Example:\n    >>> f(1)\n    2") == "Example:\n    ```pycon\n    >>> f(1)\n    2\n    ```"
    assert fenced("No example.") == "No example."
