"""A checkpoint as safetensors, and what every exported file says of itself, for those who have nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mitoseg
from mitoseg.errors import UserError
from mitoseg.export.forms import Form, networks_of
from mitoseg.geometry import anchor
from mitoseg.networks.checkpoint import SUFFIX, Model, write_weights
from mitoseg.networks.kinds import dimensions, per_axis
from mitoseg.storage import atomic_output
from mitoseg.volumes import CHANNEL_OFFSETS


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
}

_VOLUME = "an answer for every voxel; pieces of a stack overlap by twice the halo, which is cut"


def metadata(model: Model, form: Form, facts: Mapping[str, Any]) -> dict[str, str]:
    """What an exported file says of itself: text by key; lists are JSON.

    ``facts`` are of the training: ``licence``, ``citation``, ``commit``, ``name``, ... What is not known says so.
    """
    channels = list(CHANNEL_OFFSETS[model.channels])
    known = {
        "title": "mitochondria in electron-microscopy volumes",
        "mitoseg_version": mitoseg.__version__,
        "form": form.name,
        "input": "grey values as they are stored, float32; normalisation is inside",
        "input_axes": json.dumps(list(form.axes)),
        "output": "probability of mitochondrion, calibrated; prior correction and calibration are inside",
        "output_axes": json.dumps(list(form.output_axes)),
        "edges": _VOLUME if form.name == "volume" else _GIVES[form.name],
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
        known |= {
            "window": json.dumps(window[0]),
            "answers": json.dumps([anchor(n) for n in window[0]]),
        }
    return known
