"""Networks as plain ``nn.Module``s, and how one is rebuilt from a checkpoint."""

from mitoseg.networks.dense import DenseForm
from mitoseg.networks.ensemble import Ensemble
from mitoseg.networks.patch_cnn import ContextCNN, PatchCNN
from mitoseg.networks.unets import UNet

__all__ = ["ContextCNN", "DenseForm", "Ensemble", "PatchCNN", "UNet"]
