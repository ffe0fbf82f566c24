"""The description of a bioimage.io package, ``rdf.yaml``, format 0.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mitoseg.export.about import metadata
from mitoseg.export.forms import Form
from mitoseg.export.onnx_file import INPUT, OPSET, OUTPUT
from mitoseg.extras import import_extra
from mitoseg.networks.checkpoint import Model

TAGS = ["mitochondria", "electron-microscopy", "segmentation", "semantic-segmentation", "3d", "onnx"]


def describe(
    name: str, model: Model, form: Form, facts: Mapping[str, Any], authors: Sequence[str], version: str
) -> Any:  # noqa: ANN401 (a ModelDescr; bioimageio.spec is imported when it is needed)
    """A ``ModelDescr`` whose files lie in the validation context's root.

    Args:
        name: Title, in letters that bioimage.io allows.
        model: The network and what it needs.
        form: The form ``volume``.
        facts: Of the training data, as far as they are known.
        authors: Names.
        version: Of mitoseg.

    Raises:
        UserError: bioimageio.spec is missing.
    """
    v = _spec()
    parameters = sum(p.numel() for p in model.network.parameters())
    about = v.BioimageioConfig(
        modality="electron microscopy",
        target_structure=["mitochondria"],
        task="segmentation",
        architecture_description=str(model.config.get("_target_")),
        model_parameter_count=parameters,
        out_of_scope_use="Diagnosis; other tissue, staining or voxel sizes without a check against labels.",
    )
    return v.ModelDescr(
        name=name,
        description=_summary(model),
        authors=[v.Author(name=author) for author in authors],
        cite=_cite(facts),
        license=v.LicenseId("BSD-3-Clause"),
        tags=TAGS,
        documentation=v.FileDescr(source=v.RelativeFilePath("documentation.md")),
        covers=[v.FileDescr(source=v.RelativeFilePath("cover.png"))],
        version=v.Version(version),
        timestamp=v.Datetime(datetime.now(UTC)),
        inputs=[_input(form, model)],
        outputs=[_output(form, model)],
        weights=v.WeightsDescr(
            onnx=v.OnnxWeightsDescr(source=v.RelativeFilePath("weights.onnx"), opset_version=OPSET)
        ),
        training_data=_training_data(facts, authors),
        config=v.Config(bioimageio=about, mitoseg=metadata(model, form, facts)),
    )


def _spec() -> Any:  # noqa: ANN401
    return import_extra("bioimageio.spec.model.v0_5", "bioimageio.core", "exchange")


def _summary(model: Model) -> str:
    size = (
        ""
        if model.voxel_size is None
        else f" Trained on voxels of {' x '.join(f'{n:g}' for n in model.voxel_size)} nm."
    )
    return (
        "The probability of being a mitochondrion for every voxel of an electron-microscopy volume, calibrated on "
        f"validation slabs. Mitochondria are voxels at {model.threshold:.3f} and above.{size}"
    )


def _space(form: Form, model: Model) -> list[dict[str, Any]]:
    """Name, unit and scale of the axes z, y, x."""
    if model.voxel_size is None:
        return [{"id": axis} for axis in form.axes[2:]]
    return [
        {"id": axis, "unit": "nanometer", "scale": size}
        for axis, size in zip(form.axes[2:], model.voxel_size, strict=True)
    ]


def _input(form: Form, model: Model) -> Any:  # noqa: ANN401
    v = _spec()
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


def _output(form: Form, model: Model) -> Any:  # noqa: ANN401
    v = _spec()
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


def _cite(facts: Mapping[str, Any]) -> list[Any]:
    """The papers of the training data; an entry needs a DOI (an address would be looked up)."""
    v = _spec()
    if not facts.get("doi"):
        return []
    return [v.CiteEntry(text=str(facts.get("citation") or facts.get("title")), doi=v.Doi(facts["doi"]))]


def _training_data(facts: Mapping[str, Any], authors: Sequence[str]) -> Any:  # noqa: ANN401
    """The data set, if it is known."""
    title = facts.get("title") or facts.get("name")
    if not title:
        return None
    dataset = import_extra("bioimageio.spec.dataset.v0_3", "bioimageio.core", "exchange")
    allowed = "".join(c if c.isascii() and (c.isalnum() or c in "_+-() ") else " " for c in str(title))
    return dataset.DatasetDescr(
        name=f"data {allowed}"[:64] if len(allowed) < 5 else allowed[:64],
        description=f"{title}. Licence: {facts.get('licence') or 'not recorded'}.",
        authors=[_spec().Author(name=f"see the citation; described by {name}") for name in authors],
        cite=_cite(facts),
        tags=["electron-microscopy"],
    )
