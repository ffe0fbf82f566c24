"""The methods of a benchmark as they run: an estimator that is fitted, tuned and asked for masks, and a checkpoint.

neila/model/                 there once the estimator is fitted and tuned
    estimator                what it has saved
    training.json            what that cost
neila/predictions/test_0.tif
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mitoseg.benchmark.methods import MODEL, TRAIN, Method, prediction_path
from mitoseg.datasets import IGNORE, Region, Splits
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.progress import progress
from mitoseg.provenance import peak_memory
from mitoseg.storage import atomic_output, read_json, write_json
from mitoseg.volumes import VoxelSize, create_volume
from mitoseg.volumes.base import Array

log = logging.getLogger(__name__)

Labels = npt.NDArray[np.uint8]
"""0 background, 1 mitochondrion, 255 ignored."""
CONTEXT = 16
"""Voxels around the regions that an estimator sees as well."""
INSTALL = 'pip install "mitoseg[classical]"'
_SAVED, _TRAINING = "estimator", "training.json"
_OWN_NOTE = "trained here; every choice on the validation slabs"
_GIVEN_NOTE = "given, not trained here; whether it has seen these voxels is not known"
_SAME_NOTE = "given, not trained here; its run learnt from the same regions of the same files"


@runtime_checkable
class Estimator(Protocol):
    """A method over volumes, in the manner of scikit-learn.

    Its constructor takes keywords, ``voxel_size`` ((z, y, x) in nm) among them. `fit` and `tune` take a volume and its
    labels, which are 255 outside the regions in question: what lies there is tissue to look at, not to learn from.
    """

    def fit(self, image_zyx: Array, label_zyx: Labels, /) -> object:
        """Learn from the training regions."""
        ...

    def tune(self, image_zyx: Array, label_zyx: Labels, /) -> object:
        """Choose the threshold, weights of the regularisation and the like on the validation slabs, all together."""
        ...

    def predict_proba(self, image_zyx: Array, /) -> npt.NDArray[np.float32]:
        """Probability of mitochondrion of every voxel, before regularisation."""
        ...

    def predict(self, image_zyx: Array, /) -> npt.NDArray[np.uint8]:
        """The mask, 0 or 1, as tuned."""
        ...

    def save(self, path: Path, /) -> None:
        """Write everything that `load` needs into one file or folder of this name."""
        ...

    @classmethod
    def load(cls, path: Path, /) -> Self:
        """The estimator that `save` has written."""
        ...


def make_estimator(name: str, config: Mapping[str, Any], voxel_size: VoxelSize | None) -> Estimator:
    """The estimator that a config's ``_target_`` names, for cubic voxels where their size is not known."""
    try:
        made = instantiate(dict(config), voxel_size=voxel_size or (1.0, 1.0, 1.0))
    except InstantiationException as error:
        raise _explained(name, error) from error
    if not isinstance(made, Estimator):
        lacking = [key for key in ("fit", "tune", "predict", "save", "load") if not hasattr(made, key)]
        remedy = f"methods.{name}.estimator._target_ must name a class that has them"
        raise UserError(f"{type(made).__name__} is not an estimator, it lacks {', '.join(lacking)}", name, remedy)
    return made


def _explained(name: str, error: InstantiationException) -> Exception:
    """A missing library and an unknown keyword in one line; anything else as it is."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, UserError):
            return link
        if isinstance(link, ImportError) and not (link.name or "mitoseg").startswith("mitoseg"):
            return UserError(f"the method {name} needs a library that is missing", link.name, INSTALL)
        if isinstance(link, TypeError) and "keyword argument" in str(link):
            return UserError(f"the method {name} has no such option ({link})", None, f"see conf/methods/{name}.yaml")
        link = link.__cause__
    return error


def read_regions(regions: Sequence[Region], context: int = CONTEXT) -> tuple[Array, Labels]:
    """Image and labels of one volume's regions, as `Estimator.fit` and `Estimator.tune` take them.

    They are those of the box around all regions; the labels are `IGNORE` outside them.

    z   |<-context->|<- slab ->|   (not labelled)   |<- slab ->|<-context->|
    """
    volumes = sorted({region.image.path for region in regions})
    if len(volumes) > 1:
        remedy = "give one with data.train.image= and data.train.label=, or methods that are networks"
        raise UserError("an estimator learns from one volume, there are several", volumes, remedy)
    image = regions[0].image
    starts, stops = (np.array([getattr(r.box, end) for r in regions]) for end in ("start", "stop"))
    around = Box(tuple(starts.min(axis=0).tolist()), tuple(stops.max(axis=0).tolist())).grow(context).clip(image.box)
    label_zyx = np.full(around.shape, IGNORE, np.uint8)
    for region in regions:
        label_zyx[region.box.inside(around).slices] = region.read_label()
    return image.read(around), label_zyx


@dataclass
class Cost:
    """Seconds on the clock and of the processor; added up over stages."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, self.cpu_seconds + other.cpu_seconds)

    def record(self, stage: str) -> dict[str, float]:
        """As a record holds it, such as ``training_seconds``."""
        return {f"{stage}_seconds": round(self.seconds, 6), f"{stage}_cpu_seconds": round(self.cpu_seconds, 6)}


