"""A network as ONNX: one file that takes stored grey values and gives calibrated probabilities.

The file is traced by torch's TorchScript exporter. The newer one, of torch.export, took minutes for the dense form and
refused image sizes that PatchCNN's rounded-up pools leave open (torch 2.13).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit

from mitoseg.errors import UserError, import_extra
from mitoseg.export.forms import Form, make_form
from mitoseg.export.weights import metadata
from mitoseg.inference import log_odds_in_memory
from mitoseg.metrics import Calibration
from mitoseg.networks.checkpoint import Model
from mitoseg.networks.ensemble import log_odds
from mitoseg.networks.kinds import dimensions
from mitoseg.storage import atomic_output, check_output
from mitoseg.volumes import Normalization, channel_slices

Floats = npt.NDArray[np.float32]
SUFFIX = ".onnx"
OPSET = 17  # of ONNX; runtimes know it since 2022 (onnxruntime 1.12)
TOLERANCE = 1e-4  # how far a probability of the file may lie from the network's
INPUT, OUTPUT = "image", "probability"


@dataclass(frozen=True)
class Exported:
    """What was written."""

    form: str
    input: str  # axes and sizes, such as ``b c=1 y x``
    output: str
    shapes: tuple[tuple[int, ...], ...]  # of the inputs that were compared
    difference: float  # the largest between a probability of the file and the network's


def export_onnx(
    model: Model,
    path: str | Path,
    *,
    form: str = "auto",
    tile: tuple[int, int, int] | None = None,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Exported:
    """Write a model as ONNX (``.onnx``) in one of `mitoseg.export.forms.FORMS`, if it answers as the network does.

    ``tile`` (z, y, x) is for a network that does not say what sizes it takes, ``facts`` are those of the training for
    `mitoseg.export.weights.metadata`, and ``on_step`` is called with what is done next.
    """
    check_file(path, SUFFIX, overwrite)
    made = make_form(model, form, tile)
    with atomic_output(path, overwrite=overwrite) as temporary:
        return trace(model, made, temporary, facts or {}, on_step)


def check_file(path: str | Path, suffix: str, overwrite: bool) -> None:
    """Refuse another suffix and an output that exists, before the work begins."""
    if Path(path).suffix != suffix:
        raise UserError("cannot export to that suffix", Path(path).suffix or str(path), f"give output=NAME{suffix}")
    import_extra("onnxruntime", "onnxruntime", "exchange")
    check_output(path, overwrite)


def trace(model: Model, form: Form, path: Path, facts: Mapping[str, Any], on_step: Callable[[str], None]) -> Exported:
    """Write a form of a model, and refuse it unless it answers as the network does."""
    on_step(f"tracing form {form.name}")
    write_onnx(form, path, metadata(model, form, facts))
    on_step("comparing with the network")
    shapes, difference = compare(model, form, path)
    if not difference <= TOLERANCE:  # also where it is not a number
        what = f"the file's probabilities differ from the network's by up to {difference:.2g}, so it was not kept"
        raise UserError(what, form.name, "try another form, or tell the developers")
    return Exported(form.name, *described(form), shapes, difference)


def write_onnx(form: Form, path: Path, about: Mapping[str, str]) -> None:
    """Trace a form into a file."""
    onnx = import_extra("onnx", "onnx", "exchange")
    example = torch.full(form.example([1] * len(form.sizes.step)), 1.0)
    free = {0: "b", **{i: form.axes[i] for i, step in enumerate(form.sizes.step, 2) if step}}
    axes = {INPUT: free, OUTPUT: {0: "b"}}
    if form.name != "block":
        axes[OUTPUT] |= {i: f"out_{name}" if form.inner == "strided" else name for i, name in axes[INPUT].items() if i}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # That exporter calls itself the older one, and warns of every size that Python compares: the comparison of
            # the finished file, at other sizes than the traced one, says what those warnings can only suspect.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                form.module,
                (example,),
                os.fspath(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes=axes,
            )
    except (RuntimeError, ValueError, TypeError, AssertionError, torch.onnx.errors.OnnxExporterError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        raise UserError(
            f"the network cannot be exported in that form ({reason})", form.name, "try another form=, or tile=[z,y,x]"
        ) from error
    proto = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(proto, dict(about))
    proto.doc_string = about["title"]
    onnx.checker.check_model(proto)
    onnx.save(proto, os.fspath(path))


def compare(model: Model, form: Form, path: Path) -> tuple[tuple[tuple[int, ...], ...], float]:
    """The shapes of several inputs, and the largest difference between a file and the network over them.

    It is infinite where a shape of the answers differs.
    """
    session = open_session(path)
    rng = np.random.default_rng(0)
    ndim = len(form.sizes.least)
    steps = ((0,) * ndim, tuple(2 - i % 2 if s > 1 else 13 - 2 * i for i, s in enumerate(form.sizes.step)))
    shapes = tuple(dict.fromkeys((form.example(step, batch) for step, batch in zip(steps, (2, 1), strict=True))))
    difference = 0.0
    for shape in shapes:
        grey = rng.normal(model.normalization["mean"], model.normalization["std"], shape).astype(np.float32)
        found, right = session.run(None, {INPUT: grey})[0], expected(model, form, grey)
        if found.shape != right.shape:
            return shapes, float("inf")
        difference = float(np.maximum(difference, np.abs(found - right).max()))  # NaN stays NaN
    return shapes, difference


def expected(model: Model, form: Form, grey: Floats) -> Floats:
    """What an exported file must answer, as prediction computes it, slice by slice.

    The input ``grey`` is (B, C, [Z,] Y, X).
    """
    if form.name == "volume" and dimensions(model.network) == 2:
        depth = grey.shape[2]
        rows = [channel_slices(z, depth, model.channels) for z in range(depth)]
        volumes = [np.stack([_image(model, form, one[0, row][None])[0] for row in rows], 1) for one in grey]
        return np.stack(volumes)
    return _image(model, form, grey)


def _image(model: Model, form: Form, grey: Floats) -> Floats:
    """The probabilities of images in a network's own form."""
    network, inner = model.network.eval(), form.inner
    image = torch.from_numpy(Normalization(**model.normalization).apply(grey))
    with torch.inference_mode():
        if inner in ("block", "tile"):
            odds = log_odds(network(image))
        else:
            each = [log_odds_in_memory(inner, network, one).view(one.shape[2:]) for one in torch.split(image, 1)]
            answered: Any = (..., *(slice(None, None, step) for step in form.stride))
            odds = torch.stack(each)[answered]
    found: Floats = expit(Calibration(**model.calibration).apply(odds.numpy())).astype(np.float32)
    if inner == "block":
        flat = found.reshape(len(found), -1)
        return np.concatenate([1 - flat, flat], 1)
    return found[:, None]


def open_session(path: Path) -> Any:  # noqa: ANN401 (the runtime has no types)
    """The file in onnxruntime on the CPU."""
    runtime = import_extra("onnxruntime", "onnxruntime", "exchange")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1  # several wait for each other actively, which is slow where other work runs
    return runtime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def described(form: Form) -> tuple[str, str]:
    """Axes and sizes of input and output in words; free sizes as the smallest one, and steps."""
    sides = [
        f"{axis}={least}" if not step else f"{axis}" if step == 1 else f"{axis} (multiples of {step})"
        for axis, least, step in zip(form.axes[2:], form.sizes.least, form.sizes.step, strict=True)
    ]
    taken = " ".join(["b", f"c={form.channels}", *sides])
    if form.name == "block":
        return taken, "b c=2 (background, mitochondrion)"
    given = [f"{a}/{s}" if s > 1 else a for a, s in zip(form.axes[2:], form.stride, strict=True)]
    return taken, " ".join(["b", "c=1", *given])
