"""``export``: a checkpoint as safetensors, with its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from mitoseg.errors import UserError
from mitoseg.export import export_weights, model_card
from mitoseg.networks.bundle import find_weights
from mitoseg.networks.checkpoint import load_model
from mitoseg.storage import write_text

FORMATS = ("safetensors",)


def run(cfg: DictConfig) -> None:
    """Write ``output`` and, beside it, ``CARD.md``.

    Raises:
        UserError: The checkpoint, the format or the output is no good.
    """
    if cfg.format not in FORMATS:
        raise UserError("cannot export to that format", cfg.format, f"choose one of {', '.join(FORMATS)}")
    for key in ("checkpoint", "output"):
        if not cfg[key]:
            raise UserError(f"{key} has no value", None, f"add {key}=... to the command")
    output = Path(cfg.output)
    card = output.with_name("CARD.md")
    if card.exists() and not cfg.overwrite:
        raise UserError("the card exists", str(card), "choose another folder, or give overwrite=true")
    checkpoint = find_weights(cfg.checkpoint)
    model = load_model(checkpoint, trust=cfg.trust)
    run_folder = checkpoint.resolve().parents[1]
    export_weights(model, output, overwrite=cfg.overwrite)
    name = cfg.name or output.resolve().parent.name
    write_text(
        card, model_card(name, model, _json(run_folder / "provenance.json"), _json(run_folder / "metrics.json"))
    )
    Console().print(f"{output} ({output.stat().st_size / 1e6:.1f} MB) and {card} written", soft_wrap=True)


def _json(path: Path) -> dict[str, Any] | None:
    """A record of the checkpoint's run, if it lies where training put it."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
