"""A checkpoint as safetensors."""

from __future__ import annotations

import os
from pathlib import Path

from mitoseg.errors import UserError
from mitoseg.networks.bundle import SUFFIX, write_weights
from mitoseg.networks.checkpoint import Model
from mitoseg.storage import atomic_output


def export_weights(model: Model, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a model's weights, kernels in half precision, and all that prediction needs to know.

    Args:
        model: What to write.
        path: Ends in ``.safetensors``.
        overwrite: Whether a file that exists may be replaced.

    Raises:
        UserError: Another suffix, or the file exists.
    """
    if Path(path).suffix != SUFFIX:
        raise UserError("cannot export to that suffix", Path(path).suffix or str(path), f"give output=NAME{SUFFIX}")
    with atomic_output(Path(path), overwrite=overwrite) as temporary:
        write_weights(temporary, model.network.state_dict(), {**model.record, "network": dict(model.config)})
