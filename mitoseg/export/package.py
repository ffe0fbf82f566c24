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
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_erosion

import mitoseg
from mitoseg.errors import UserError
from mitoseg.export.forms import Form, make_form
from mitoseg.export.onnx_file import (
    INPUT,
    OPSET,
    OUTPUT,
    TOLERANCE,
    Exported,
    compare,
    described,
    expected,
    write_onnx,
)
from mitoseg.export.weights import metadata, voxels_of
from mitoseg.extras import import_extra
from mitoseg.networks.checkpoint import Model
from mitoseg.storage import atomic_output, check_output
from mitoseg.volumes import CHANNEL_OFFSETS, Array

PACKAGE_SUFFIX = ".zip"
COVER = 256
"""Voxels along y and x of the image on the cover."""
SIDE = 384
"""Pixels of each half of the cover."""
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

    Args:
        model: What to write.
        path: Ends in ``.zip``.
        name: Title.
        image: Makes the grey values of the test input, and of the cover, for a shape (z, y, x).
        card: The model's card in Markdown; its headings go one level down.
        facts: Of the training: ``name``, ``title``, ``licence``, ``citation``, ``doi``, ``commit``.
        tile: (z, y, x) for a network that does not say what sizes it takes.
        overwrite: Whether a file that exists may be replaced.
        on_step: Called with what is done next.
    """
    if Path(path).suffix != PACKAGE_SUFFIX:
        remedy = f"give output=NAME{PACKAGE_SUFFIX}"
        raise UserError("cannot export to that suffix", Path(path).suffix or str(path), remedy)
    spec, core = (import_extra(f"bioimageio.{part}", "bioimageio.core", "exchange") for part in ("spec", "core"))
    check_output(path, overwrite)
    form, facts = make_form(model, "volume", tile), facts or {}
    title = re.sub(r"[^A-Za-z0-9_+\-() ]", "-", name)[:64]  # bioimage.io allows these letters, and wants five
    title = title if len(title) >= 5 else f"mitoseg {title}"
    with tempfile.TemporaryDirectory() as folder, atomic_output(path, overwrite=overwrite) as temporary:
        place = Path(folder)
        on_step("tracing the network")
        write_onnx(form, place / "weights.onnx", metadata(model, form, facts))
        on_step("comparing with the network")
        shapes, difference = compare(model, form, place / "weights.onnx")
        if not difference <= TOLERANCE:
            raise UserError(f"the weights differ from the network by up to {difference:.2g}", name, "nothing is kept")
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
    return Exported(form.name, *described(form), shapes, difference)


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
    v = import_extra("bioimageio.spec.model.v0_5", "bioimageio.core", "exchange")
    parameters = sum(p.numel() for p in model.network.parameters())
    size = "" if model.voxel_size is None else f" Trained on voxels of {voxels_of(model)}."
    about = v.BioimageioConfig(
        modality="electron microscopy",
        target_structure=["mitochondria"],
        task="segmentation",
        architecture_description=str(model.config.get("_target_")),
        model_parameter_count=parameters,
        out_of_scope_use="Diagnosis; other tissue, staining or voxel sizes without a check against labels.",
    )
    cite = []  # an entry needs a DOI: an address would be looked up
    if facts.get("doi"):
        cite = [v.CiteEntry(text=str(facts.get("citation") or facts.get("title")), doi=v.Doi(facts["doi"]))]
    onnx = v.OnnxWeightsDescr(source=v.RelativeFilePath("weights.onnx"), opset_version=OPSET)
    return v.ModelDescr(
        name=name,
        description=(
            "The probability of being a mitochondrion for every voxel of an electron-microscopy volume, calibrated on "
            f"validation slabs. Mitochondria are voxels at {model.threshold:.3f} and above.{size}"
        ),
        authors=[v.Author(name=author) for author in authors()],
        cite=cite,
        license=v.LicenseId("BSD-3-Clause"),
        tags=["mitochondria", "electron-microscopy", "segmentation", "semantic-segmentation", "3d", "onnx"],
        documentation=v.FileDescr(source=v.RelativeFilePath("documentation.md")),
        covers=[v.FileDescr(source=v.RelativeFilePath("cover.png"))],
        version=v.Version(mitoseg.__version__),
        timestamp=v.Datetime(datetime.now(UTC)),
        inputs=[_input(v, form, model)],
        outputs=[_output(v, form, model)],
        weights=v.WeightsDescr(onnx=onnx),
        training_data=_training_data(v, facts, cite),
        config=v.Config(bioimageio=about, mitoseg=metadata(model, form, facts)),
    )


def _space(form: Form, model: Model) -> list[dict[str, Any]]:
    """Name, unit and scale of the axes z, y, x."""
    if model.voxel_size is None:
        return [{"id": axis} for axis in form.axes[2:]]
    named = zip(form.axes[2:], model.voxel_size, strict=True)
    return [{"id": axis, "unit": "nanometer", "scale": size} for axis, size in named]


def _input(v: Any, form: Form, model: Model) -> Any:  # noqa: ANN401 (``v``: bioimageio.spec's model module)
    sides = []
    for axis, least, step in zip(_space(form, model), form.sizes.piece, form.sizes.step, strict=True):
        size = v.ParameterizedSize(min=least, step=step) if step else least
        sides.append(v.SpaceInputAxis(**axis, size=size, concatenable=True))
    return v.InputTensorDescr(
        id=v.TensorId(INPUT),
        description="Grey values as they are stored; normalisation is in the weights.",
        axes=[v.BatchAxis(), v.ChannelAxis(channel_names=[v.Identifier("grey")]), *sides],
        data=v.IntervalOrRatioDataDescr(type="float32"),
        pad=v.ReflectPadding(mode="reflect"),  # said, since what is not said is not written
        test_tensor=v.FileDescr(source=v.RelativeFilePath("test_input.npy")),
    )


def _output(v: Any, form: Form, model: Model) -> Any:  # noqa: ANN401
    sides = []
    for axis, halo in zip(_space(form, model), form.sizes.halo, strict=True):
        size = v.SizeReference(tensor_id=v.TensorId(INPUT), axis_id=v.AxisId(axis["id"]))
        whole = v.SpaceOutputAxisWithHalo(**axis, size=size, halo=halo) if halo else None
        sides.append(whole or v.SpaceOutputAxis(**axis, size=size))
    return v.OutputTensorDescr(
        id=v.TensorId(OUTPUT),
        description="Calibrated probability of mitochondrion.",
        axes=[v.BatchAxis(), v.ChannelAxis(channel_names=[v.Identifier("mitochondrion")]), *sides],
        data=v.IntervalOrRatioDataDescr(type="float32", range=(0.0, 1.0)),
        test_tensor=v.FileDescr(source=v.RelativeFilePath("test_output.npy")),
    )


def _training_data(v: Any, facts: Mapping[str, Any], cite: list[Any]) -> Any:  # noqa: ANN401
    """The data set, if it is known."""
    title = facts.get("title") or facts.get("name")
    if not title:
        return None
    dataset = import_extra("bioimageio.spec.dataset.v0_3", "bioimageio.core", "exchange")
    allowed = "".join(c if c.isascii() and (c.isalnum() or c in "_+-() ") else " " for c in str(title))
    return dataset.DatasetDescr(
        name=f"data {allowed}"[:64] if len(allowed) < 5 else allowed[:64],
        description=f"{title}. Licence: {facts.get('licence') or 'not recorded'}.",
        authors=[v.Author(name=f"see the citation; described by {name}") for name in authors()],
        cite=cite,
        tags=["electron-microscopy"],
    )


_TEXT = """# {name}

