"""A small real estimator: logistic regression on the grey value and on two blurred ones."""

import os
import signal

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression

IGNORED = 255


class GreyClassifier:
    """As `mitoseg.benchmark.Estimator` asks.

    Args:
        seed: Of the voxels that are learnt from.
        voxel_size: (z, y, x) in nm.
        sigmas: Of the blur, in nm.
        samples: Voxels to learn from.
        dies: Kill the process at that stage, ``fit`` or ``predict``, unless a file named ``alive`` is there.
    """

    def __init__(self, *, voxel_size, seed=0, sigmas=(10.0, 30.0), samples=20_000, dies=None):
        self.seed, self.voxel_size, self.sigmas, self.samples = seed, tuple(voxel_size), tuple(sigmas), samples
        self.dies, self.threshold = dies, 0.5

    def fit(self, image_zyx, label_zyx):
        self._die("fit")
        features, truth = self.features(image_zyx), label_zyx.ravel()
        chosen = np.random.default_rng(self.seed).permutation(np.flatnonzero(truth != IGNORED))[: self.samples]
        model = LogisticRegression().fit(features[chosen], truth[chosen])
        self.weights, self.bias = model.coef_[0], float(model.intercept_[0])
        return self

    def tune(self, image_zyx, label_zyx):
        probability, truth = self.predict_proba(image_zyx).ravel(), label_zyx.ravel()
        candidates = np.quantile(probability, np.linspace(0.5, 0.99, 30))
        scores = [jaccard(probability >= t, truth) for t in candidates]
        self.threshold = float(candidates[int(np.argmax(scores))])
        return self

    def features(self, image_zyx):
        grey = image_zyx.astype(np.float32) / 255
        blurred = [gaussian_filter(grey, [s / v for v in self.voxel_size]) for s in self.sigmas]
        return np.stack([grey, *blurred], axis=-1).reshape(-1, 1 + len(self.sigmas))

    def predict_proba(self, image_zyx):
        logits = self.features(image_zyx) @ self.weights + self.bias
        return (1 / (1 + np.exp(-logits))).astype(np.float32).reshape(image_zyx.shape)

    def predict(self, image_zyx):
        self._die("predict")
        return (self.predict_proba(image_zyx) >= self.threshold).astype(np.uint8)

    def _die(self, stage):
        if self.dies == stage and not os.path.exists("alive"):
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def jaccard(found, truth):
    counted = truth != IGNORED
    return np.count_nonzero(found & (truth == 1)) / max(np.count_nonzero((found | (truth == 1)) & counted), 1)


class NeedsMore(GreyClassifier):
    """An estimator whose library is not installed."""

    def __init__(self, **options):
        import no_such_library  # noqa: F401

        super().__init__(**options)
