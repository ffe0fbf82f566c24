"""The progress bar of a prediction, and what a network has to give for it."""

from __future__ import annotations

from collections.abc import Container

from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Prediction, Predictor, predict_volume
from mitoseg.inference.predict import BoxWriter
from mitoseg.inference.prepare import INSTANCES
from mitoseg.progress import progress
from mitoseg.volumes import Volume


def staged_kind(save: str, dtype: str | None, *, cleaned: bool) -> str:
    """What the network has to give: `save` itself, or what the last step makes it of.

    Raises:
        UserError: Instances are wanted in another type than theirs.
    """
    if save == INSTANCES and dtype is not None:
        raise UserError("cannot save instances as that type", dtype, "leave dtype out: instances are uint32")
    if cleaned:
        return "probability"
    return "mask" if save == INSTANCES else save


def predict_with_progress(
    prediction: Prediction | Predictor,
    volume: Volume,
    writer: BoxWriter,
    *,
    box: Box | None = None,
    tile: tuple[int, int, int] | None = None,
    done: Container[Box] = (),
    done_voxels: int = 0,
    title: str = "",
    show: bool = True,
) -> None:
    """`predict_volume` with a progress bar over the voxels."""
    total = (box or volume.box).size
    with progress(f"predicting {title}", total, done=done_voxels, unit="voxels", show=show) as task:
        predict_volume(
            prediction, volume, writer, box=box, tile=tile, done=done, on_tile=lambda part: task.advance(part.size)
        )
