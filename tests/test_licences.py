"""The libraries that a plain installation brings have licences that a BSD project may depend on."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ALLOWED = re.compile(
    r"\b(BSD|0BSD|MIT|MIT-0|Apache|Python Software Foundation|PSF|CNRI|ISC|MPL-2\.0|Mozilla Public License 2\.0|HPND"
    r"|Historical Permission|Zlib|BSL-1\.0|Boost|Unlicense|CC0|Public Domain)\b",
    re.IGNORECASE,
)
# The CUDA builds of torch bring NVIDIA's own libraries, which nobody imports and which are not ours to choose.
WITH_CUDA = re.compile(r"(nvidia|cuda)-")
LGPL_ALLOWED = {"connected-components-3d", "edt", "fill-voids", "fastmorph", "fastremap"}
LGPL = re.compile(r"LGPL|Lesser General Public", re.IGNORECASE)
GPL = re.compile(r"(?<!L)GPL|(?<!Lesser )General Public License", re.IGNORECASE)


def closure(name, seen):
    """Installed distributions that ``name`` needs without extras, itself included, by canonical name."""
    key = canonicalize_name(name)
    if key in seen:
        return
    try:
        seen[key] = distribution(name)
    except PackageNotFoundError:  # needed on another platform only
        return
    for line in seen[key].requires or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, seen)


def licence(dist: Distribution) -> str:
    """What a distribution says of its licence, the most exact statement first."""
    data = dist.metadata
    if expression := data.get("License-Expression"):
        return expression
    classifiers = [c.split("::")[-1] for c in data.get_all("Classifier", []) if c.startswith("License ::")]
    exact = [c.strip() for c in classifiers if c.strip() != "OSI Approved"]
    if exact:
        return " AND ".join(exact)
    if text := data.get("License"):
        return text.strip().splitlines()[0]
    texts = [f.read_text(encoding="utf-8") for f in dist.files or [] if re.match(r"(LICEN[CS]E|COPYING)", f.name)]
    return " ".join(" ".join(text.split())[:300] for text in texts) or "none found"


def is_allowed(name: str, said: str) -> bool:
    """Whether the core may depend on a library: of alternatives (OR) one must be allowed, of the rest all.

    An expression with parentheses is not taken apart: all of its parts must be allowed.
    """
    if WITH_CUDA.match(name):
        return True
    copyleft = GPL if name in LGPL_ALLOWED else re.compile(f"{GPL.pattern}|{LGPL.pattern}", re.IGNORECASE)
    known = re.compile(f"{ALLOWED.pattern}|{LGPL.pattern}", re.IGNORECASE) if name in LGPL_ALLOWED else ALLOWED
    nested = re.search(r"\([^)]* OR ", said) is not None
    choices = [said.replace(" OR ", " AND ")] if nested else said.split(" OR ")
    return any(all(known.search(p) and not copyleft.search(p) for p in choice.split(" AND ")) for choice in choices)


def test_core_licences_are_on_the_list():
    core: dict[str, Distribution] = {}
    closure("mitoseg", core)
    assert len(core) > 30
    assert "connected-components-3d" in core
    refused = {name: said for name, dist in core.items() if not is_allowed(name, said := licence(dist))}
    assert refused == {}


@pytest.mark.parametrize("name", ["tensorstore"])
def test_extras_that_would_be_allowed_in_the_core(name):
    pytest.importorskip(name)
    found: dict[str, Distribution] = {}
    closure(name, found)
    assert name in found
    assert {name: said for name, dist in found.items() if not is_allowed(name, said := licence(dist))} == {}


@pytest.mark.parametrize(
    ("name", "said", "allowed"),
    [
        ("numpy", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("numpy", "BSD-3-Clause AND GPL-3.0-only", False),
        ("x", "GPL-3.0-only OR MIT", True),
        ("x", "GNU General Public License v3 (GPLv3)", False),
        ("x", "LGPL-3.0-only", False),
        ("edt", "LGPL-3.0-only", True),
        ("edt", "GNU Lesser General Public License v3 (LGPLv3)", True),
        ("edt", "GPL-3.0-or-later", False),
        ("x", "GPL-3.0-only AND (Zlib OR MIT)", False),
        ("x", "Unlimited Liability", False),
        ("x", "none found", False),
        ("x", "Proprietary", False),
    ],
)
def test_the_list_can_refuse(name, said, allowed):
    assert is_allowed(name, said) is allowed
