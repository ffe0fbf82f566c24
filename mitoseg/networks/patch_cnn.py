"""The block CNN of the abstract: MatConvNet's CIFAR LeNet with two classes, and its twin without inner padding.

Both networks have the same parameters under the same names, so weights move from one to the other:

    ========================================  ==================  ===================
    layer                                     PatchCNN, 32 px     ContextCNN, 67 px
    ========================================  ==================  ===================
    conv1  5x5xC -> 32                        32 (pad 2)          63
    pool1  max 3x3, stride 2, then ReLU       16 (pad 0 1 0 1)    31
    conv2  5x5x32 -> 32, ReLU                 16 (pad 2)          27
    pool2  average 3x3, stride 2              8  (pad 0 1 0 1)    13
    conv3  5x5x32 -> 64, ReLU                 8  (pad 2)          9
    pool3  average 3x3, stride 2              4  (pad 0 1 0 1)    4
    conv4  4x4x64 -> 64, ReLU                 1                   1
    fc     1x1x64 -> 2                        1                   1
    ========================================  ==================  ===================

The pools pad only at the bottom and right, as torch's ``ceil_mode`` does.

In a whole image output i stands for the window that starts at pixel 8i. ContextCNN's output is that of the window
alone, to rounding; PatchCNN's depends on pixels 8i-14 .. 8i+52 (`spill`), which around a block are zeros.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class BlockCNN(nn.Module):
    """The layers that PatchCNN and ContextCNN share; a `mitoseg.networks.kinds.BlockNetwork`."""

    window: int
    stride = 8
    spill: tuple[int, int]

    def __init__(self, in_channels: int, classes: int, *, padded: bool) -> None:
        super().__init__()
        self.in_channels, self.classes = in_channels, classes
        pad = 2 if padded else 0
        average = {"kernel_size": 3, "stride": 2, "ceil_mode": padded, "count_include_pad": False}
        self.layers = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(in_channels, 32, 5, padding=pad),
                pool1=nn.MaxPool2d(3, 2, ceil_mode=padded),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, 5, padding=pad),
                relu2=nn.ReLU(),
                pool2=nn.AvgPool2d(**average),  # type: ignore[arg-type]
                conv3=nn.Conv2d(32, 64, 5, padding=pad),
                relu3=nn.ReLU(),
                pool3=nn.AvgPool2d(**average),  # type: ignore[arg-type]
                conv4=nn.Conv2d(64, 64, 4),
                relu4=nn.ReLU(),
                fc=nn.Conv2d(64, classes, 1),
            )
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights: 0.01 randn in the first layer, 0.05 randn in the others, biases zero."""
        for name, layer in self.layers.named_children():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01 if name == "conv1" else 0.05)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, image_bcyx: Tensor) -> Tensor:
        """Scores (B, classes, y, x) before the softmax, of normalised float images; y = x = 1 for one window."""
        logits_bcyx: torch.Tensor = self.layers(image_bcyx)
        return logits_bcyx


class PatchCNN(BlockCNN):
    """The network of the abstract on 32x32 blocks; 145,058 parameters with 3 input channels, 143,458 with 1.

    >>> PatchCNN()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 2, 1, 1])
    >>> PatchCNN()(torch.zeros(1, 3, 768, 1024)).shape
    torch.Size([1, 2, 93, 125])
    """

    window, spill = 32, (14, 21)

    def __init__(self, in_channels: int = 3, classes: int = 2) -> None:
        super().__init__(in_channels, classes, padded=True)


class ContextCNN(BlockCNN):
    """The same layers without inner padding on a 67x67 window: a whole image equals a sliding window exactly.

    >>> ContextCNN()(torch.zeros(1, 3, 67, 67)).shape
    torch.Size([1, 2, 1, 1])
    """

    window, spill = 67, (0, 0)

    def __init__(self, in_channels: int = 3, classes: int = 2) -> None:
        super().__init__(in_channels, classes, padded=False)
