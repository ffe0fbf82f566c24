"""``export``: write a checkpoint as safetensors, ONNX or a bioimage.io package."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mitoseg.datasets import Lucchi, LucchiPP, Vnc
from mitoseg.datasets.synthetic import generate_phantom
from mitoseg.errors import UserError
from mitoseg.export.forms import choose_form
from mitoseg.export.onnx_file import export_onnx
from mitoseg.export.package import export_package
from mitoseg.export.weights import export_weights, input_values, model_card, read_facts
from mitoseg.networks.checkpoint import Model, find_weights, load_model
from mitoseg.progress import Tell
from mitoseg.storage import read_json, write_text
from mitoseg.volumes import Array
from mitoseg.workflows.options import ExportOptions

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "bioimageio": ".zip"}
PUBLISHED = (Lucchi, LucchiPP, Vnc)
"""Recipes whose paper a package can cite, which takes a DOI."""


def run(options: ExportOptions, _folder: Path, tell: Tell) -> None:
    """Write ``output`` in the chosen format; safetensors also get a ``CARD.md`` beside them.

    Raises:
        UserError: The checkpoint, the format, the form or the output is invalid.
    """
    output, overwrite, chosen = Path(options.output), options.overwrite, options.format
    if chosen == "auto":
        chosen = {suffix: name for name, suffix in FORMATS.items()}.get(output.suffix, "safetensors")
    if chosen not in FORMATS:
        raise UserError("cannot export to that format", chosen, f"choose one of auto, {', '.join(FORMATS)}")
    if options.form != "auto" and chosen != "onnx":
        raise UserError(f"form is for format=onnx, not {chosen}", options.form, "leave form out")
    checkpoint = find_weights(options.checkpoint)
    model = load_model(checkpoint, trust=options.trust)
    package = chosen == "bioimageio"
    name = options.name or (checkpoint.parent.name if package else output.resolve().parent.name)
    card = _card(checkpoint, name, model)
    if chosen == "safetensors":
        path = output.with_name("CARD.md")
        if path.exists() and not overwrite:
            raise UserError("the card exists", str(path), "choose another folder, or give overwrite=true")
        export_weights(model, output, overwrite=overwrite)
        write_text(path, card)
        tell(f"{output} ({output.stat().st_size / 1e6:.1f} MB) and {path} written")
        return
    facts = read_facts(card)
    facts["doi"] = next((recipe.facts.doi for recipe in PUBLISHED if recipe.name == facts.get("name")), "")
    tile = None if options.tile is None else tuple(options.tile)
    with Console(stderr=True).status("reading the network") as status:
        more: dict[str, Any] = {"facts": facts, "tile": tile, "overwrite": overwrite, "on_step": status.update}
        if package:
            image = partial(_phantom, model)
            exported = export_package(model, output, name=name, image=image, card=card, **more)
        else:
            choose_form(options.form, model.network)
            exported = export_onnx(model, output, form=options.form, **more)
    kind = "bioimage.io package" if package else f"ONNX, form {exported.form}"
    sizes = ", ".join("x".join(map(str, shape)) for shape in exported.shapes)
    tell(f"{output} ({output.stat().st_size / 1e6:.1f} MB) written: {kind}")
    tell(f"input   {exported.input}: {input_values(model)}")
    tell(f"output  {exported.output}: calibrated probability")
    tell(f"checked against the network on inputs of {sizes}: largest difference {exported.difference:.1e}")
    if package:
        tell("bioimageio.core's own test passed")


def _phantom(model: Model, shape: tuple[int, int, int]) -> Array:
    """A crop of the phantom with grey values like the training volume's; no smaller than a phantom can be."""
    wanted = tuple(max(n, least) for n, least in zip(shape, (3, 64, 64), strict=True))
    image_zyx = generate_phantom(wanted, 0)[0].astype("float32")
    mean, std = model.normalization["mean"], model.normalization["std"]
    matched: Array = (image_zyx - image_zyx.mean()) / image_zyx.std() * std + mean
    z, y, x = shape
    return matched[:z, :y, :x].round()


def _card(checkpoint: Path, name: str, model: Model) -> str:
    """The card beside exported weights, else one made from the provenance and scores of the checkpoint's run."""
    path, run = checkpoint.with_name("CARD.md"), checkpoint.resolve().parents[1]
    if checkpoint.suffix == FORMATS["safetensors"] and path.is_file():
        return path.read_text(encoding="utf-8")
    provenance, metrics = (read_json(run / f"{file}.json") for file in ("provenance", "metrics"))
    kept = {"start": "start", "threshold": "new_threshold"}.get(metrics.get("kept", ""))
    if kept is not None and checkpoint.name == "best.ckpt":  # the others are of tuned.ckpt
        provenance, metrics = {}, {"validation": metrics[kept]}
    return model_card(name, model, provenance, metrics)
