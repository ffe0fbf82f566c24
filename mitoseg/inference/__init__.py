"""From a volume and a network to a probability for every voxel."""

from mitoseg.inference.methods import METHODS, choose_method
from mitoseg.inference.predict import KINDS, Prediction, predict_volume
from mitoseg.inference.strided import strided_log_odds

__all__ = ["KINDS", "METHODS", "Prediction", "choose_method", "predict_volume", "strided_log_odds"]
