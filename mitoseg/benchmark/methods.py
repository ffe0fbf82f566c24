"""What a benchmark compares: methods and data as their configs describe them, estimators as they run, their folders.

outputs/benchmark/<date>_<time>/
    table.md, table.csv, table.html, methods.png, provenance.json
    forest/     record.json, metrics.json, costs.json, predictions/
    unet25d/    record.json, metrics.json, costs.json, predictions/, train/ (a run of training)
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from mitoseg.datasets import IGNORE, Recipe, Region, Splits
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.progress import progress
from mitoseg.provenance import peak_memory
from mitoseg.storage import changes, flatten, read_json, remove
from mitoseg.volumes import VoxelSize, create_volume
from mitoseg.volumes.base import Array

SIZES = ("full", "small")
KEYS = ("title", "estimator", "train", "small", "checkpoint")
"""Of a file in ``conf/methods``."""
RECORD, METRICS, COSTS, TRAIN = "record.json", "metrics.json", "costs.json", "train"
LAST = Path(TRAIN, "checkpoints", "last.ckpt")
FINISHED = "finished"
TRAINING_KEYS = {
    *("tile", "batch_size", "positions", "label_rule", "purity", "block", "channels", "balance", "augment"),
    *("rotate_background", "interpolation", "epoch_blocks", "epoch_tiles", "foreground_share", "validation_stride"),
    "voxels_on",
}
"""Keys of ``data`` that say how a network is trained (``conf/data/blocks.yaml``), not what the data are."""
Labels = npt.NDArray[np.uint8]
"""0 background, 1 mitochondrion, 255 ignored."""
CONTEXT = 16
"""Voxels around the regions that an estimator sees as well."""
INSTALL = 'pip install "mitoseg[classical]"'
_OWN_NOTE = "trained here; every choice on the validation slabs"
_GIVEN_NOTE = "given, not trained here; whether it has seen these voxels is not known"
_SAME_NOTE = "given, not trained here; its run learnt from the same regions of the same files"


@dataclass(frozen=True)
class Method:
    """A file of ``conf/methods``: an `Estimator`'s config, or arguments of ``train.py``.

    ``checkpoint`` is a network's, scored instead of training; None to train.
    """

    name: str
    title: str
    estimator: Mapping[str, Any] | None
    train: tuple[str, ...] | None
    checkpoint: str | None

    def record(self) -> dict[str, Any]:
        """What a result depends on."""
        if self.checkpoint is not None:
            return {"checkpoint": self.checkpoint}
        return {"train": list(self.train)} if self.train is not None else {"estimator": dict(self.estimator or {})}


def read_methods(configs: Mapping[str, Any] | None, size: str) -> list[Method]:
    """The methods of a config, in its order; `size` is one of `SIZES`."""
    if size not in SIZES:
        raise UserError("no such size", size, f"choose one of {', '.join(SIZES)}")
    if not configs:
        raise UserError("no methods to compare", [], "give some, such as methods=[forest,unet25d]")
    return [read_method(name, config, small=size == "small") for name, config in configs.items()]


def read_method(name: str, config: Mapping[str, Any], *, small: bool) -> Method:
    """One method from what its file holds, with its smaller settings where `small`."""
    where = f"conf/methods/{name}.yaml"
    if not isinstance(config, Mapping) or set(config) - set(KEYS):
        found = sorted(map(str, config)) if isinstance(config, Mapping) else config
        raise UserError(f"a method has the keys {', '.join(KEYS)}; this one", found, f"see {where}")
    estimator, train, less = config.get("estimator"), config.get("train"), config.get("small")
    if (estimator is None) == (train is None):
        raise UserError("a method has either an estimator or arguments of train", name, f"see {where}")
    title = str(config.get("title") or name)
    if estimator is not None:
        if config.get("checkpoint") is not None:
            remedy = f"leave out methods.{name}.checkpoint: estimators are fitted here"
            raise UserError("only networks have a checkpoint to score", config["checkpoint"], remedy)
        changed = {**estimator, **(_checked(less or {}, Mapping, f"{name}.small") if small else {})}
        return Method(name, title, changed, None, None)
    words = _checked(train, list, f"{name}.train") + (_checked(less or [], list, f"{name}.small") if small else [])
    return Method(name, title, None, tuple(map(str, words)), config.get("checkpoint"))


def _checked(value: Any, kind: type, key: str) -> Any:  # noqa: ANN401 (what a yaml holds)
    if not isinstance(value, kind):
        what = "a list of arguments" if kind is list else "a mapping of options"
        raise UserError(f"methods.{key} is not {what}", value, "see the files in conf/methods")
    return value


@dataclass(frozen=True)
class Source:
    """A data set: an option of ``conf/data``, and the config of its recipe, which takes ``options``."""

    name: str
    recipe: Mapping[str, Any]
    options: Mapping[str, Any]


def read_source(name: str, config: Mapping[str, Any], less: Mapping[str, Any], given: Collection[str]) -> Source:
    """The data set of ``data=NAME``; ``less`` makes it small, but for keys that the user has ``given``."""
    options = {key: value for key, value in config.items() if key not in TRAINING_KEYS | {"_target_", "recipe"}}
    for key, value in flatten(less).items():
        if f"data.{key}" not in given:
            tree, path = options, key.split(".")
            for part in path[:-1]:
                tree[part] = dict(tree.get(part) or {})
                tree = tree[part]
            tree[path[-1]] = value
    return Source(name, config["recipe"], options)


def open_source(source: Source) -> Splits:
    """Download or make what is missing, and open the regions."""
    recipe: Recipe = instantiate(dict(source.recipe))(**source.options)
    recipe.prepare()
    return recipe.splits()


def scored_regions(splits: Splits, part: str) -> tuple[Region, ...]:
    """The regions that are scored; `part` is test or validation."""
    if part not in ("test", "validation"):
        raise UserError("no such part of the data to score", part, "give part=test or part=validation")
    regions: tuple[Region, ...] = getattr(splits, part)
    if not regions:
        remedy = "name one with data.test.image= and data.test.label=, give data.folds=, or part=validation"
        raise UserError("there is no test volume to score", None, remedy)
    return regions


def prediction_path(folder: Path, part: str, index: int) -> Path:
    """Where the prediction of a region lies in a method's folder."""
    return folder / "predictions" / f"{part}_{index}.tif"


