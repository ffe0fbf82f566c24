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
from datetime import UTC, datetime
from importlib.metadata import metadata as installed
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from jinja2 import Environment
from PIL import Image
from scipy.ndimage import binary_erosion

import mitoseg
from mitoseg.errors import UserError, import_extra
from mitoseg.export.forms import Form, make_form
from mitoseg.export.onnx_file import OPSET, Exported, check_file, described, expected, trace
from mitoseg.export.weights import metadata, voxels_of
from mitoseg.networks.checkpoint import Model
from mitoseg.storage import atomic_output
from mitoseg.volumes import CHANNEL_OFFSETS, Array

PACKAGE_SUFFIX = ".zip"
COVER = 256  # voxels along y and x of the image on the cover
SIDE = 384  # pixels of each half of the cover
ORANGE = (255, 140, 0)


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

    ``name`` is its title; ``image`` makes the grey values of the test input, and of the cover, for a shape (z, y, x);
    ``card`` is Markdown, whose headings go one level down; ``facts`` of the training may hold ``name``, ``title``,
    ``licence``, ``citation``, ``doi`` and ``commit``. For ``path`` (``.zip``) and the rest see `export_onnx`.
    """
    check_file(path, PACKAGE_SUFFIX, overwrite)
    spec, core = (import_extra(f"bioimageio.{part}", "bioimageio.core", "exchange") for part in ("spec", "core"))
    form, facts = make_form(model, "volume", tile), facts or {}
    title = re.sub(r"[^A-Za-z0-9_+\-() ]", "-", name)[:64]  # bioimage.io allows these letters, and wants five
    title = title if len(title) >= 5 else f"mitoseg {title}"
    with tempfile.TemporaryDirectory() as folder, atomic_output(path, overwrite=overwrite) as temporary:
        place = Path(folder)
        exported = trace(model, form, place / "weights.onnx", facts, on_step)
        on_step("drawing test tensors")
        _write_tests(model, form, image, place)
        (place / "documentation.md").write_text(_document(title, model, form, card), encoding="utf-8")
        on_step("packing")
        with _quiet(), spec.ValidationContext(root=place, perform_io_checks=True, log_warnings=False):
            spec.save_bioimageio_package(_describe(title, model, form, facts), output_path=temporary)
        on_step("testing the package with bioimageio.core")
        with _quiet():
            summary = core.test_description(temporary, expected_type="model")
        if summary.status != "passed":
            reasons = " ".join(error.msg for detail in summary.details for error in detail.errors)
            raise UserError("the package does not pass bioimageio.core's test", reasons[:300], "nothing is kept")
    return exported


def authors() -> list[str]:
    """Of mitoseg, as its installation says; CITATION.cff has the same."""
    return [name.strip() for name in installed("mitoseg")["Author"].split(",")]


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


def _describe(name: str, model: Model, form: Form, facts: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A ``ModelDescr`` whose files lie in the validation context's root."""
    model_module, data_module = (
        import_extra(f"bioimageio.spec.{part}", "bioimageio.core", "exchange")
        for part in ("model.v0_5", "dataset.v0_3")
    )
    axes = []
    for i, axis in enumerate(form.axes[2:]):
        unit = {} if model.voxel_size is None else {"unit": "nanometer", "scale": model.voxel_size[i]}
        least, step = form.sizes.piece[i], form.sizes.step[i]
        axes.append(({"id": axis, **unit}, {"min": least, "step": step} if step else least, form.sizes.halo[i]))
    cite = []  # an entry needs a DOI: an address would be looked up
    if facts.get("doi"):
        cite = [{"text": str(facts.get("citation") or facts.get("title")), "doi": facts["doi"]}]
    data = str(facts.get("title") or facts.get("name") or "")
    allowed = "".join(c if c.isascii() and (c.isalnum() or c in "_+-() ") else " " for c in data)
    environment = Environment(trim_blocks=True, keep_trailing_newline=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    template = environment.from_string(files("mitoseg.export").joinpath("rdf.yaml").read_text(encoding="utf-8"))
    text = template.render(
        name=name,
        model=model,
        facts=facts,
        voxels=voxels_of(model),
        authors=authors(),
        cite=cite,
        version=mitoseg.__version__,
        timestamp=datetime.now(UTC).isoformat(),
        axes=axes,
        opset=OPSET,
        data=data,
        data_name=f"data {allowed}"[:64] if len(allowed) < 5 else allowed[:64],
        data_version=data_module.DatasetDescr.implemented_format_version,
        parameters=sum(p.numel() for p in model.network.parameters()),
        metadata=metadata(model, form, facts),
    )
    return model_module.ModelDescr(**yaml.safe_load(text))


def _document(name: str, model: Model, form: Form, card: str) -> str:
    """Markdown: what goes in and comes out, how it is used and judged, then the model's card."""
    taken, given = described(form)
    text = files("mitoseg.export").joinpath("documentation.md").read_text(encoding="utf-8")
    head = text.format(
        name=name,
        taken=taken,
        given=given,
        mean=model.normalization["mean"],
        std=model.normalization["std"],
        threshold=model.threshold,
        voxels=voxels_of(model),
        slices=", ".join(f"{n:+d}" if n else "0" for n in CHANNEL_OFFSETS[model.channels]),
        halo=" x ".join(map(str, form.sizes.halo)),
    )
    lower = [f"#{line}" if line.startswith("#") else line for line in card.splitlines()]
    return head + "\n".join(lower) + "\n"


def draw_cover(grey_yx: npt.NDArray[np.floating], prob_yx: npt.NDArray[np.floating], threshold: float) -> Image.Image:
    """Grey values beside themselves with mitochondria in orange, the more so the surer, outlined at the threshold."""
    low, high = np.percentile(grey_yx, (0.5, 99.5))
    level = np.clip((grey_yx - low) / max(high - low, 1e-6), 0, 1)
    plain = np.repeat(level[..., None], 3, 2)
    weight = (0.5 * prob_yx)[..., None]
    mixed = plain * (1 - weight) + np.array(ORANGE) / 255 * weight
    inside = prob_yx >= threshold
    mixed[inside & ~binary_erosion(inside, border_value=1)] = np.array(ORANGE) / 255
    halves = [Image.fromarray((255 * half).astype(np.uint8)) for half in (plain, mixed)]
    cover = Image.new("RGB", (2 * SIDE, SIDE))
    for i, half in enumerate(halves):
        side = min(half.size)
        square = half.crop((0, 0, side, side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        cover.paste(square, (i * SIDE, 0))
    return cover
