"""The synthetic phantom: electron-microscopy volumes made from a seed, with exact truth."""

from mitoseg.datasets.synthetic.generate import VERSION, generate_phantom
from mitoseg.datasets.synthetic.presets import PRESETS, Preset, get_preset

__all__ = ["PRESETS", "VERSION", "Preset", "generate_phantom", "get_preset"]
