"""A trained network in exchange formats, with a card that says what it is."""

from mitoseg.export.card import model_card
from mitoseg.export.weights import export_weights

__all__ = ["export_weights", "model_card"]