@contextmanager
def stage(title: str, *, show: bool = True) -> Iterator[Cost]:
    """Show how long the block has been going on, and yield its cost, which is set when it ends."""
    cost = Cost()
    with progress(title, show=show):
        clock, processor = time.perf_counter(), time.process_time()
        yield cost
        cost.seconds, cost.cpu_seconds = time.perf_counter() - clock, time.process_time() - processor


def run_estimator(
    method: Method, splits: Splits, regions: Sequence[Region], folder: Path, *, part: str, show: bool = True
) -> dict[str, Any]:
    """Fit and tune, unless that is done, and write the masks of the regions.

    Args:
        method: With an estimator.
        splits: To learn from.
        regions: To predict.
        folder: The method's.
        part: Of the data that the regions are, for file names.
        show: Progress on the terminal.

    Returns:
        Costs and a note on the protocol.
    """
    record: dict[str, Any] = {"protocol": _GIVEN_NOTE}
    estimator = make_estimator(method.name, method.estimator or {}, splits.voxel_size)
    if method.checkpoint is not None:
        estimator = type(estimator).load(check_saved(Path(method.checkpoint)))
    elif (folder / MODEL).is_dir():
        log.info("%s: fitted before", method.name)
        estimator = type(estimator).load(check_saved(folder / MODEL / _SAVED))
        record = read_json(folder / MODEL / _TRAINING)
    else:
        record = _fit(estimator, splits, folder / MODEL, show=show)
    total = Cost()
    for i, region in enumerate(regions):
        with stage(f"predicting {part}_{i}", show=show) as cost:
            _write_mask(prediction_path(folder, part, i), estimator, region)
        total += cost
    before = record.get("peak_memory", {}).get("process", 0)
    memory = {"process": max(before, peak_memory()), "device": None}
    return {**record, **total.record("prediction"), "peak_memory": memory}


def _fit(estimator: Estimator, splits: Splits, folder: Path, *, show: bool) -> dict[str, Any]:
    """Fit on the training regions, tune on the validation slabs; the folder with both and their cost appears last."""
    with stage("fitting", show=show) as fitting:
        estimator.fit(*read_regions(splits.train))
    with stage("tuning", show=show) as tuning:
        estimator.tune(*read_regions(splits.validation))
    record = {
        **(fitting + tuning).record("training"),
        **tuning.record("tuning"),
        "peak_memory": {"process": peak_memory(), "device": None},
        "protocol": _OWN_NOTE,
    }
    with atomic_output(folder, overwrite=True) as temporary:
        temporary.mkdir()
        estimator.save(temporary / _SAVED)
        write_json(temporary / _TRAINING, record)
    return record


def check_saved(path: Path) -> Path:
    """Refuse a fitted estimator that is not there."""
    if not path.exists():
        raise UserError("no such fitted estimator", str(path), "name what save wrote, RUN/METHOD/model/estimator")
    return path


def _write_mask(path: Path, estimator: Estimator, region: Region) -> None:
    mask_zyx = np.asarray(estimator.predict(region.read_image()))
    if mask_zyx.shape != region.box.shape or mask_zyx.dtype.kind not in "bu" or mask_zyx.max(initial=0) > 1:
        kind = type(estimator).__name__
        raise UserError(f"{kind}.predict gave no mask of 0 and 1", (mask_zyx.shape, str(mask_zyx.dtype)))
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"voxel_size": region.image.voxel_size, "metadata": {"kind": "mask"}, "overwrite": True}
    with create_volume(str(path), region.box.shape, np.uint8, **options) as writer:
        writer.write(region.box.shift([-start for start in region.box.start]), mask_zyx.astype(np.uint8))


def checkpoint_of(method: Method, folder: Path) -> Path:
    """The checkpoint that is scored: the given one, or that of the method's own training."""
    path = Path(method.checkpoint) if method.checkpoint is not None else folder / TRAIN / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UserError("no such checkpoint", str(path), "name a best.ckpt that train wrote")
    return path


def describe_run(method: Method, checkpoint: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """What ``provenance.json`` of a checkpoint's run tells of its training, and a note on the protocol.

    ``data`` is the provenance of the benchmark's own data: a method that was trained here must have learnt from them.
    """
    found = read_json(checkpoint.resolve().parents[1] / "provenance.json")
    same = bool(found.get("data")) and training_data(found["data"]) == training_data(data)
    if method.checkpoint is None and not same:
        remedy = f"leave data.* out of methods.{method.name}.train; the benchmark sets them"
        raise UserError("the method was trained on another split than the benchmark's", method.name, remedy)
    given = _SAME_NOTE if same else _GIVEN_NOTE
    return {
        "training_seconds": found.get("training_seconds"),
        "peak_memory": found.get("peak_memory") or {},
        "parameters": found.get("parameters"),
        "trained_by": {"commit": found.get("commit"), "arguments": found.get("arguments")},
        "protocol": _OWN_NOTE if method.checkpoint is None else given,
    }


def training_data(provenance: Mapping[str, Any]) -> tuple[object, object, object]:
    """What tells whether two runs have learnt from the same voxels, and chosen by the same."""
    regions = provenance.get("regions") or {}
    sums = sorted(file["sha256"] for file in provenance.get("files") or () if file["role"].startswith("train"))
    return regions.get("train"), regions.get("validation"), sums
