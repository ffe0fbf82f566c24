"""What `mkdocs build` adds to the pages of this folder: the front page, the model's card, and the API's pages.

Links of the sources work where they are read otherwise, in the repository; here those that leave the folder are bent.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mitoseg"
OUTSIDE = {
    "README.md": "index.md",
    "mitoseg/models/epfl-unet25d/CARD.md": "model-card.md",
    "mitoseg/models/generalist/CARD.md": "generalist-card.md",
    "mitoseg/models/generalist-muscle/CARD.md": "generalist-muscle-card.md",
    "CITATION.cff": "CITATION.cff",
}
"""Files of the repository that are part of the site, and their names there."""
_LINK = re.compile(r"(\]\()([^)#\s]+)([^)]*\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API into the navigation, where it says ``API: []``."""
    for section in config.nav or []:
        for item in next(iter(section.values())):
            if isinstance(item, dict) and item.get("API") == []:
                item["API"] = [{name: _page(name)} for name in documented()]
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made here."""
    for source, name in OUTSIDE.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for name in documented():
        files.append(File.generated(config, _page(name), content=f"::: {name}\n"))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Bend the links that are relative to the repository."""
    sources = {name: source for source, name in OUTSIDE.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return _LINK.sub(lambda link: link[1] + target(link[2], source, page.file.src_uri) + link[3], markdown)


def target(link: str, source: str, page: str) -> str:
    """Where a link of a page leads within the site.

    Args:
        link: As it is written, relative to its file.
        source: That file, from the repository's root.
        page: The page, from the site's root.

    >>> target("docs/LOG.md", "README.md", "index.md"), target("../README.md", "docs/LOG.md", "LOG.md")
    ('LOG.md', 'index.md')
    """
    if "://" in link or link.startswith("mailto:"):
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    found = OUTSIDE.get(path, path.removeprefix("docs/"))
    return posixpath.relpath(found, posixpath.dirname(page) or ".")


def documented() -> list[str]:
    """Modules and packages with an ``__all__``, and all modules of the package's root."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1 and _exports(path):
            names.append(".".join(["mitoseg", *parts[:-1]]))
        elif not parts[-1].startswith("__") and (len(parts) == 1 or _exports(path)):
            names.append(".".join(["mitoseg", *parts]))
    return sorted(names)


def _exports(path: Path) -> bool:
    """Whether a file has an ``__all__``."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__" for node in body)


def _page(name: str) -> str:
    return f"api/{name}.md"
