"""Several networks as one: the mean of their calibrated log-odds, each on grey values normalised as in its training.

The mean of log-odds is the logarithmic opinion pool, the normalised geometric mean of probabilities (Genest and Zidek,
1986, Statistical Science 1(1)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mitoseg.errors import UserError
from mitoseg.networks.checkpoint import build_network

_KEYS = {"name", "arguments", "normalization", "calibration", "tile"}
_CALIBRATION = {"prior_shift": 0.0, "temperature": 1.0, "bias": 0.0}


def log_odds(scores: Tensor) -> Tensor:
    """Log-odds of "mitochondrion", float32 (B, ...), from scores.

    Scores are (B, 2, ...), background and mitochondrion, or (B, 1, ...), which are log-odds already.
    """
    if scores.shape[1] not in (1, 2):
        raise UserError("the network's scores are not those of two classes", scores.shape[1], "use one or two outputs")
    wide = scores.float()
    return wide[:, 1] - wide[:, 0] if scores.shape[1] == 2 else wide[:, 0]


class Member(nn.Module):
    """A network of an ensemble: takes the ensemble's image, gives calibrated log-odds.

    ``normalization`` holds ``mean`` and ``std`` of its training, ``given`` those of the ensemble's image;
    ``calibration`` holds ``prior_shift``, ``temperature`` and ``bias``, of which missing ones change nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        normalization: Mapping[str, float],
        calibration: Mapping[str, float],
        given: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.network = network
        own, image = (_checked(moments, ("mean", "std"), "std") for moments in (normalization, given))
        self.scale, self.shift = image["std"] / own["std"], (image["mean"] - own["mean"]) / own["std"]
        self.calibration = _checked(_CALIBRATION | dict(calibration), tuple(_CALIBRATION), "temperature")

    def normalize(self, image: Tensor) -> Tensor:
        """The ensemble's image, normalised as in this network's training."""
        return image if (self.scale, self.shift) == (1, 0) else image * self.scale + self.shift

    def calibrate(self, raw: Tensor) -> Tensor:
        """Calibrate the network's log-odds."""
        return (raw + self.calibration["prior_shift"]) / self.calibration["temperature"] + self.calibration["bias"]

    def forward(self, image: Tensor) -> Tensor:
        """Calibrated log-odds (B, 1, ...)."""
        return self.calibrate(log_odds(self.network(self.normalize(image))))[:, None]


class Ensemble(nn.Module):
    """Networks whose calibrated log-odds are averaged.

    `mitoseg.inference` predicts with each member by its own method; called directly, all must give scores of one size.
    Of each member it is given the ``name`` of its class, ``arguments``, ``normalization`` and ``calibration`` (see
    `Member`), and optionally ``tile``, the (z, y, x) that it was trained on; ``normalization`` is that of the images,
    and ``trust`` allows classes from outside mitoseg and MONAI.

    Raises:
        UserError: There are no members, a config is not as above, or a class may not be used.

    >>> member = {"name": "mitoseg.networks.PatchCNN", "arguments": {"in_channels": 1},
    ...           "normalization": {"mean": 120.0, "std": 30.0}, "calibration": {"bias": -1.0}}
    >>> ensemble = Ensemble([member, member], normalization={"mean": 128.0, "std": 25.0})
    >>> ensemble(torch.zeros(1, 1, 40, 32)).shape
    torch.Size([1, 1, 2, 1])
    """

    nested = True  # its arguments name further classes; see `build_network`

    def __init__(
        self, members: Sequence[Mapping[str, Any]], normalization: Mapping[str, float], *, trust: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(members, Sequence) or not members or not all(isinstance(m, Mapping) for m in members):
            raise UserError("an ensemble has no members", members, "combine checkpoints with `mitoseg ensemble`")
        self.members = nn.ModuleList(_build(member, normalization, trust) for member in members)

    @property
    def parts(self) -> tuple[Member, ...]:
        """The members in order."""
        return tuple(self.members)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """The mean over members of their calibrated log-odds, float32 (B, 1, ...)."""
        answers = [member(image) for member in self.parts]
        sizes = {tuple(answer.shape) for answer in answers}
        if len(sizes) > 1:
            raise UserError("the members' scores differ in size", sorted(sizes), "predict with mitoseg.inference")
        return torch.stack(answers).mean(0)


def _build(config: Mapping[str, Any], given: Mapping[str, float], trust: bool) -> Member:
    name, arguments = config.get("name"), config.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, Mapping) or set(config) - _KEYS:
        raise UserError("not a member of an ensemble", sorted(map(str, config)), f"its keys are {sorted(_KEYS)}")
    network = build_network({**arguments, "_target_": name}, trust=trust)
    if isinstance(network, Ensemble):
        raise UserError("a member is an ensemble itself", name, "combine its members instead")
    if "tile" in config:
        network.tile = config["tile"]
    return Member(network, config.get("normalization", {}), config.get("calibration", {}), given)


def _checked(values: Mapping[str, float], keys: Sequence[str], positive: str) -> dict[str, float]:
    """Finite numbers under just these keys, one of them above zero."""
    try:
        numbers = {key: float(values[key]) for key in keys}
        sound = set(values) == set(keys) and all(map(math.isfinite, numbers.values())) and numbers[positive] > 0
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        remedy = f"give finite numbers as {', '.join(keys)}, the {positive} above zero"
        raise UserError("not the numbers of an ensemble's member", dict(values), remedy)
    return numbers
