"""Start from the weights of another run, adapted to the channels and classes of this one; freeze layers.

first layer    n -> 1 channels: the sum over channels; 1 -> n: an n-th of it for each. Either gives the same scores
               as before on slices that are the same in every channel.
last layer     another number of classes: initialised anew
anything else  must keep its shape
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.networks.checkpoint import KEY, find_weights, read_checkpoint

log = logging.getLogger(__name__)
PREFIX = "network."  # of the network's weights in a training checkpoint


def init_from(network: nn.Module, path: str | Path) -> dict[str, Any]:
    """Give a network the weights of a checkpoint or a bundled model; returns the checkpoint's entry `KEY`."""
    checkpoint = read_checkpoint(find_weights(path))
    given = {k.removeprefix(PREFIX): v for k, v in checkpoint["state_dict"].items() if k.startswith(PREFIX)}
    wanted = network.state_dict()
    for name in (*wanted, *given):
        if (name in wanted) != (name in given):
            where = "this network" if name in wanted else "the checkpoint"
            raise UserError(f"init_from: only {where} has {name}", str(path), "choose the network it was trained with")
    weights = [name for name in wanted if name.endswith("weight") and wanted[name].ndim > 1]
    last = weights[-1].removesuffix("weight") if weights else ""
    entry = wanted[weights[0]] if weights else torch.empty(0, 1)
    voxels = entry.shape[1] // getattr(network, "in_channels", entry.shape[1])  # that became channels of one slice
    adapted = {}
    for name, tensor in wanted.items():
        first = voxels if tensor.data_ptr() == entry.data_ptr() else 0  # MONAI gives a layer several names
        adapted[name] = _adapt(name, given[name], tensor, first=first, last=name.startswith(last))
    network.load_state_dict(adapted)
    record: dict[str, Any] = checkpoint[KEY]
    return record


def _adapt(name: str, given: Tensor, wanted: Tensor, *, first: int, last: bool) -> Tensor:
    """The given tensor in the wanted shape; ``first``: inputs per channel of the image, if it is the first layer."""
    if given.shape == wanted.shape:
        return given
    before, now = tuple(given.shape), tuple(wanted.shape)
    same_but_channels = first > 0 and (before[0], before[2:]) == (now[0], now[2:]) and before[1] % first == 0
    if same_but_channels and first in (before[1], now[1]):
        there, here = before[1] // first, now[1] // first
        log.warning("init_from: %s is adapted from %d to %d input channels", name, there, here)
        single = given.reshape(before[0], there, first, *before[2:]).sum(1) / here
        return torch.cat([single] * here, dim=1)
    if last and before[1:] == now[1:]:
        log.warning("init_from: %s has %d classes now and had %d: it is initialised afresh", name, now[0], before[0])
        return wanted
    reason = "channels adapt from or to one alone" if same_but_channels else "only channels and classes can adapt"
    raise UserError(f"init_from: {name} has shape {before} there and {now} here; {reason}", None, "match the networks")


def freeze(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """Take layers out of training; returns the names of the frozen parameters.

    ``layers`` are names (``layers.conv1``), which include all below them, or patterns (``layers.conv*``).
    """
    frozen: list[str] = []
    for layer in layers:
        found = [n for n, _ in network.named_parameters() if fnmatchcase(n, layer) or fnmatchcase(n, f"{layer}.*")]
        if not found:
            names = ", ".join(name for name, child in network.named_modules() if _own(child))
            raise UserError("freeze: no such layer", layer, f"choose among {names}")
        frozen += found
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if frozen and not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("freeze leaves nothing to train", ",".join(layers), "name fewer layers")
    return sorted(set(frozen))


def _own(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def hold_frozen(network: nn.Module) -> None:
    """Keep modules whose parameters are all frozen in evaluation mode, so that their running statistics stay too."""
    for module in network.modules():
        if _own(module) and not any(parameter.requires_grad for parameter in _own(module)):
            module.eval()
