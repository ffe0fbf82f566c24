"""Mitochondria in electron-microscopy volumes: segmentation, scores and measurements.

The Python interface, which docs/PYTHON.md explains; its libraries are loaded when they are first asked for:

    model = mitoseg.load()
    mask = model.segment("my.tif", voxel_size=(5, 5, 5))
    table = mitoseg.measure(mitoseg.label(mask), voxel_size=(5, 5, 5))
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Labelling",
    "Postprocess",
    "SegmentationModel",
    "UserError",
    "__version__",
    "evaluate",
    "finetune",
    "label",
    "load",
    "measure",
    "train",
]

if TYPE_CHECKING:
    from mitoseg.errors import UserError
    from mitoseg.segmentation import Labelling, Postprocess
    from mitoseg.workflows.interface import SegmentationModel, evaluate, finetune, label, load, measure, train

_PLACES = {"UserError": "errors", "Labelling": "segmentation", "Postprocess": "segmentation"}
"""Modules of the names that are not of the interface's own."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(f"mitoseg.{_PLACES.get(name, 'workflows.interface')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
