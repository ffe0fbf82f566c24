"""Factories for the training module: an optimizer of the network, a schedule of the optimizer and its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR


def sgd_paper(
    network: nn.Module,
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    filters: float = 0.1,
    biases: float = 2.0,
    last_layer: float = 0.1,
) -> SGD:
    """The stock SGD of MatConvNet's CIFAR LeNet, with its rate for each kind of parameter.

    The rate is ``lr`` times 0.1 for filters and 2 for biases, and for the last layer times 0.01 and 0.2. Weight decay
    is the same for filters and biases; no Nesterov; the rate stands outside the momentum, as in ``torch.optim.SGD``.

    >>> from mitoseg.networks import PatchCNN
    >>> [round(group["lr"], 6) for group in sgd_paper(PatchCNN()).param_groups]
    [0.005, 0.1, 0.0005, 0.01]
    """
    layers = [m for m in network.modules() if any(True for _ in m.parameters(recurse=False))]
    groups = []
    for members, factor in ((layers[:-1], 1.0), (layers[-1:], last_layer)):
        named = [item for layer in members for item in layer.named_parameters(recurse=False)]
        weights = [p for name, p in named if name != "bias"]
        groups.append({"params": weights, "lr": lr * factor * filters})
        groups.append({"params": [p for name, p in named if name == "bias"], "lr": lr * factor * biases})
    return SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)


def adamw(network: nn.Module, lr: float = 1e-3, weight_decay: float = 1e-2, fused: bool = True) -> AdamW:
    """AdamW over all parameters of a network; ``fused`` where the device has that (CPU and CUDA)."""
    there = all(parameter.device.type in {"cpu", "cuda"} for parameter in network.parameters())
    return AdamW(network.parameters(), lr=lr, weight_decay=weight_decay, fused=fused and there)


def stages(optimizer: Optimizer, steps: int, shares: Sequence[float] = (30, 10, 5), factor: float = 0.1) -> LambdaLR:
    """Constant rate in stages whose lengths are shares of the run, each ``factor`` times the one before.

    With 45 epochs and the default shares these are the stock 30, 10 and 5 epochs.
    """
    ends = [steps * part / sum(shares) for part in accumulate(shares)]
    return LambdaLR(optimizer, lambda step: factor ** min(sum(step >= end for end in ends), len(ends) - 1))


def one_cycle(optimizer: Optimizer, steps: int, warmup: float = 0.15, final: float = 1e-3) -> LambdaLR:
    """Linear warm-up, then half a cosine (Loshchilov and Hutter, 2017) down to ``final`` times the peak."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, factor)
