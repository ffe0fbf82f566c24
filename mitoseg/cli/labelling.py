"""``labelling=``: how the commands that offer it number mitochondria."""

from __future__ import annotations

from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.segmentation import Labelling


def chosen_labelling(cfg: DictConfig) -> Labelling:
    """What ``labelling=`` asks for.

    Raises:
        UserError: A value is out of range.
    """
    labelling: Labelling = instantiate(cfg.labelling)
    return labelling
