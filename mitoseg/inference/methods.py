"""The ways to turn a network into a map, by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.inference.protocol import BlockNetwork
from mitoseg.inference.strided import strided_log_odds

Method = Callable[[BlockNetwork, Tensor], Tensor]
"""From a network and ``image_bcyx`` to ``log_odds_byx``."""

METHODS: dict[str, Method] = {"strided": strided_log_odds}


def choose_method(name: str, network: nn.Module) -> tuple[str, Method]:
    """The method that a name stands for; ``auto`` takes the best one that fits the network.

    Raises:
        UserError: There is no such method, or it does not fit the network.
    """
    chosen = "strided" if name == "auto" else name
    if chosen not in METHODS:
        raise UserError("no such method", name, f"choose one of auto, {', '.join(METHODS)}")
    if not isinstance(network, BlockNetwork):
        raise UserError(
            f"method {chosen} needs a block network", type(network).__name__, "use patch_cnn or context_cnn"
        )
    return chosen, METHODS[chosen]
