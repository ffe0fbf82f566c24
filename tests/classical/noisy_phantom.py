"""A small phantom whose noise makes single voxels unsure: 10 nm voxels, nothing as dark as mitochondria."""

from functools import cache

import numpy as np

from mitoseg.datasets.synthetic import Preset, generate_phantom
from mitoseg.datasets.synthetic.presets import Microscope, Tissue

VOXEL_SIZE = (10.0, 10.0, 10.0)
SHAPE = (16, 224, 128)
# rows that are learned from, that settings are chosen on, and that are reported
PARTS = {"fit": slice(0, 112), "validation": slice(112, 168), "test": slice(168, 224)}


@cache
def noisy_phantom():
    """The image and, by part, its labels, which are 255 elsewhere."""
    tissue = Tissue(mitochondria=0.1, lysosomes=0, multivesicular=0, dark_cells=0, myelinated=0)
    preset = Preset("noisy", VOXEL_SIZE, tissue, microscope=Microscope(shot=25.0, detector=15.0))
    image_zyx, label_zyx, _ = generate_phantom(SHAPE, 3, preset)
    labels = {}
    for name, rows in PARTS.items():
        labels[name] = np.full_like(label_zyx, 255)
        labels[name][:, rows] = label_zyx[:, rows]
    return image_zyx, labels
