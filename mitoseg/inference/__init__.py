"""From a volume and a network to a probability for every voxel."""

from mitoseg.inference.methods import METHODS, choose_method, log_odds_in_memory, make_method
from mitoseg.inference.predictor import Predictor, predict_volume
from mitoseg.inference.prepare import KINDS, Options, Prediction
from mitoseg.inference.views import CONSENSUS, SYMMETRIES

__all__ = [
    "CONSENSUS",
    "KINDS",
    "METHODS",
    "SYMMETRIES",
    "Options",
    "Prediction",
    "Predictor",
    "choose_method",
    "log_odds_in_memory",
    "make_method",
    "predict_volume",
]
