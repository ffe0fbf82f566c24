r"""From a network's log-odds to probabilities that mean what they say, and how well they do.

A network trained on balanced batches says 0.5 where the truth is 0.05. The prior shift corrects that exactly where no
training position was dropped; temperature and bias, fitted on validation voxels, do the rest (Platt, 1999; Guo et al.,
On calibration of modern neural networks, ICML 2017):

    calibrated = (logit + prior_shift) / temperature + bias

A map is calibrated if, of the voxels to which it gives the probability p, the share p is foreground. Every function
takes a `logit_histogram` of log-odds as the network gave them, and the calibration that is applied to them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit, logit

from mitoseg.errors import UserError
from mitoseg.metrics.counts import Counts
from mitoseg.metrics.histogram import CENTRES, Curve, Floats, Ints, best_threshold, curve

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURES = (0.02, 50.0)  # a fit that leaves this range says that the voxels determine no temperature

Logits = TypeVar("Logits", float, npt.NDArray[np.floating], "Tensor")


@dataclass(frozen=True)
class Calibration:
    """An increasing map of log-odds; the default is the identity.

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
        """Calibrate log-odds."""
        return (logits + self.prior_shift) / self.temperature + self.bias


AS_STORED = Calibration()


def prior_shift(pi: float, pi_batches: float) -> float:
    """``log(pi / (1 - pi)) - log(pi_t / (1 - pi_t))``, the correction for training on another share of foreground.

    Source: Saerens, Latinne, Decaestecker, Neural Computation 14(1), 2002, for two classes. ``pi`` is the share over
    all training positions, ``pi_batches`` that in the batches, both under the rule that labels the batches.

    >>> round(prior_shift(0.05, 0.5), 4)
    -2.9444
    """
    for share in (pi, pi_batches):
        if not 0 < share < 1:
            raise UserError("a fraction of mitochondria is not in 0 to 1", share, "training needs both classes")
    return float(logit(pi) - logit(pi_batches))


def fit_calibration(hist: npt.NDArray[np.integer], prior_shift: float = 0.0) -> Calibration:
    """The temperature and bias with the least negative log likelihood, given the prior shift.

    A logistic regression of the truth on the shifted log-odds, solved on the histogram. Temperature 1 and bias 0 where
    the voxels determine none: a class is missing, all log-odds are equal, the classes are separable, or higher
    log-odds mean less foreground.
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


@dataclass(frozen=True)
class Decision:
    """How log-odds become foreground; the threshold is a calibrated probability, and in raw log-odds."""

    calibration: Calibration
    threshold: float
    raw_threshold: float
    curve: Curve
    counts: Counts


def choose_decision(hist: npt.NDArray[np.integer], prior_shift: float) -> Decision:
    """Fit the calibration and choose the threshold with the best foreground JAC on validation voxels.

    Of several domains, (domains, 2, BINS), the mean JAC is the best one, and for all else they count alike.
    """
    each = hist.reshape(-1, 2, hist.shape[-1])
    points, calibration = curve(evened(each)), fit_calibration(evened(each), prior_shift)
    raw, _ = best_threshold(*map(curve, each))
    return Decision(calibration, float(expit(calibration.apply(raw))), raw, points, points.at(raw))


def evened(hist_d2b: npt.NDArray[np.integer]) -> Ints:
    """The sum of histograms (domains, 2, BINS), each scaled up to as many voxels as the largest has.

    >>> evened(np.array([[[1, 0], [0, 1]], [[2, 4], [0, 2]]])).tolist()
    [[6, 4], [0, 6]]
    """
    voxels_d = hist_d2b.sum((1, 2))
    factor_d = voxels_d.max() / np.maximum(1, voxels_d)
    summed: Ints = np.rint(hist_d2b * factor_d[:, None, None]).astype(np.int64).sum(0)
    return summed


def negative_log_likelihood(hist: npt.NDArray[np.integer], calibration: Calibration = AS_STORED) -> float:
    """Mean ``-log p(truth)``, in nats; NaN without voxels."""
    if not hist.any():
        return math.nan
    x = calibration.apply(CENTRES)
    loss = hist[0] @ np.logaddexp(0.0, x) + hist[1] @ np.logaddexp(0.0, -x)
    return float(loss / hist.sum())


def brier_score(hist: npt.NDArray[np.integer], calibration: Calibration = AS_STORED) -> float:
    """Mean ``(p - truth)^2`` (Brier, Monthly Weather Review 78, 1950); NaN without voxels."""
    total = hist.sum()
    if not total:
        return math.nan
    p = expit(calibration.apply(CENTRES))
    return float((hist[0] @ p**2 + hist[1] @ (1 - p) ** 2) / total)


@dataclass(frozen=True)
class Reliability:
    """Bins of probability that hold voxels, ascending: their number, mean probability, and share of foreground."""

    voxels: Ints
    confidence: Floats
    share: Floats

    @property
    def error(self) -> float:
        """``sum_b n_b / n |share_b - confidence_b|``, the calibration error; NaN without voxels.

        With bins of equal width the expected calibration error (Naeini et al., AAAI 2015; torchmetrics'
        `BinaryCalibrationError` with the l1 norm), with adaptive ones that of Nixon et al., CVPR Workshops 2019.
        """
        total = int(self.voxels.sum())
        return float(self.voxels @ np.abs(self.share - self.confidence) / total) if total else math.nan


def reliability_bins(
    hist: npt.NDArray[np.integer], calibration: Calibration = AS_STORED, *, bins: int = 15, adaptive: bool = False
) -> Reliability:
    """Mean probability and share of foreground, by bins of probability; 15 as Guo et al. have them.

    Adaptive bins hold equally many voxels, as far as equal log-odds, which are not torn apart, allow. Of bins of equal
    width, as most papers have them, the first holds nearly all EM voxels.
    """
    probability, n = expit(calibration.apply(CENTRES)), hist.sum(axis=0)
    position = (np.cumsum(n) - n / 2) / max(1, n.sum()) if adaptive else probability
    at = np.minimum((position * bins).astype(np.int64), bins - 1)
    voxels = np.bincount(at, weights=n, minlength=bins).astype(np.int64)
    confidence = np.bincount(at, weights=n * probability, minlength=bins)
    foreground = np.bincount(at, weights=hist[1], minlength=bins)
    used = voxels > 0
    return Reliability(voxels[used], confidence[used] / voxels[used], foreground[used] / voxels[used])
