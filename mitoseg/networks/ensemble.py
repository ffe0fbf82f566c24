"""Several networks as one: the mean of what they say, each in its own terms.

Each member was trained with its own grey values and calibrated on its own; what it says counts as calibrated log-odds:

    image, normalised for the ensemble   ->  grey values  ->  normalised for the member  ->  its network
    log-odds of the network              ->  (log-odds + prior_shift) / temperature + bias

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
    """Log-odds of "mitochondrion" from scores.

    Args:
        scores: (B, 2, ...), background and mitochondrion, or (B, 1, ...), which are log-odds already.

    Returns:
        float32 (B, ...).

    Raises:
        UserError: Another number of classes.
    """
    if scores.shape[1] not in (1, 2):
        raise UserError("the network's scores are not those of two classes", scores.shape[1], "use one or two outputs")
    wide = scores.float()
    return wide[:, 1] - wide[:, 0] if scores.shape[1] == 2 else wide[:, 0]


class Member(nn.Module):
    """A network of an ensemble: takes the ensemble's image, gives calibrated log-odds.

    Args:
        network: Its scores are those of one or two classes.
        normalization: ``mean`` and ``std`` of the grey values that it was trained on.
        calibration: ``prior_shift``, ``temperature`` and ``bias`` of its log-odds; what is missing changes nothing.
        given: ``mean`` and ``std`` that the ensemble's image is normalised with.

    Raises:
        UserError: A number is missing, not finite, or not positive where it must be; or a key is unknown.
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
        (mean, std), (given_mean, given_std) = _moments(normalization), _moments(given)
        self.scale, self.shift = given_std / std, (given_mean - mean) / std
        self.calibration = _checked(_CALIBRATION | dict(calibration), _CALIBRATION, "temperature")

    def normalize(self, image: Tensor) -> Tensor:
        """The image as this network was trained to see it."""
        return image if (self.scale, self.shift) == (1, 0) else image * self.scale + self.shift

    def calibrate(self, raw: Tensor) -> Tensor:
        """Calibrated log-odds from those of the network."""
        known = self.calibration
        return (raw + known["prior_shift"]) / known["temperature"] + known["bias"]

    def forward(self, image: Tensor) -> Tensor:
        """Calibrated log-odds (B, 1, ...)."""
        return self.calibrate(log_odds(self.network(self.normalize(image))))[:, None]


class Ensemble(nn.Module):
    """Networks whose calibrated log-odds are averaged.

    `mitoseg.inference` predicts with each member by the method that fits it, so members may have windows, fields and
    tiles of their own; called directly, all must give scores of one size.

    Args:
        members: Plain data for each: ``name`` (of a class, as `build_network` takes it), ``arguments``,
            ``normalization`` and ``calibration`` as `Member` takes them, and perhaps ``tile``, the (z, y, x) that it
            was trained on.
        normalization: ``mean`` and ``std`` that images are normalised with.
        trust: Allow classes of members from outside mitoseg and MONAI.

    Raises:
        UserError: There are no members, a config is not as above, or a class may not be used.

    >>> member = {"name": "mitoseg.networks.PatchCNN", "arguments": {"in_channels": 1},
    ...           "normalization": {"mean": 120.0, "std": 30.0}, "calibration": {"bias": -1.0}}
    >>> ensemble = Ensemble([member, member], normalization={"mean": 128.0, "std": 25.0})
    >>> ensemble(torch.zeros(1, 1, 40, 32)).shape
    torch.Size([1, 1, 2, 1])
    """

    nested = True
    """Its arguments name further classes; see `build_network`."""

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
        """The mean over members of their calibrated log-odds, float32 (B, 1, ...).

        Raises:
            UserError: The members' scores differ in size.
        """
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


def _moments(normalization: Mapping[str, float]) -> tuple[float, float]:
    known = _checked(normalization, {"mean": 0.0, "std": 1.0}, "std")
    return known["mean"], known["std"]


def _checked(values: Mapping[str, float], keys: Mapping[str, float], positive: str) -> dict[str, float]:
    """Finite numbers under just these keys, one of them above zero."""
    try:
        numbers = {key: float(values[key]) for key in keys}
    except (KeyError, TypeError, ValueError):
        numbers = {}
    if (
        not numbers
        or set(values) - set(keys)
        or not all(map(math.isfinite, numbers.values()))
        or numbers[positive] <= 0
    ):
        remedy = f"give finite numbers as {', '.join(keys)}, the {positive} above zero"
        raise UserError("not the numbers of an ensemble's member", dict(values), remedy)
    return numbers
