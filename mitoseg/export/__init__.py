"""A trained network in exchange formats, with a card that says what it is."""

from mitoseg.export.forms import FORMS, make_form
from mitoseg.export.onnx_file import Exported, export_onnx
from mitoseg.export.package import export_package
from mitoseg.export.weights import export_weights, model_card, read_facts

__all__ = [
    "FORMS",
    "Exported",
    "export_onnx",
    "export_package",
    "export_weights",
    "make_form",
    "model_card",
    "read_facts",
]
