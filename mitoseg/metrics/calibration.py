r"""From a network's log-odds to probabilities that mean what they say.

A network trained on balanced batches says 0.5 where the truth is 0.05. The prior shift corrects that exactly where no
training position was dropped; temperature and bias, fitted on validation voxels, do the rest (Platt, 1999; Guo et al.,
On calibration of modern neural networks, ICML 2017):

    calibrated = (logit + prior_shift) / temperature + bias
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit

from mitoseg.errors import UserError
from mitoseg.metrics.histogram import CENTRES, Floats

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURES = (0.02, 50.0)
"""A fit that leaves this range says that the voxels determine no temperature."""

Logits = TypeVar("Logits", float, npt.NDArray[np.floating], "Tensor")
"""Log-odds."""


@dataclass(frozen=True)
class Calibration:
    """An increasing map of log-odds; the default is the identity.

    Raises:
        UserError: The temperature is not positive, or a number is not finite.

    >>> Calibration(prior_shift=-3.0, temperature=2.0, bias=0.5).apply(1.0)
    -0.5
    """

    prior_shift: float = 0.0
    temperature: float = 1.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        if not all(math.isfinite(v) for v in asdict(self).values()) or self.temperature <= 0:
            raise UserError("not a calibration", asdict(self), "numbers must be finite and the temperature positive")

    def apply(self, logits: Logits) -> Logits:
        """Calibrated log-odds of a float, array or tensor of log-odds."""
        return (logits + self.prior_shift) / self.temperature + self.bias

    def to_dict(self) -> dict[str, float]:
        """Plain data, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, float]) -> Calibration:
        """Read `to_dict`'s data.

        Raises:
            UserError: A key is unknown, or a value is no usable number.
        """
        names = {f.name for f in fields(cls)}
        if not set(data) <= names:
            raise UserError("not a calibration", dict(data), f"its keys are {sorted(names)}")
        return cls(**{name: float(value) for name, value in data.items()})


def prior_shift(pi: float, pi_batches: float) -> float:
    """``log(pi / (1 - pi)) - log(pi_t / (1 - pi_t))``, the correction for training on another share of foreground.

    Source: Saerens, Latinne, Decaestecker, Neural Computation 14(1), 2002, for two classes.

    Args:
        pi: Share of foreground over all training positions, under the rule that labelled the batches.
        pi_batches: Share of foreground in the training batches.

    Raises:
        UserError: A share is not strictly between 0 and 1.

    >>> round(prior_shift(0.05, 0.5), 4)
    -2.9444
    """
    for share in (pi, pi_batches):
        if not 0 < share < 1:
            raise UserError("a share of mitochondria must lie between 0 and 1", share, "training needs both classes")
    return float(logit(pi) - logit(pi_batches))


def negative_log_likelihood(hist: npt.NDArray[np.integer], calibration: Calibration) -> float:
    """Mean ``-log p(truth)`` over the voxels of a log-odds histogram, in nats; NaN without voxels."""
    if not hist.any():
        return math.nan
    x = calibration.apply(CENTRES)
    loss = hist[0] @ np.logaddexp(0.0, x) + hist[1] @ np.logaddexp(0.0, -x)
    return float(loss / hist.sum())


def fit_calibration(hist: npt.NDArray[np.integer], prior_shift: float = 0.0) -> Calibration:
    """The temperature and bias with the least negative log likelihood, given the prior shift.

    It is a logistic regression of the truth on the shifted log-odds, solved on the histogram.

    Args:
        hist: `logit_histogram` of validation voxels, as the network gave them (neither shifted nor scaled).
        prior_shift: From `prior_shift`.

    Returns:
        The fit; or temperature 1 and bias 0 with the given shift where the voxels determine none: a class is missing,
        all log-odds are equal, the classes are separable, or higher log-odds mean less foreground.
    """
    shift_only = Calibration(prior_shift=prior_shift)
    background, foreground = (np.flatnonzero(row) for row in hist)
    used = np.union1d(background, foreground)
    if not len(background) or not len(foreground) or len(used) < 2 or background[-1] < foreground[0]:
        return shift_only
    x = CENTRES[used] + prior_shift
    n0, n1 = hist[:, used] / hist.sum()

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * x + parameters[1]
        slope = n0 * expit(z) - n1 * expit(-z)
        return float(n0 @ np.logaddexp(0.0, z) + n1 @ np.logaddexp(0.0, -z)), np.array([slope @ x, slope.sum()])

    def hessian(parameters: Floats) -> Floats:
        z = parameters[0] * x + parameters[1]
        weight = (n0 + n1) * expit(z) * expit(-z)
        return np.array([[weight @ (x * x), weight @ x], [weight @ x, weight.sum()]])

    fit = minimize(loss, [1.0, 0.0], jac=True, hess=hessian, method="trust-exact", options={"gtol": 1e-10})
    slope, bias = (float(v) for v in fit.x)
    if not math.isfinite(bias) or not 1 / TEMPERATURES[1] < slope < 1 / TEMPERATURES[0]:
        return shift_only
    return Calibration(prior_shift, 1 / slope, bias)
