"""With how many digits a network computes, and whether it is compiled."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mitoseg.errors import UserError

PRECISIONS = ("fp32", "bf16")
LIMIT = 0.001
"""Foreground JAC on validation that bfloat16 may cost."""
COMPILE_OPERATIONS = {"cpu": 2.5e13, "cuda": 1e16}
"""Operations from which compiling pays: on a CPU it takes some ten seconds and saves up to a fifth of the time."""


def choose_precision(name: str, device: torch.device, record: Mapping[str, Any], *, able: bool | None = None) -> str:
    """One of `PRECISIONS`; ``auto`` is bfloat16 if it costs less than `LIMIT` and the device has it natively.

    ``record`` is the checkpoint's, ``able`` whether the device is native; None: look at this machine's.
    """
    if name not in ("auto", *PRECISIONS):
        raise UserError("no such precision", name, f"choose one of auto, {', '.join(PRECISIONS)}")
    if device.type == "mps":
        if name == "bf16":
            raise UserError("no bfloat16 on this accelerator", device.type, "use precision=fp32")
        return "fp32"
    if name != "auto":
        return name
    try:
        drop = float(record["precision"]["bf16"]["jaccard_drop"])
    except (KeyError, TypeError, ValueError):  # not measured
        return "fp32"
    return "bf16" if drop < LIMIT and (has_bf16(device) if able is None else able) else "fp32"


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes with bfloat16 natively."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # no public name
    return any(bool(getattr(torch.cpu, test, bool)()) for test in tests)


def computing(precision: str, device: torch.device, *, compiled: bool = False) -> AbstractContextManager[Any]:
    """A context in which convolutions compute with a precision; in float32 a GPU uses no TF32.

    On a CPU, unless compiled, a tile's outputs in float32 are those of the whole to the last bit.
    """
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    if device.type == "cuda":
        return torch.backends.cudnn.flags(enabled=True, benchmark=False, allow_tf32=False)
    if device.type == "cpu" and not compiled and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return SameConvolution()
    return contextlib.nullcontext()


class SameConvolution(TorchFunctionMode):
    """Has oneDNN compute every convolution; for small images torch takes another way, which sums in another order."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Replace `torch.conv2d` and `torch.conv3d`, which modules call with positional arguments."""
        if func not in (torch.conv2d, torch.conv3d) or kwargs or args[0].dtype != torch.float32:
            return func(*args, **(kwargs or {}))
        image, weight = args[:2]
        defaults: tuple[Any, ...] = (None, 1, 0, 1, 1)
        bias, stride, padding, dilation, groups = args[2:] + defaults[len(args) - 2 :]
        if isinstance(padding, str):
            return func(*args)
        sizes = [[v] * (weight.ndim - 2) if isinstance(v, int) else list(v) for v in (padding, stride, dilation)]
        return torch.mkldnn_convolution(image, weight, bias, *sizes, groups)  # type: ignore[call-arg, arg-type]


def choose_compile(wish: str | bool, device: torch.device, operations: float) -> bool:
    """Whether to compile for a number of floating-point operations; ``wish`` is ``auto``, true or false."""
    wish = {"true": True, "false": False}.get(wish, wish) if isinstance(wish, str) else wish
    if isinstance(wish, bool):
        if wish and not can_compile(device):
            raise UserError("cannot compile here", device.type, "install a C++ compiler, or give compile=false")
        return wish
    if wish != "auto":
        raise UserError("compile is neither true nor false", wish, "choose auto, true or false")
    return operations >= COMPILE_OPERATIONS.get(device.type, float("inf")) and can_compile(device)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile works here: with a C++ compiler, on a GPU also Triton."""
    compiler = any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "cl")))
    return compiler and (device.type == "cpu" or (device.type == "cuda" and find_spec("triton") is not None))
