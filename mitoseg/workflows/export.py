"""``export``: a checkpoint as safetensors, as ONNX, or as a bioimage.io package."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.status import Status

from mitoseg.datasets import Lucchi, LucchiPP, Vnc
from mitoseg.datasets.synthetic import generate_phantom
from mitoseg.errors import UserError
from mitoseg.export import Exported, export_onnx, export_package, export_weights, model_card, read_facts
from mitoseg.export.forms import choose_form
from mitoseg.networks.checkpoint import Model, find_weights, load_model
from mitoseg.progress import Tell
from mitoseg.storage import read_json, write_text
from mitoseg.volumes import Array

FORMATS = {"safetensors": ".safetensors", "onnx": ".onnx", "bioimageio": ".zip"}
PUBLISHED = (Lucchi, LucchiPP, Vnc)
"""Recipes whose paper a package can cite: it does so by DOI alone."""


def run(cfg: DictConfig, _folder: Path, tell: Tell) -> None:
    """Write ``output`` in a format; beside safetensors also ``CARD.md``.

    Raises:
        UserError: The checkpoint, the format, the form or the output is no good.
    """
    for key in ("checkpoint", "output"):
        if not cfg[key]:
            raise UserError(f"{key} has no value", None, f"add {key}=... to the command")
    output, chosen = Path(cfg.output), _format(cfg)
    checkpoint = find_weights(cfg.checkpoint)
    model = load_model(checkpoint, trust=cfg.trust)
    name = cfg.name or (checkpoint.parent.name if chosen == "bioimageio" else output.resolve().parent.name)
    provenance, metrics = _records(checkpoint)
    card = _card(checkpoint) or model_card(name, model, provenance, metrics)
    if chosen == "safetensors":
        path = output.with_name("CARD.md")
        if path.exists() and not cfg.overwrite:
            raise UserError("the card exists", str(path), "choose another folder, or give overwrite=true")
        export_weights(model, output, overwrite=cfg.overwrite)
        write_text(path, card)
        tell(f"{output} ({output.stat().st_size / 1e6:.1f} MB) and {path} written")
        return
    with Console(stderr=True).status("reading the network") as status:
        exported = _export(cfg, model, output, chosen, name, card, status)
    report(tell, output, exported, package=chosen == "bioimageio")


def _format(cfg: DictConfig) -> str:
    """The format: what is asked for, else by the suffix of the output.

    Raises:
        UserError: No such format, or options that do not go with it.
    """
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    chosen = by_suffix.get(Path(cfg.output).suffix, "safetensors") if cfg.format == "auto" else cfg.format
    if chosen not in FORMATS:
        raise UserError("cannot export to that format", cfg.format, f"choose one of auto, {', '.join(FORMATS)}")
    if cfg.form != "auto" and chosen != "onnx":
        raise UserError(f"form is for format=onnx, not {chosen}", cfg.form, "leave form out")
    return str(chosen)


def _export(
    cfg: DictConfig, model: Model, output: Path, chosen: str, name: str, card: str, status: Status
) -> Exported:
    facts = read_facts(card)
    facts["doi"] = next((recipe.facts.doi for recipe in PUBLISHED if recipe.name == facts.get("name")), "")
    tile = None if cfg.tile is None else tuple(cfg.tile)
    more: dict[str, Any] = {"facts": facts, "tile": tile, "overwrite": cfg.overwrite, "on_step": status.update}
    if chosen == "onnx":
        choose_form(cfg.form, model.network)
        return export_onnx(model, output, form=cfg.form, **more)
    return export_package(model, output, name=name, image=partial(_phantom, model), card=card, **more)


def report(tell: Tell, output: Path, exported: Exported, *, package: bool) -> None:
    """Tell what was written."""
    megabytes = output.stat().st_size / 1e6
    kind = "bioimage.io package" if package else f"ONNX, form {exported.form}"
    sizes = ", ".join("x".join(map(str, shape)) for shape in exported.shapes)
    lines = [
        f"{output} ({megabytes:.1f} MB) written: {kind}",
        f"input   {exported.input}: grey values as they are stored",
        f"output  {exported.output}: calibrated probability",
        f"checked against the network on inputs of {sizes}: largest difference {exported.difference:.1e}",
    ]
    if package:
        lines.append("bioimageio.core's own test passed")
    for line in lines:
        tell(line)


def _phantom(model: Model, shape: tuple[int, int, int]) -> Array:
    """A piece of the phantom with the grey values of the training volume, at least as large as phantoms are."""
    wanted = tuple(max(n, least) for n, least in zip(shape, (3, 64, 64), strict=True))
    image_zyx = generate_phantom(wanted, 0)[0].astype("float32")
    mean, std = model.normalization["mean"], model.normalization["std"]
    matched: Array = (image_zyx - image_zyx.mean()) / image_zyx.std() * std + mean
    z, y, x = shape
    return matched[:z, :y, :x].round()


def _records(checkpoint: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Provenance and scores of the checkpoint's run, if they lie where training put them."""
    folder = checkpoint.resolve().parents[1]
    return read_json(folder / "provenance.json"), read_json(folder / "metrics.json")


def _card(checkpoint: Path) -> str | None:
    """The card beside exported weights, which knows what their run's records said."""
    path = checkpoint.with_name("CARD.md")
    return path.read_text(encoding="utf-8") if checkpoint.suffix == FORMATS["safetensors"] and path.is_file() else None