Give it a stack of electron micrographs (z, y, x) as it is; you get the probability of mitochondrion for every voxel.

## What goes in, what comes out

- input `image`: {taken}; one channel, grey values as they are stored, float32. Do not normalise: that is in the
  weights (mean {mean:.1f}, standard deviation {std:.1f}). Bring a volume with other grey values to these.
- output `probability`: {given}; calibrated, from 0 to 1. Mitochondria are voxels at {threshold:.3f} and above.
- voxel size of the training volume (z, y, x): {voxels}. Resample others to it.
- slices seen for each slice: {slices}; where one is missing, the slice itself.
- Pieces of a stack must overlap: cut {halo} voxels (z, y, x) on each side; programs that know bioimage.io do so. The
  first and last slices of a stack, padded by reflection then, may differ a little from what mitoseg writes there.

## Use

    bioimageio test package.zip
    bioimageio predict package.zip

Or in ilastik and deepImageJ: choose the zip as a local model.

## Validation

Label a few slices, predict them, and compare: `mitoseg evaluate prediction=OUT truth=LABELS` prints the Jaccard index
of mitochondria, of background and their mean. The scores below are those of the training run.

"""


def _document(name: str, model: Model, form: Form, card: str) -> str:
    """Markdown: what goes in and comes out, how it is used and judged, then the model's card."""
    taken, given = described(form)
    head = _TEXT.format(
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
