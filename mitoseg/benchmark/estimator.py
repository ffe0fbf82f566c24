"""What a method that is no network must offer, and how it is made and fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mitoseg.datasets import IGNORE, Region
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.volumes import VoxelSize
from mitoseg.volumes.base import Array

Labels = npt.NDArray[np.uint8]
"""0 background, 1 mitochondrion, 255 ignored."""

CONTEXT = 16
"""Voxels around the regions that an estimator sees as well."""
INSTALL = 'pip install "mitoseg[classical]"'


@runtime_checkable
class Estimator(Protocol):
    """A method over volumes, in the manner of scikit-learn.

    Its constructor takes keywords, ``voxel_size`` ((z, y, x) in nm) among them. `fit` and `tune` take a volume and its
    labels, which are 255 outside the regions in question: what lies there is tissue to look at, not to learn from.
    """

    def fit(self, image_zyx: Array, label_zyx: Labels, /) -> object:
        """Learn from the training regions."""
        ...

    def tune(self, image_zyx: Array, label_zyx: Labels, /) -> object:
        """Choose the threshold, weights of the regularisation and the like on the validation slabs, all together."""
        ...

    def predict_proba(self, image_zyx: Array, /) -> npt.NDArray[np.float32]:
        """Probability of mitochondrion of every voxel, before regularisation."""
        ...

    def predict(self, image_zyx: Array, /) -> npt.NDArray[np.uint8]:
        """The mask, 0 or 1, as tuned."""
        ...

    def save(self, path: Path, /) -> None:
        """Write everything that `load` needs into one file or folder of this name."""
        ...

    @classmethod
    def load(cls, path: Path, /) -> Self:
        """The estimator that `save` has written."""
        ...


def make_estimator(name: str, config: Mapping[str, Any], voxel_size: VoxelSize | None) -> Estimator:
    """The estimator that a config's ``_target_`` names.

    Args:
        name: Of the method, for messages.
        config: ``_target_`` and keywords of its constructor.
        voxel_size: Handed to it; cubic voxels where it is None.

    Raises:
        UserError: A library is missing, a keyword is not known, or the class is no estimator.
    """
    try:
        made = instantiate(dict(config), voxel_size=voxel_size or (1.0, 1.0, 1.0))
    except InstantiationException as error:
        raise _explained(name, error) from error
    if not isinstance(made, Estimator):
        lacking = [key for key in ("fit", "tune", "predict", "save", "load") if not hasattr(made, key)]
        remedy = f"methods.{name}.estimator._target_ must name a class that has them"
        raise UserError(f"{type(made).__name__} is no estimator, it lacks {', '.join(lacking)}", name, remedy)
    return made


def _explained(name: str, error: InstantiationException) -> Exception:
    """A missing library and an unknown keyword in one line; anything else as it is."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, UserError):
            return link
        if isinstance(link, ImportError) and not (link.name or "mitoseg").startswith("mitoseg"):
            return UserError(f"the method {name} needs a library that is missing", link.name, INSTALL)
        if isinstance(link, TypeError) and "keyword argument" in str(link):
            return UserError(f"the method {name} has no such option ({link})", None, f"see conf/methods/{name}.yaml")
        link = link.__cause__
    return error


def read_regions(regions: Sequence[Region], context: int = CONTEXT) -> tuple[Array, Labels]:
    """Regions of one volume as `Estimator.fit` and `Estimator.tune` take them: the box around all of them.

    z   |<-context->|<- slab ->|   (not labelled)   |<- slab ->|<-context->|

    Args:
        regions: At least one.
        context: Voxels around them that are read as well, as far as there are any.

    Returns:
        Image and labels, the latter `IGNORE` outside the regions.

    Raises:
        UserError: They lie in several volumes.
    """
    volumes = sorted({region.image.path for region in regions})
    if len(volumes) > 1:
        remedy = "give one with data.train.image= and data.train.label=, or methods that are networks"
        raise UserError("an estimator learns from one volume, there are several", volumes, remedy)
    image = regions[0].image
    starts, stops = (np.array([getattr(r.box, end) for r in regions]) for end in ("start", "stop"))
    around = Box(tuple(starts.min(axis=0).tolist()), tuple(stops.max(axis=0).tolist())).grow(context).clip(image.box)
    label_zyx = np.full(around.shape, IGNORE, np.uint8)
    for region in regions:
        label_zyx[region.box.inside(around).slices] = region.read_label()
    return image.read(around), label_zyx
