"""What a training cost: time, memory, and the size of its network; for provenance."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Timer

from mitoseg.provenance import peak_memory


def training_costs(trainer: Trainer, network: torch.nn.Module) -> dict[str, Any]:
    """Costs of a training that has just ended.

    Args:
        trainer: Has a `Timer` among its callbacks, whose state goes along when a run is resumed.
        network: What was trained.

    Returns:
        ``training_seconds``, with validation and without the parts of a run that were lost when it was killed;
        ``parameters``, how many numbers the network has learnt or been given; ``peak_memory`` in bytes, of this
        ``process`` and, as far as torch allocated it, of its ``device`` (None on a CPU).
    """
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))  # type: ignore[attr-defined]
    device = trainer.strategy.root_device
    on_device = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "training_seconds": round(timer.time_elapsed(), 1),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "peak_memory": {"process": peak_memory(), "device": on_device},
    }
