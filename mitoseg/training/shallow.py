"""A guard against wrong gradients of shallow 3D convolutions in bfloat16 on a CPU.

With torch 2.13 (oneDNN, AVX-512 bfloat16) the weights' gradient of a 3D convolution with a kernel of 3 and a stride
of 1 along z is wrong, and often NaN, where its image is exactly two slices deep; in float32, and at any other depth,
it is right. A U-Net comes to such an image at its coarsest level.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.hooks import RemovableHandle

from mitoseg.errors import UserError

DEPTH = 2
"""Slices of an image whose gradients go wrong."""


class ShallowConvolutions(Callback):
    """Ends a run on a CPU in bfloat16 at its first step, if a 3D convolution sees an image two slices deep."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what goes into the convolutions."""
        if trainer.strategy.root_device.type != "cpu" or "bf16" not in str(trainer.precision):
            return
        for layer in pl_module.modules():
            if isinstance(layer, nn.Conv3d) and layer.kernel_size[0] > 1 and layer.stride[0] == 1:
                self._handles.append(layer.register_forward_pre_hook(_check))

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401 (Lightning's signature)
        """All tiles have one size: one step tells."""
        while self._handles:
            self._handles.pop().remove()


def _check(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Refuse an image two slices deep.

    Raises:
        UserError: It is.
    """
    if layer.training and inputs[0].shape[2] == DEPTH:
        what = "gradients in bfloat16 on a CPU are wrong where the network's coarsest level is two slices deep"
        raise UserError(
            what, tuple(inputs[0].shape[2:]), "give a deeper data.tile=[z,y,x], or trainer.precision=32-true"
        )
