"""A bioimage.io package: a zip that ilastik, deepImageJ and bioimageio.core can run.

    rdf.yaml           what goes in and comes out: axes, sizes, halo, voxel size; licence, citations, authors, data
    weights.onnx       the form ``volume``: grey values in, calibrated probabilities out
    test_input.npy     a piece of an image, and
    test_output.npy    what the network, not the file, answers to it
    cover.png          a slice of both
    documentation.md   how to use it, and the model's card

Nothing in it points to an address, so it can be checked without a network.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import metadata as installed
from pathlib import Path
from typing import Any

import numpy as np

import mitoseg
from mitoseg.errors import UserError
from mitoseg.export.about import metadata
from mitoseg.export.cover import draw_cover
from mitoseg.export.description import describe
from mitoseg.export.documentation import document
from mitoseg.export.expected import expected
from mitoseg.export.forms import Form, make_form
from mitoseg.export.onnx_file import TOLERANCE, Exported, compare, described, write_onnx
from mitoseg.extras import import_extra
from mitoseg.networks.checkpoint import Model
from mitoseg.storage import atomic_output, check_output
from mitoseg.volumes import Array

PACKAGE_SUFFIX = ".zip"
COVER = 256
"""Voxels along y and x of the image on the cover."""


def export_package(
    model: Model,
    path: str | Path,
    *,
    name: str,
    image: Callable[[tuple[int, int, int]], Array],
    card: str,
    facts: Mapping[str, Any] | None = None,
    tile: tuple[int, int, int] | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Write a package, and have bioimageio.core test it before it gets its name.

    Args:
        model: What to write.
        path: Ends in ``.zip``.
        name: Title.
        image: Makes the grey values of the test input, and of the cover, for a shape (z, y, x).
        card: The model's card in Markdown.
        facts: Of the training: ``name``, ``title``, ``licence``, ``citation``, ``doi``, ``commit``.
        tile: (z, y, x) for a network that does not say what sizes it takes.
        overwrite: Whether a file that exists may be replaced.
        on_step: Called with what is done next.

    Raises:
        UserError: The suffix or the output is no good, a library is missing, the network cannot be exported, or the
            package does not pass the test.
    """
    if Path(path).suffix != PACKAGE_SUFFIX:
        remedy = f"give output=NAME{PACKAGE_SUFFIX}"
        raise UserError("cannot export to that suffix", Path(path).suffix or str(path), remedy)
    spec, core = (import_extra(f"bioimageio.{part}", "bioimageio.core", "exchange") for part in ("spec", "core"))
    check_output(path, overwrite)
    form, told = make_form(model, "volume", tile), facts or {}
    with tempfile.TemporaryDirectory() as folder, atomic_output(path, overwrite=overwrite) as temporary:
        place = Path(folder)
        on_step("tracing the network")
        write_onnx(form, place / "weights.onnx", metadata(model, form, told))
        on_step("comparing with the network")
        shapes, difference = compare(model, form, place / "weights.onnx")
        if not difference <= TOLERANCE:
            raise UserError(f"the weights differ from the network by up to {difference:.2g}", name, "nothing is kept")
        on_step("drawing test tensors")
        _write_tests(model, form, image, place)
        text = document(_title(name), model, form, card)
        (place / "documentation.md").write_text(text, encoding="utf-8")
        on_step("packing")
        with _quiet(), spec.ValidationContext(root=place, perform_io_checks=True, log_warnings=False):
            descr = describe(_title(name), model, form, told, authors(), mitoseg.__version__)
            spec.save_bioimageio_package(descr, output_path=temporary)
        on_step("testing the package with bioimageio.core")
        _test(core, temporary)
    return Exported(form.name, *described(form), shapes, difference)


def authors() -> list[str]:
    """Of mitoseg, as its installation says; CITATION.cff has the same."""
    return [name.strip() for name in installed("mitoseg")["Author"].split(",")]


def _title(name: str) -> str:
    """A name with the letters that bioimage.io allows, of at least five."""
    clean = re.sub(r"[^A-Za-z0-9_+\-() ]", "-", name)[:64]
    return clean if len(clean) >= 5 else f"mitoseg {clean}"


def _write_tests(model: Model, form: Form, image: Callable[[tuple[int, int, int]], Array], place: Path) -> None:
    """The test tensors, of the smallest piece; the cover shows a wider one, if the network takes it."""
    z, y, x = form.sizes.piece
    grey = image((z, y, x)).astype(np.float32)[None, None]
    np.save(place / "test_input.npy", grey)
    np.save(place / "test_output.npy", expected(model, form, grey))
    _, step_y, step_x = form.sizes.step
    wide_y, wide_x = (n + (max(0, COVER - n) // s * s if s else 0) for n, s in ((y, step_y), (x, step_x)))
    grey = image((z, wide_y, wide_x)).astype(np.float32)[None, None]
    found = expected(model, form, grey)
    draw_cover(grey[0, 0, z // 2], found[0, 0, z // 2], model.threshold).save(place / "cover.png")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the log of bioimageio, which tells every step."""
    logger = import_extra("loguru", "bioimageio.core", "exchange").logger
    logger.disable("bioimageio")
    try:
        yield
    finally:
        logger.enable("bioimageio")


def _test(core: Any, path: Path) -> None:  # noqa: ANN401 (imported when it is needed)
    """Have bioimageio.core test a package.

    Raises:
        UserError: It does not pass.
    """
    with _quiet():
        summary = core.test_description(path, expected_type="model")
    if summary.status != "passed":
        reasons = [error.msg for detail in summary.details for error in detail.errors]
        raise UserError("the package does not pass bioimageio.core's test", " ".join(reasons)[:300], "nothing is kept")
