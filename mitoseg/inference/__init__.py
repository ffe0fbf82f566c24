"""From a volume and a network to a probability for every voxel."""

from mitoseg.inference.gather import CONSENSUS
from mitoseg.inference.methods import METHODS, Options, choose_method, log_odds_in_memory, make_method
from mitoseg.inference.predict import KINDS, Prediction, predict_volume
from mitoseg.inference.predictor import Predictor
from mitoseg.inference.symmetry import SYMMETRIES

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
