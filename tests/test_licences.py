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


@pytest.mark.parametrize(("name", "least"), [("mitoseg", 31), ("tensorstore", 1)])
def test_licences_of_the_core_and_of_an_extra_are_on_the_list(name, least):
    pytest.importorskip(name)
    found: dict[str, Distribution] = {}
    closure(name, found)
    assert len(found) >= least
    assert {name: said for name, dist in found.items() if not is_allowed(name, said := licence(dist))} == {}


def test_the_list_can_refuse():
    allowed = [("numpy", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0"), ("x", "GPL-3.0-only OR MIT")]
    allowed += [("edt", "LGPL-3.0-only"), ("edt", "GNU Lesser General Public License v3 (LGPLv3)")]
    refused = [("numpy", "BSD-3-Clause AND GPL-3.0-only"), ("edt", "GPL-3.0-or-later")]
    refused += [("x", said) for said in ("LGPL-3.0-only", "GNU General Public License v3 (GPLv3)", "Proprietary")]
    refused += [("x", said) for said in ("GPL-3.0-only AND (Zlib OR MIT)", "Unlimited Liability", "none found")]
    assert all(is_allowed(*case) for case in allowed)
    assert not any(is_allowed(*case) for case in refused)
