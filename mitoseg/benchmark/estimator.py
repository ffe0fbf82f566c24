"""What a method that is no network must offer, and how it is made and fed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mitoseg.datasets import Region
from mitoseg.errors import UserError
from mitoseg.volumes import VoxelSize
from mitoseg.volumes.base import Array

Labels = npt.NDArray[np.uint8]
"""0 background, 1 mitochondrion, 255 ignored."""

INSTALL = 'pip install "mitoseg[classical]"'


@runtime_checkable
class Estimator(Protocol):
    """A method over volumes, in the manner of scikit-learn.

    Its constructor takes keywords, ``voxel_size`` ((z, y, x) in nm) among them. `fit` and `tune` take one region as
    two arrays, several as two lists of as many arrays, which may differ in shape.
    """

    def fit(self, image_zyx: Array | Sequence[Array], label_zyx: Labels | Sequence[Labels], /) -> object:
        """Learn from the training regions."""
        ...

    def tune(self, image_zyx: Array | Sequence[Array], label_zyx: Labels | Sequence[Labels], /) -> object:
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


def read_regions(regions: Sequence[Region]) -> tuple[Array | list[Array], Labels | list[Labels]]:
    """Images and labels as `Estimator.fit` and `Estimator.tune` take them."""
    images, labels = ([region.read_image() for region in regions], [region.read_label() for region in regions])
    return (images[0], labels[0]) if len(regions) == 1 else (images, labels)
