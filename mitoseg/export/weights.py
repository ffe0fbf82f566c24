"""A checkpoint as safetensors, its model card from the records of its run, and what every exported file says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Template

import mitoseg
from mitoseg.errors import UserError
from mitoseg.export.forms import Form, networks_of
from mitoseg.geometry import anchor
from mitoseg.networks.checkpoint import SUFFIX, Model, write_weights
from mitoseg.networks.kinds import dimensions, per_axis
from mitoseg.storage import atomic_output
from mitoseg.tables import to_markdown
from mitoseg.volumes import CHANNEL_OFFSETS

_SCORES = {
    **{"jaccard_foreground": "JAC of mitochondria", "jaccard_background": "JAC of background"},
    **{"jaccard_mean": "JAC, mean of both", "precision": "precision", "recall": "recall"},
}


def model_card(
    name: str, model: Model, provenance: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None
) -> str:
    """A card in Markdown, from the records ``provenance.json`` and ``metrics.json`` of a model's run."""
    provenance, metrics = provenance or {}, metrics or {}
    splits = [split for split in ("validation", "test") if split in metrics]
    rows = [["", *splits]]
    for key, label in _SCORES.items():
        found = [metrics[split].get(key) for split in splits]
        rows.append([label, *("" if f is None else f"{f:.4f}" for f in found)])
    left_out = ("hydra.", "data.root", "trainer.enable_progress")
    words = [w for w in provenance.get("arguments") or () if not w.startswith(left_out) and w != "train"]
    template = files("mitoseg.export").joinpath("card.md").read_text(encoding="utf-8")
    card: str = Template(template, trim_blocks=True, keep_trailing_newline=True).render(
        name=name,
        model=model,
        weights=sum(p.numel() for p in model.network.parameters()),
        voxels=voxels_of(model),
        data=provenance.get("data") or {},
        provenance=provenance,
        command=" ".join(words),
        scores=to_markdown(rows) if splits else None,
    )
    return card


def voxels_of(model: Model) -> str:
    """The voxel size (z, y, x) that a model was trained on, as text."""
    return "not recorded" if model.voxel_size is None else " x ".join(f"{v:g}" for v in model.voxel_size) + " nm"


def read_facts(card: str) -> dict[str, str]:
    r"""What a card says of the training data, and the commit: the opposite of `model_card`, as far as facts go.

    >>> read_facts("## Training data\n\n- name: lucchi\n\nCommand: `train`, commit abc.\n")
    {'name': 'lucchi', 'commit': 'abc'}
    """
    section = card.partition("## Training data")[2].partition("\n## ")[0]
    facts = dict(re.findall(r"^- (name|title|licence|citation|url): (.+)$", section, re.MULTILINE))
    commit = re.search(r", commit ([0-9a-z]+)\.", section)
    return facts | ({"commit": commit[1]} if commit else {})


def export_weights(model: Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a model's weights, kernels in half precision, and all that prediction needs to know, as safetensors."""
    if Path(path).suffix != SUFFIX:
        raise UserError("cannot export to that suffix", Path(path).suffix or str(path), f"give output=NAME{SUFFIX}")
    with atomic_output(Path(path), overwrite=overwrite) as temporary:
        write_weights(temporary, model.network.state_dict(), {**model.record, "network": dict(model.config)})


_GIVES = {
    "block": "one window in, two probabilities out: background, mitochondrion",
    "strided": "output i answers pixel stride * i; lines between the log-odds give the pixels in between",
    "dense": "an answer for every pixel; the image is reflected at its border inside, nothing is to be cut",
    "tile": "an answer for every pixel of a tile; near the edges with less context: let tiles overlap and cut halo",
    "volume": "an answer for every voxel; pieces of a stack overlap by twice the halo, which is cut",
}


def input_values(model: Model) -> str:
    """What grey values an exported network takes."""
    if model.record.get("normalize") == "volume":
        return "grey values of mean 0 and standard deviation 1 over the volume"
    return "grey values as they are stored; normalisation is inside"


def metadata(model: Model, form: Form, facts: Mapping[str, Any]) -> dict[str, str]:
    """What an exported file says of itself: text by key; lists are JSON.

    ``facts`` are of the training: ``licence``, ``citation``, ``commit``, ``name``, ... What is not known says so.
    """
    channels = list(CHANNEL_OFFSETS[model.channels])
    known = {
        "title": "mitochondria in electron-microscopy volumes",
        "mitoseg_version": mitoseg.__version__,
        "form": form.name,
        "input": f"{input_values(model)}, float32",
        "input_axes": json.dumps(list(form.axes)),
        "output": "probability of mitochondrion, calibrated; prior correction and calibration are inside",
        "output_axes": json.dumps(list("bc" if form.name == "block" else form.axes)),
        "edges": _GIVES[form.name],
        "sizes_least": json.dumps(form.sizes.least),
        "sizes_step": json.dumps(form.sizes.step),
        "halo": json.dumps(form.sizes.halo),
        "output_stride": json.dumps(form.stride),
        "threshold": repr(model.threshold),
        "mean": repr(float(model.normalization["mean"])),
        "std": repr(float(model.normalization["std"])),
        "calibration": json.dumps(dict(model.calibration)),
        "voxel_size_nm_zyx": json.dumps(model.voxel_size and list(model.voxel_size)),
        "slices_of_channels": json.dumps([0] if form.name == "volume" else channels),
        "slices_seen": json.dumps(channels),
        "network": str(model.config.get("_target_")),
        "licence_of_mitoseg": "BSD-3-Clause",
    }
    data = {"data": "title", "data_licence": "licence", "data_citation": "citation", "commit": "commit"}
    known |= {key: str(facts.get(source) or "not recorded") for key, source in data.items()}
    if form.inner != "tile":
        ndim = dimensions(model.network)
        window = [per_axis(one.window, ndim) for one in networks_of(model.network)]  # type: ignore[arg-type]
        known |= {"window": json.dumps(window[0]), "answers": json.dumps([anchor(n) for n in window[0]])}
    return known
