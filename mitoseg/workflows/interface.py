"""The Python interface: what `import mitoseg` offers, arrays and paths in, arrays and tables out.

It returns what the commands write, but prints nothing and writes nothing, unless ``output`` names a file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError, as_path
from mitoseg.evaluation import BANDS, Bootstrap
from mitoseg.evaluation.instances import label_prediction
from mitoseg.evaluation.score import check_shapes
from mitoseg.geometry import Box
from mitoseg.inference import Predictor, predict_volume
from mitoseg.networks.checkpoint import Model, find_weights, load_model
from mitoseg.segmentation import Labelling, Postprocess, Sources, measure_instances, write_instances
from mitoseg.segmentation.postprocess import CLEAN
from mitoseg.storage import check_output, scratch_folder
from mitoseg.volumes import (
    ArrayVolume,
    Volume,
    VoxelSize,
    check_volume_output,
    create_volume,
    map_labels,
    open_volume,
)
from mitoseg.volumes.axes import check_voxel_size
from mitoseg.volumes.base import ArrayWriter, integer_volume
from mitoseg.volumes.labels import holds_image, map_mask
from mitoseg.volumes.opening import convert
from mitoseg.volumes.padding import blanked, with_padding
from mitoseg.volumes.predicted import Decision, decide
from mitoseg.workflows.evaluate import chosen_values, score_volumes
from mitoseg.workflows.options import FinetuneOptions
from mitoseg.workflows.predict import decide_tiling
from mitoseg.workflows.session import cleaned, prepare
from mitoseg.workflows.suitable import choose_model

if TYPE_CHECKING:
    from mitoseg.workflows.finetune import Finetuned

Source = Any
"""A path; an array (z, y, x) of NumPy, Zarr or Dask, or anything else with ``shape``, ``dtype`` and slicing; or a
`mitoseg.volumes.Volume`."""
File = str | os.PathLike[str]
Progress = Callable[[float], None]
TILE = (64, 512, 512)
"""Voxels (z, y, x) written at a time."""
POSTPROCESS = {"none": Postprocess(), "clean": CLEAN}
"""The named choices of ``postprocess``."""


def load(
    checkpoint: File | None = None,
    *,
    image: Source | None = None,
    voxel_size: Sequence[float] | None = None,
    accelerator: str = "auto",
    trust: bool = False,
) -> SegmentationModel:
    """Load a model; ``accelerator`` is ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``mps``.

    ``checkpoint``: a ``best.ckpt`` that training wrote, weights as safetensors, an exported folder, or the name of a
    bundled model; None: the bundled model that suits ``image``, a volume (z, y, x) with its ``voxel_size`` in nm, and
    without one, that of hippocampus. ``trust`` a file whose network's class lies outside mitoseg and MONAI only if you
    know who made it.

    Raises:
        UserError: There is no such model, or it cannot be loaded.

    Example:
        >>> model = load()
        >>> model.voxel_size, round(model.threshold, 3) > 0
        ((5.0, 5.0, 5.0), True)
    """
    if not isinstance(trust, bool):
        raise UserError("trust is neither True nor False", trust, "give trust=True for files of people you trust")
    if checkpoint is None:
        volumes = [] if image is None else [with_padding(as_volume(image, voxel_size), "auto")]
        checkpoint = choose_model(volumes, accelerator=accelerator)
    model = load_model(find_weights(checkpoint), trust=trust)
    return SegmentationModel(model, Path(checkpoint).name, accelerator)


def train(
    image: Source | Sequence[Source],
    truth: Source | Sequence[Source],
    voxel_size: Sequence[float] | None = None,
    *,
    folder: File | None = None,
    **options: object,
) -> SegmentationModel:
    """Train a network, as ``mitoseg train data=files`` does, and choose its threshold on held-out slices.

    ``image`` and ``truth`` are volumes (z, y, x) of the same shape, or lists of them; ``voxel_size`` is (z, y, x) in
    nm, None: the files'. A new ``folder`` gets checkpoints, scores and logs; without it nothing is kept. ``options``
    are keys of the command, such as ``experiment="unet25d"``, ``epochs=4``, ``**{"data.batch_size": 8}``.

    Raises:
        UserError: The volumes or an option are invalid, or the folder exists.
    """
    from mitoseg.workflows.train import train_files  # takes seconds to load

    images, truths = (list(given) if isinstance(given, list | tuple) else [given] for given in (image, truth))
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch) / "run" if folder is None else Path(as_path(folder))
        check_output(where, overwrite=False)
        if voxel_size is not None:
            options["data.voxel_size"] = list(check_voxel_size(voxel_size))
        paths: dict[str, list[str]] = {"image": [], "truth": []}
        for name, sources in (("image", images), ("truth", truths)):
            for number, source in enumerate(sources):
                path = source
                if not isinstance(source, str | os.PathLike):
                    volume = as_volume(source, voxel_size, name=name)
                    path = os.path.join(scratch, f"{name}_{number}.zarr")
                    convert(volume, replace(volume.info, path=path), TILE)
                paths[name].append(os.fspath(path))
        checkpoint = train_files(paths["image"], paths["truth"], where, options)
        return load(checkpoint, accelerator=str(options.get("trainer.accelerator", "auto")))


def finetune(
    image: Source | Sequence[Source],
    labels: Source | Sequence[Source],
    voxel_size: Sequence[float] | None = None,
    *,
    folder: File | None = None,
    progress: Callable[[Any], None] | None = None,
    **options: Any,  # noqa: ANN401
) -> tuple[SegmentationModel, Finetuned]:
    """Teach a model a tissue from a few painted regions, as ``mitoseg finetune`` does.

    ``image`` holds grey values (z, y, x), or is a list of several volumes; ``labels`` what is painted, of the same
    shape: 1 mitochondrion, 2 background, 0 unknown, or masks or instances. ``voxel_size`` is (z, y, x) in nm, None:
    the files'. A new ``folder`` gets all that the command writes; without it nothing is kept. ``progress`` is called
    after each step with a `mitoseg.workflows.finetune.Progress`; what it raises ends the work. ``options`` are keys of
    the command, such as ``reviewed=[3, 7]``, ``model="start.ckpt"``, ``steps=100``.

    Returns the model and its score: the foreground JAC of voxels that were left out, ``start``, ``tuned`` and
    ``gain``, each with ``value``, ``low`` and ``high``; and ``advice``, what to paint next.

    Raises:
        UserError: The image, the labels or an option is invalid, or the folder exists.
    """
    from mitoseg.workflows.finetune import finetune as tune  # takes seconds to load

    others = {"image", "labels", "voxel_size", "axes", "output", "progress"}  # arguments here, or of the command alone
    known = {field.name for field in fields(FinetuneOptions)} - others
    if unknown := {*options} - known:
        raise UserError("no such option", min(unknown), f"choose from {', '.join(sorted(known))}")
    images, painted = (list(given) if isinstance(given, list | tuple) else [given] for given in (image, labels))
    given, report = FinetuneOptions(**options), _callable(progress) or (lambda _: None)
    given.image, given.labels = (
        [as_volume(source, voxel_size, name=f"{name} {number}") for number, source in enumerate(sources, 1)]
        for name, sources in (("image", images), ("labels", painted))
    )
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch) / "run" if folder is None else Path(as_path(folder))
        check_output(where, overwrite=False)
        found = tune(given, where, report)
        return load(found.checkpoint, accelerator=given.accelerator, trust=given.trust), found


@dataclass(frozen=True)
class SegmentationModel:
    """A trained network with everything that prediction needs; returned by `load` and `train`."""

    model: Model
    name: str
    accelerator: str = "auto"

    @property
    def threshold(self) -> float:
        """The probability threshold that gave the best mask on validation data."""
        return self.model.threshold

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm of the training data, or None."""
        return self.model.voxel_size

    def predict(
        self,
        image: Source,
        voxel_size: Sequence[float] | None = None,
        *,
        output: File | None = None,
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (an array or, with ``output``, a volume)
        """Predict the calibrated probability that each voxel is mitochondrion: float32 (z, y, x), on the image's grid.

        ``image`` holds grey values (z, y, x): a path, an array, or a lazy array, which is read tile by tile.
        ``voxel_size`` is (z, y, x) in nm; None: the file's, else the checkpoint's. With ``output``, a file that must
        not exist, it is written instead, with its metadata, and returned as a lazy volume. ``options`` are those in
        `DEFAULTS`, see docs/PREDICTION.md.

        Raises:
            UserError: The image or an option is invalid, the output exists, or memory is too small.
        """
        return self._run(image, voxel_size, options, None, "probability", output)

    def segment(
        self,
        image: Source,
        voxel_size: Sequence[float] | None = None,
        *,
        output: File | None = None,
        postprocess: str | Postprocess = "none",
        **options: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401 (an array or, with ``output``, a volume)
        """Predict which voxels are mitochondria: a mask (z, y, x) of uint8, 0 and 1; otherwise as `predict`.

        ``postprocess`` is ``none``; ``clean``: smooth the probability, remove small objects, fill holes; or a
        `mitoseg.Postprocess` of your own.
        """
        steps = POSTPROCESS.get(postprocess) if isinstance(postprocess, str) else postprocess
        if not isinstance(steps, Postprocess):
            remedy = f"choose one of {', '.join(POSTPROCESS)}, or give a mitoseg.segmentation.Postprocess"
            raise UserError("no such post-processing", postprocess, remedy)
        return self._run(image, voxel_size, options, None if steps == Postprocess() else steps, "mask", output)

    def _run(
        self,
        image: Source,
        voxel_size: Sequence[float] | None,
        options: dict[str, Any],
        steps: Postprocess | None,
        save: str,
        output: File | None,
    ) -> Any:  # noqa: ANN401 (an array or, with ``output``, a volume)
        """Predict and restore the result to the image's grid: in memory, or through files beside the output."""
        if unknown := {*options} - {*DEFAULTS}:
            raise UserError("no such option", min(unknown), f"choose from {', '.join(DEFAULTS)}")
        options = {**DEFAULTS, **options}
        if output is not None:
            check_volume_output(output, overwrite=False)
        source = with_padding(as_volume(image, voxel_size, complete=True), options["padding"])
        chosen = {
            key: value for key, value in options.items() if key not in ("padding", "compile", "memory", "progress")
        }
        kind = save if steps is None else "probability"
        prepared = prepare(self.model, source, kind=kind, accelerator=self.accelerator, **chosen)
        if output is None:  # tiles, restored result and post-processing must fit into memory
            seen = {id(volume): volume for volume in (prepared.predictor.volume, prepared.image)}.values()
            needed = sum(volume.box.size for volume in seen) * prepared.predictor.prediction.dtype.itemsize
            if needed > (free := memory_available()):
                what = f"the result needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
                raise UserError(what, source.path, "give output=FILE, which is written tile by tile")
        with ExitStack() as stack:
            scratch = None if output is None else stack.enter_context(scratch_folder(Path(output)))
            result = prepared.restore(_predict_tiles(prepared.predictor, options, scratch))
            metadata = {**result.info.metadata, "checkpoint": self.name}
            if steps is not None:
                folder = scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                result = stack.enter_context(cleaned(steps, result, folder, image=prepared.image))
                result = blanked(result, source.padding)
                metadata = {**result.info.metadata, "scale": 1}
            if output is None:
                return result.read()
            if prepared.padding:
                metadata["padding"] = prepared.padding
            where = os.fspath(output)
            convert(result, replace(result.info, path=where, metadata=metadata), TILE)
        return open_volume(where)


def _predict_tiles(predictor: Predictor, options: dict[str, Any], scratch: Path | None) -> Volume:
    """The tiles, in memory or in a file of the folder ``scratch``."""
    volume, prediction = predictor.volume, predictor.prediction
    decided = decide_tiling(predictor, memory=options["memory"], compiled=options["compile"], method=options["method"])
    tile = tuple(decided["tile"])
    if decided["compile"]:
        predictor.compile(tile)
    given: dict[str, Any] = {"tile": tile, "on_tile": _shares(volume.box.size, options["progress"])}
    about: dict[str, Any] = {"voxel_size": volume.voxel_size or prediction.voxel_size, "metadata": prediction.metadata}
    if scratch is None:
        memory = ArrayWriter(volume.shape, prediction.dtype)
        predict_volume(predictor, volume, memory, **given)
        return ArrayVolume(memory.array_zyx, **about)
    path = str(scratch / "tiles.zarr")
    with create_volume(path, volume.shape, prediction.dtype, **about) as writer:
        predict_volume(predictor, volume, writer, **given)
    return open_volume(path)


DEFAULTS: dict[str, Any] = {
    "method": "auto",
    "tta": "none",
    "consensus": "mean",
    "normalize": "checkpoint",
    "resample": "auto",
    "padding": "auto",
    "threshold": None,
    "precision": "auto",
    "compile": "auto",
    "memory": None,
    "tile": None,
    "overlap": None,
    "window_stride": 1,
    "progress": None,
}
"""Options of `SegmentationModel`; ``progress`` is called with the fraction of voxels done, from 0 to 1."""


def _callable(progress: Callable[[Any], None] | None) -> Callable[[Any], None] | None:
    if progress is not None and not callable(progress):
        raise UserError("progress is not a function", progress, "give a function of how much is done")
    return progress


def _shares(total: int, progress: Progress | None) -> Callable[[Box], None]:
    """A callback for each finished box, which reports the fraction of voxels done to ``progress``."""
    done, tell = 0, _callable(progress)

    def advance(box: Box) -> None:
        nonlocal done
        done += box.size
        if tell is not None:
            tell(done / total)

    return advance


def label(
    mask: Source,
    voxel_size: Sequence[float] | None = None,
    *,
    output: File | None = None,
    threshold: float | None = None,
    labelling: Labelling | None = None,
    progress: Progress | None = None,
) -> Any:  # noqa: ANN401 (an array or, with ``output``, a volume)
    """Number the mitochondria of a mask, 1, 2, ...: uint32 (z, y, x), 0 is background.

    ``mask`` is nonzero where mitochondria are, or holds probabilities, whose ``threshold`` is required for arrays,
    while files store it. With ``output``, a file that must not exist, they are written instead and returned as a lazy
    volume. ``labelling``, None: connected components; ``mitoseg.Labelling(split=True)`` splits touching mitochondria.
    ``progress`` is called with the fraction done, from 0 to 1.

    Raises:
        UserError: The mask or an option is invalid, or the output exists.

    Example:
        >>> label(np.array([[[1, 0, 1, 1]]])).tolist()
        [[[1, 0, 2, 2]]]
    """
    if output is not None:
        check_volume_output(output, overwrite=False, dtype=np.uint32)
    volume = as_volume(mask, voxel_size)
    advance = _shares(volume.box.size, progress)
    found = label_prediction(volume, _decided(volume, threshold), labelling, on_block=advance)
    if output is None:
        return found.read()
    about = found.info
    with create_volume(output, found.shape, np.uint32, voxel_size=about.voxel_size, metadata=about.metadata) as writer:
        write_instances(found, writer)
    return open_volume(output)


def measure(
    labels: Source,
    voxel_size: Sequence[float] | None = None,
    *,
    image: Source | None = None,
    probability: Source | None = None,
    uncertainty: Source | None = None,
    min_volume: float | None = None,
    reach: float = 1000.0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure every mitochondrion: one row per instance, ordered by number; docs/MEASURING.md explains the columns.

    ``labels`` are instance numbers (z, y, x), as returned by `label`; ``voxel_size`` is (z, y, x) in nm, None: the
    file's. Of the same shape: ``image``, grey values, for columns of them and of cristae; ``probability`` for its mean
    and entropy; ``uncertainty``, used in place of the entropy. Instances below ``min_volume`` in nm3 get no row;
    ``reach`` is the search radius for the nearest neighbour in nm, 0: no search. ``progress`` is called with the
    fraction done, from 0 to 1.

    Raises:
        UserError: Shapes differ, the voxel size is unknown, a number is out of range, or labels are no instances.

    Example:
        >>> measure(np.pad(np.ones((2, 2, 2), np.uint32), 1), (5, 5, 5))["volume_nm3"].tolist()
        [1000.0]
    """
    volume = as_volume(labels, voxel_size)
    if volume.dtype.kind == "b" or volume.info.metadata.get("kind") in ("mask", "probability"):
        raise UserError("measuring needs instances, not a mask", volume.path, "number them first: mitoseg.label(mask)")
    if volume.voxel_size is None:
        raise UserError("measuring needs the voxel size", volume.path, "give voxel_size=(z, y, x) in nm")
    if (volume.dtype.kind == "f" or volume.dtype == np.uint8) and holds_image(volume):
        remedy = "give the result of mitoseg.label"
        raise UserError("measuring needs instances, not an image or probabilities", volume.path, remedy)
    given = {"image": image, "probability": probability, "uncertainty": uncertainty}
    others = {name: as_volume(source, name=name) for name, source in given.items() if source is not None}
    if "image" in others:
        others["image"] = with_padding(others["image"], "auto")
    scale = decide(others["probability"], None, "probability").scale if "probability" in others else 1.0
    ids = integer_volume(volume) if volume.dtype.kind == "f" else volume
    sources = Sources(ids, volume.voxel_size, scale=scale, **others)
    return measure_instances(sources, min_volume=min_volume, reach=reach, on_part=_callable(progress))


def evaluate(
    prediction: Source,
    truth: Source,
    voxel_size: Sequence[float] | None = None,
    *,
    threshold: float | None = None,
    kind: str | None = None,
    foreground: object = None,
    prediction_foreground: object = None,
    ignore_label: int | None = None,
    instances: bool | None = None,
    labelling: Labelling | None = None,
    bands: Sequence[float] = BANDS,
    bootstrap: int = 2000,
    seed: int = 1,
) -> dict[str, Any]:
    """Score a result against the truth, as ``mitoseg evaluate`` does; docs/EVALUATION.md explains the scores.

    ``prediction`` is a mask, probabilities or instances (z, y, x), and ``kind`` which of them, None: by metadata or
    voxel type. ``truth`` are labels of the same shape: 0/1, 0/255, instance numbers or classes. ``voxel_size`` is
    (z, y, x) in nm; None: the files', else voxels are assumed cubic. Probabilities have a ``threshold``, required for
    arrays, while files store it. ``foreground`` are the label values of mitochondria in whichever of the two contains
    classes, ``prediction_foreground`` those of the prediction if both do; voxels where the truth is ``ignore_label``
    are excluded. ``instances`` True scores individual mitochondria, and numbers those of a mask by ``labelling``
    (None: connected components); None: if the prediction is labelled. ``bands`` are widths of the excluded boundary
    bands, in voxels of the smallest spacing; ``bootstrap`` samples, drawn by ``seed``, give 95 % intervals; 0: none.

    Raises:
        UserError: Shapes differ, labels cannot be read, or an option is invalid.

    Example:
        >>> truth = np.zeros((8, 8, 8), np.uint8)
        >>> truth[2:6, 2:6, 2:6] = 1
        >>> evaluate(truth, truth, bootstrap=0)["jaccard_foreground"]
        1.0
    """
    if instances not in (None, True, False):
        raise UserError("instances is neither True, False nor None", instances, "give one of them")
    sources = {"prediction": prediction, "truth": truth}
    volumes = {name: as_volume(source, voxel_size, name=name) for name, source in sources.items()}
    check_shapes(**volumes)
    theirs, ours = chosen_values(foreground, prediction_foreground, kind, volumes)
    result = map_mask(volumes["prediction"], theirs, kind)
    _decided(result, threshold, kind)
    labels = map_labels(volumes["truth"], foreground=ours, ignore_label=ignore_label)
    draws = Bootstrap(bootstrap, seed)
    meant: dict[str, Any] = {"threshold": threshold, "kind": kind, "bands": bands, "instances": instances}
    return score_volumes(result, labels, labelling or Labelling(), draws, **meant)[0]


def _decided(volume: Volume, threshold: float | None, kind: str | None = None) -> Decision:
    """How to interpret the values; an array of probabilities stores no threshold, so one must be given."""
    decision = decide(volume, threshold, kind)
    if decision.source == "default" and decision.kind == "probability" and isinstance(volume, ArrayVolume):
        remedy = "give threshold=, such as model.threshold, or a mask"
        raise UserError("an array of probabilities needs a threshold", volume.path, remedy)
    return decision


def as_volume(
    source: Source, voxel_size: Sequence[float] | None = None, *, name: str = "array", complete: bool = False
) -> Volume:
    """The user's path or array as a lazy volume; ``complete`` refuses a file with missing parts."""
    size = None if voxel_size is None else check_voxel_size(voxel_size)
    if isinstance(source, str | os.PathLike):
        volume = open_volume(source, voxel_size=size)
        if complete:
            volume.check_complete()
        return volume
    if isinstance(source, Volume):
        volume = copy(source)
        volume.info = replace(source.info, voxel_size=size or source.voxel_size)
        return volume
    if isinstance(source, type) or not all(hasattr(source, part) for part in ("shape", "dtype", "__getitem__")):
        raise UserError(
            "neither a path nor an array", type(source).__name__, "give a path or an array of axes z, y, x"
        )
    if len(source.shape) != 3 or 0 in source.shape:
        what, remedy = f"the {name} does not have three axes, z, y, x", "give array[np.newaxis] for a single slice"
        raise UserError(what, tuple(source.shape), remedy)
    if np.dtype(source.dtype).kind not in "buif":
        raise UserError(f"the {name} does not hold real numbers", str(source.dtype), "give integers or floats")
    return ArrayVolume(source, size, name)
