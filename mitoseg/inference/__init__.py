"""From a volume and a network to a probability for every voxel."""

from mitoseg.inference.gather import CONSENSUS
from mitoseg.inference.methods import METHODS, Options, choose_method, make_method, slice_log_odds
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
    "make_method",
    "predict_volume",
    "slice_log_odds",
]
