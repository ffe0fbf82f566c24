"""Networks as plain ``nn.Module``s, and how one is rebuilt from a checkpoint."""

from mitoseg.networks.dense import DenseForm
from mitoseg.networks.ensemble import Ensemble
from mitoseg.networks.patch_cnn import ContextCNN, PatchCNN

__all__ = ["ContextCNN", "DenseForm", "Ensemble", "PatchCNN"]
