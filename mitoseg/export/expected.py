"""What an exported file must answer, computed without it: by the network, slice by slice, and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn

from mitoseg.export.forms import Form
from mitoseg.geometry import anchor, reflect
from mitoseg.networks import DenseForm, Ensemble
from mitoseg.networks.checkpoint import Model
from mitoseg.networks.ensemble import log_odds
from mitoseg.networks.kinds import dimensions, per_axis
from mitoseg.volumes import Normalization, channel_slices

Floats = npt.NDArray[np.float32]


def expected(model: Model, form: Form, grey: Floats) -> Floats:
    """The probabilities of an input.

    Args:
        model: The network and what it needs.
        form: The form.
        grey: An input of the form, (B, C, [Z,] Y, X).

    Returns:
        float32, as the file must give them.
    """
    if form.name == "volume" and dimensions(model.network) == 2:
        depth = grey.shape[2]
        rows = [channel_slices(z, depth, model.channels) for z in range(depth)]
        volumes = [np.stack([_image(model, form.inner, one[0, row][None])[0] for row in rows], 1) for one in grey]
        return np.stack(volumes)
    return _image(model, form.inner, grey)


def _image(model: Model, inner: str, grey: Floats) -> Floats:
    """Of images in a network's own form."""
    network, known = model.network.eval(), model.calibration
    image = torch.from_numpy(Normalization(**model.normalization).apply(grey))
    with torch.inference_mode():
        if isinstance(network, Ensemble):
            parts = [m.calibrate(log_odds(_scores(m.network, inner, m.normalize(image)))) for m in network.parts]
        else:
            parts = [log_odds(_scores(network, inner, image))]
    raw = np.mean([part.numpy() for part in parts], 0)
    found: Floats = expit((raw + known["prior_shift"]) / known["temperature"] + known["bias"]).astype(np.float32)
    if inner == "block":
        flat = found.reshape(len(found), -1)
        return np.concatenate([1 - flat, flat], 1)
    return found[:, None]


def _scores(network: nn.Module, inner: str, image: Tensor) -> Tensor:
    if inner in ("block", "tile"):
        scores: Tensor = network(image)
        return scores
    ndim = image.ndim - 2
    window = per_axis(network.window, ndim)  # type: ignore[arg-type]
    dense = DenseForm(network)
    spans: list[npt.NDArray[np.integer]] = []
    places: list[slice] = []
    for i, size in enumerate(image.shape[2:]):
        before, after = anchor(window[i]) + dense.padding[i], dense.field[i]
        if inner == "strided":  # windows start at a multiple of the stride, and zeros stay far away
            before = anchor(window[i]) + -(-dense.padding[i] // dense.stride[i]) * dense.stride[i]
            after = 2 * dense.field[i]
        first = (before - anchor(window[i])) // dense.stride[i]
        spans.append(reflect(np.arange(-before, size + after), size))
        places.append(slice(first, first - (-size // dense.stride[i])) if inner == "strided" else slice(0, size))
    for i, span in enumerate(spans):
        image = image.index_select(i + 2, torch.from_numpy(span))
    whole: Tensor = network(image) if inner == "strided" else dense(image)
    index: Any = (..., *places)
    return whole[index]
