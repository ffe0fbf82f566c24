"""Where a network computes, by the user's word."""

from __future__ import annotations

import torch

from mitoseg.errors import UserError


def choose_device(accelerator: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        UserError: The device is not known or not here.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    here["gpu"] = here["cuda"]
    if accelerator == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if here[name]))
    if not here.get(accelerator):
        usable = ", ".join(name for name, there in here.items() if there)
        raise UserError("no such accelerator here", accelerator, f"use auto or one of {usable}")
    return torch.device("cuda" if accelerator == "gpu" else accelerator)