def is_finished(folder: Path) -> bool:
    """Whether a method's folder holds its scores."""
    return read_json(folder / RECORD).get("status") == FINISHED and (folder / METRICS).is_file()


def check_options(name: str, folder: Path, options: Mapping[str, Any], *, overwrite: bool) -> str | None:
    """How the options differ from those that a method's folder was made with, if it is to be made anew.

    A result of other options is refused, unless it may be overwritten.
    """
    if not (folder / RECORD).is_file():
        return None
    before = read_json(folder / RECORD).get("options") or {}
    change = changes(before, known_before(before, options))
    if not change:
        return None
    holds = is_finished(folder) or (folder / LAST).is_file()
    if holds and not overwrite:
        remedy = "give the options as they were, overwrite=true to run it again, or start a new benchmark"
        raise UserError(f"the method {name} is there with other options ({change})", str(folder), remedy)
    return change


def known_before(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The options of now without the checksums that a record of an earlier version does not tell."""
    return {key: value for key, value in now.items() if key in before or key not in ("files", "checkpoint_sha256")}


def clear(folder: Path) -> None:
    """Remove what a method of other options has left."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name != ".lock":
            remove(path)


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

    def predict(self, image_zyx: Array, /) -> npt.NDArray[np.uint8]:
        """The mask, 0 or 1, as tuned."""
        ...


def make_estimator(name: str, config: Mapping[str, Any], voxel_size: VoxelSize | None) -> Estimator:
    """The estimator that a config's ``_target_`` names, for cubic voxels where their size is not known."""
    try:
        made = instantiate(dict(config), voxel_size=voxel_size or (1.0, 1.0, 1.0))
    except InstantiationException as error:
        raise _explained(name, error) from error
    if not isinstance(made, Estimator):
        lacking = [key for key in ("fit", "tune", "predict") if not hasattr(made, key)]
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
    """Image and labels of the box around one volume's regions; labels are `IGNORE` outside them.

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


@contextmanager
def timed(record: dict[str, Any], *stages: str, title: str, show: bool = True) -> Iterator[None]:
    """Show the time that the block takes; add it to ``<stage>_seconds`` and ``<stage>_cpu_seconds`` of a record."""
    with progress(title, show=show):
        clock, processor = time.perf_counter(), time.process_time()
        yield
        spent = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - processor}
    for key, seconds in [(f"{stage}_{kind}", value) for stage in stages for kind, value in spent.items()]:
        record[key] = round(record.get(key, 0.0) + seconds, 6)


def run_estimator(
    method: Method, splits: Splits, regions: Sequence[Region], folder: Path, *, part: str, show: bool = True
) -> dict[str, Any]:
    """Fit, tune, and write the masks of the regions of a part; costs and a note."""
    record: dict[str, Any] = {"protocol": _OWN_NOTE}
    estimator = make_estimator(method.name, method.estimator or {}, splits.voxel_size)
    with timed(record, "training", title="fitting", show=show):
        estimator.fit(*read_regions(splits.train))
    with timed(record, "training", "tuning", title="tuning", show=show):
        estimator.tune(*read_regions(splits.validation))
    for i, region in enumerate(regions):
        with timed(record, "prediction", title=f"predicting {part}_{i}", show=show):
            _write_mask(prediction_path(folder, part, i), estimator, region)
    return {**record, "peak_memory": {"process": peak_memory(), "device": None}}


def _write_mask(path: Path, estimator: Estimator, region: Region) -> None:
    mask_zyx = np.asarray(estimator.predict(region.read_image()))
    if mask_zyx.shape != region.box.shape or mask_zyx.dtype.kind not in "bu" or mask_zyx.max(initial=0) > 1:
        kind = type(estimator).__name__
        raise UserError(f"{kind}.predict gave no mask of 0 and 1", (mask_zyx.shape, str(mask_zyx.dtype)))
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"voxel_size": region.image.voxel_size, "metadata": {"kind": "mask"}, "overwrite": True}
    with create_volume(str(path), region.box.shape, np.uint8, **options) as writer:
        writer.write(region.box.inside(region.box), mask_zyx.astype(np.uint8))


def checkpoint_of(method: Method, folder: Path) -> Path:
    """The checkpoint that is scored: the given one, or that of the method's own training."""
    path = Path(method.checkpoint) if method.checkpoint is not None else folder / TRAIN / "checkpoints" / "best.ckpt"
    if not path.is_file():
        raise UserError("no such checkpoint", str(path), "name a best.ckpt written by train")
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
