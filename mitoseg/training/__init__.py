"""Training: the LightningModule, its optimizers and callbacks. The network is handed in."""

from mitoseg.training.module import SegmentationModule
from mitoseg.training.optimizers import adamw, one_cycle, sgd_paper, stages

__all__ = ["SegmentationModule", "adamw", "one_cycle", "sgd_paper", "stages"]
