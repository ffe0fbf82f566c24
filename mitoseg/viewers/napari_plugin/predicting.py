"""From an image to probabilities and numbered mitochondria, in memory, with progress that may stop it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import predict_volume
from mitoseg.inference.prepare import greys_apart, has_other_voxels, make_prediction
from mitoseg.inference.sizing import budget_bytes
from mitoseg.networks.checkpoint import Model, find_weights, load_model
from mitoseg.segmentation import Labelling, Postprocess, label_array
from mitoseg.segmentation.postprocess import BYTES, CLEAN
from mitoseg.viewers.napari_plugin.jobs import Tell, tell_nobody
from mitoseg.volumes import ArrayVolume, Volume, VoxelSize
from mitoseg.volumes.base import ArrayWriter
from mitoseg.volumes.normalize import FAR_GREYS
from mitoseg.volumes.padding import blanked, with_padding
from mitoseg.workflows.session import prepare

Probability = npt.NDArray[np.float32]
Ids = npt.NDArray[np.uint32]
PREDICTED = 0.9
"""Share of the progress bar that the network takes."""
STEPS = 20
"""Of the progress bar, at least, where they cost nothing."""


@dataclass(frozen=True)
class Numbering:
    """How probabilities become instances: cleaned as by ``postprocess=clean``, touching ones cut at their necks."""

    cleaned: bool = True
    split: bool = False

    @property
    def steps(self) -> Postprocess:
        """From probabilities to a mask."""
        return CLEAN if self.cleaned else Postprocess()


@dataclass(frozen=True)
class Choice:
    """What the user chose.

    Attributes:
        checkpoint: A file, or the name of a bundled model; None: the default one.
        method: As ``method=`` of the command.
        threshold: Of the mask; None: the model's.
        greys: As ``normalize=`` of the command.
        resample: Whether the network sees voxels of the size that it was trained on.
        numbering: What follows.
    """

    checkpoint: str | None = None
    method: str = "auto"
    threshold: float | None = None
    greys: str = "checkpoint"
    resample: bool = True
    numbering: Numbering = field(default_factory=Numbering)


@dataclass(frozen=True)
class Outcome:
    """Probabilities and instance numbers on the image's grid (z, y, x), their metadata, and notes for the user."""

    probability_zyx: Probability
    instances_zyx: Ids
    probability: dict[str, Any]
    instances: dict[str, Any]
    notes: tuple[str, ...] = ()


def predict(image: Volume, choice: Choice, tell: Tell = tell_nobody) -> Outcome:
    """Predict a volume of grey values in memory."""
    tell(0.0, "loading the model")
    path = find_weights(choice.checkpoint)
    model = load_model(path)
    needed, free = math.prod(image.shape) * (BYTES + 8), memory_available()  # with what post-processing takes
    if needed > free:
        what = f"the results need {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
        raise UserError(what, image.path, "predict with the command `mitoseg predict`, and open what it wrote")
    image = with_padding(image, "auto")
    resamples = choice.resample and None not in (image.voxel_size, model.voxel_size)
    prepared = prepare(
        model,
        image,
        lambda own, _: make_prediction(model, method=choice.method, threshold=choice.threshold, normalization=own),
        normalize=choice.greys,
        resample="auto" if resamples else "none",
        kind="probability",
    )
    predictor, prediction = prepared.predictor, prepared.predictor.prediction
    volume = predictor.volume
    writer, done, total = ArrayWriter(volume.shape), 0, volume.box.size
    tell(0.0, "predicting")

    def advance(box: Box) -> None:
        nonlocal done
        done += box.size
        tell(PREDICTED * done / total, "predicting")

    z, y, x = predictor.choose_tile(budget_bytes(None))
    if predictor.ndim == 2:  # thinner tiles cost networks on slices nothing, and show progress
        z = min(z, -(-volume.shape[0] // STEPS))
    predict_volume(predictor, volume, writer, tile=(z, y, x), on_tile=advance)
    tiles = ArrayVolume(writer.array_zyx, volume.voxel_size, metadata=prediction.metadata)
    probability_zyx = prepared.restore(tiles).read()
    about = {**prediction.metadata, "checkpoint": path.parent.name if path.stem == "model" else path.name}
    if prepared.padding:
        about["padding"] = prepared.padding
    instances_zyx, made = number(probability_zyx, about, choice.numbering, prepared.voxel_size, tell=tell)
    instances_zyx = blanked(ArrayVolume(instances_zyx), image.padding).read()  # post-processing may have grown there
    return Outcome(probability_zyx, instances_zyx, about, made, _notes(image, model, choice))


def number(
    probability_zyx: Probability,
    about: dict[str, Any],
    numbering: Numbering,
    voxel_size: VoxelSize | None,
    *,
    threshold: float | None = None,
    tell: Tell = tell_nobody,
) -> tuple[Ids, dict[str, Any]]:
    """Instances of probabilities from 0 to 1, and their metadata; `threshold` replaces that of ``about``."""
    used = about["threshold"] if threshold is None else threshold
    tell(PREDICTED, "post-processing")
    mask_zyx = numbering.steps(probability_zyx, used, voxel_size)
    tell((1 + PREDICTED) / 2, "numbering")
    labelling = Labelling(split=numbering.split)
    instances_zyx = label_array(mask_zyx, labelling, voxel_size=voxel_size)
    tell(1.0, "done")
    made: dict[str, Any] = {key: about[key] for key in ("checkpoint", "padding") if key in about}
    made |= {"kind": "instances", "threshold": used, "scale": 1}
    return instances_zyx, {**made, "postprocess": asdict(numbering.steps), "labelling": asdict(labelling)}


def _notes(image: Volume, model: Model, choice: Choice) -> tuple[str, ...]:
    """What may make the result worse than it could be."""
    notes = []
    if choice.greys == "checkpoint" and greys_apart(image, model) > FAR_GREYS:
        notes.append("the grey values are unlike those of training: try grey values “matched to training”")
    if image.voxel_size is None and model.voxel_size is not None:
        notes.append(f"the image has no voxel size: the model's is taken, {_size(model.voxel_size)} nm")
    if not choice.resample and has_other_voxels(image, model):
        trained = _size(model.voxel_size or ())
        notes.append(f"the model was trained on voxels of {trained} nm: try “resample to the model's voxels”")
    return tuple(notes)


def _size(voxel_size: Sequence[float]) -> str:
    return " x ".join(f"{n:g}" for n in voxel_size)
