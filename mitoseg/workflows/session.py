"""Steps shared by the commands: the engine and its workers, the model, adapting the volume, and post-processing.

Workers open checkpoint and volume for themselves, and write their own chunks. Their devices and their access to files
are checked before anything is computed; a failure later costs hours.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import psutil
import torch
from hydra.utils import instantiate

from mitoseg import __version__
from mitoseg.control_groups import memory_available, usable_cores
from mitoseg.engines import LANES, Engine, LocalEngine, one_at_a_time, worker_rank
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Options, Prediction, Predictor
from mitoseg.inference.precision import choose_precision, has_bf16
from mitoseg.inference.prepare import (
    CUDA_SLICES,
    Restored,
    adapt_greys,
    choose_device,
    make_prediction,
    resample_input,
)
from mitoseg.inference.sizing import HEAPS, budget_bytes, parse_bytes, used_bytes
from mitoseg.networks.checkpoint import Model, load_model
from mitoseg.networks.kinds import dimensions
from mitoseg.progress import progress, waiting
from mitoseg.segmentation import Postprocess
from mitoseg.segmentation.postprocess import BLOCK, BYTES, IN_MEMORY, clean_volume
from mitoseg.storage import remove, scratch_folder
from mitoseg.volumes import Volume, VoxelSize
from mitoseg.volumes.padding import Padding
from mitoseg.volumes.predicted import decide
from mitoseg.volumes.staging import PATIENCE, explained, wait_for
from mitoseg.volumes.zarrs import ZarrOutput
from mitoseg.workflows.options import PredictOptions, VolumeOptions

log = logging.getLogger(__name__)

SHARE = 0.75
"""Fraction of the memory for items; the rest is for their results and for memory held by allocators."""

LEAST = 100 * 10**6
"""Least memory for the blocks of one process, in bytes; with less they would be inefficiently small."""


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Log nothing but errors of some packages."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def make_engine(options: VolumeOptions) -> Engine:
    """The engine chosen by ``engine=``, not started."""
    if options.memory is not None and parse_bytes(options.memory) > (there := psutil.virtual_memory().total):
        log.warning("memory=%s is more than this machine has, %.1f GB", options.memory, there / 1e9)
    engine: Engine = instantiate(options.engine, _convert_="all")
    return engine


def limit_memory(engine: Engine, memory: object) -> None:
    """Limit the memory of a started engine's items so that all its workers on one machine stay within ``memory``."""
    workers = 1 if engine.in_process else max(Counter(engine.ask(socket.gethostname)).values())
    besides = 0 if engine.in_process else used_bytes()  # this process imports the same libraries as its workers
    budget = memory_available() // workers
    if memory is not None:
        budget = budget_bytes(memory, workers=workers, besides=besides)
    if budget < LEAST:
        needed = (used_bytes() + HEAPS + LEAST) * workers + besides
        what = f"too little memory for {workers} process{'es' if workers > 1 else ''}"
        raise UserError(what, memory or "what is free", f"give memory={needed / 1e9 + 0.05:.1f}GB or more")
    engine.item_bytes = SHARE * budget / (1 if engine.in_process else LANES)


def chosen_steps(postprocess: Mapping[str, Any]) -> Postprocess | None:
    """The steps chosen by ``postprocess=``; None if there is only the threshold."""
    steps: Postprocess = instantiate(postprocess)
    return None if steps == Postprocess() else steps


@contextmanager
def cleaned(
    steps: Postprocess,
    prediction: Volume,
    folder: Path,
    *,
    image: Volume | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    engine: Engine | None = None,
    show: bool = False,
) -> Iterator[Volume]:
    """Post-process stored probabilities block by block; yield a mask, a large one kept in ``folder`` until the end.

    The watershed uses the edges in ``image``; ``threshold``, ``kind`` and ``voxel_size`` override the metadata.
    """
    decision = decide(prediction, threshold, kind)
    if decision.kind != "probability":
        remedy = "give postprocess=none, or the probabilities"
        raise UserError("postprocess needs probabilities", decision.kind, remedy)
    with scratch_folder(folder / "cleaning") as scratch:
        block, most = BLOCK, IN_MEMORY
        if engine is not None:
            block = engine.fit(BLOCK, 2 * BYTES)  # twice, for the halo
            most = int(min(most, engine.item_bytes / BYTES))
        with progress("post-processing", prediction.box.size, unit="voxels", show=show) as task:
            mask = clean_volume(
                prediction,
                decision.threshold,
                steps=steps,
                folder=scratch.absolute(),
                engine=engine,
                block=block,
                in_memory=most,
                scale=decision.scale,
                voxel_size=voxel_size or prediction.voxel_size,
                image=image,
                on_box=lambda box: task.advance(box.size),
            )
        metadata = {"kind": "mask", "threshold": decision.threshold, "postprocess": asdict(steps)}
        mask.info = replace(mask.info, path=prediction.path, voxel_size=prediction.voxel_size, metadata=metadata)
        yield mask


@dataclass(frozen=True)
class Session:
    """A model and the workers that compute with it, for all volumes of one command.

    ``workers`` is None where this process computes.
    """

    engine: Engine
    workers: Workers | None
    model: Model
    checkpoint: Path
    sha256: str
    device: str
    precision: str
    trust: bool

    @classmethod
    def open(cls, options: PredictOptions, engine: Engine, model: Model, checkpoint: Path) -> Session:
        """Query the workers of a started engine and make the choices that hold for the whole run."""
        with waiting("asking the workers"):
            workers = None if engine.in_process else compare_workers(engine.ask(worker_info), options.accelerator)
        device = choose_device(options.accelerator).type if workers is None else workers.device
        if isinstance(engine, LocalEngine) and workers is not None and device == "cuda":
            count = torch.cuda.device_count()
            if engine.workers > count:
                raise UserError(f"there are {count} devices here, not", engine.workers, f"give devices={count}")
        able = None if workers is None else workers.bf16
        precision = choose_precision(options.precision, torch.device(device), model.record, able=able)
        sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        return cls(engine, workers, model, checkpoint, sha256, device, precision, options.trust)

    def prepare(self, options: PredictOptions, source: Volume, kind: str) -> PreparedVolume:
        """One volume; with workers, this process keeps its network on the CPU."""
        names = ["threshold", "normalize", "resample", *(f.name for f in fields(Options) if hasattr(options, f.name))]
        chosen: dict[str, Any] = {name: getattr(options, name) for name in names if name != "save"} | {
            "accelerator": "cpu" if self.workers else options.accelerator,
            "precision": self.precision,
            "slices": CUDA_SLICES if self.device == "cuda" else 1,
        }
        return prepare(self.model, source, kind=kind, **chosen)

    def remote(self, prediction: Prediction, volume: Volume) -> Callable[[], Predictor]:
        """What makes the predictor in a worker: the volume holds where the voxels lie, not the voxels."""
        assert self.workers is not None
        settings = {f.name: getattr(prediction, f.name) for f in fields(prediction) if f.name != "network"}
        file = str(self.checkpoint.absolute()), self.sha256, self.trust
        return partial(remote_predictor, file, settings, volume, self.device, self.workers.threads)


def remote_predictor(
    file: tuple[str, str, bool], settings: Mapping[str, Any], volume: Volume, device: str, threads: int
) -> Predictor:
    """A predictor on this worker's device, of a checkpoint (path, SHA-256, whether it is trusted).

    Workers on a machine with several GPUs use one each; ``threads`` apply to computing on a CPU.
    """
    torch.set_num_threads(threads)
    network = _load(*file).network
    layout = torch.channels_last if dimensions(network) == 2 else torch.channels_last_3d
    place = f"cuda:{worker_rank() % torch.cuda.device_count()}" if device == "cuda" else device
    network.to(torch.device(place), memory_format=layout)  # type: ignore[call-overload]
    return Predictor(Prediction(network=network, **settings), volume)


@lru_cache(1)
def _load(checkpoint: str, sha256: str, trust: bool) -> Model:
    """The model, loaded once for all volumes of a run."""
    if sha256 != (Path(checkpoint).exists() and hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()):
        raise UserError("a worker does not see this checkpoint, or another", checkpoint, "put it on shared storage")
    return load_model(checkpoint, trust=trust)


def ask_predictors(
    engine: Engine, make: Callable[[], Predictor], decide: Callable[[Predictor], dict[str, Any]]
) -> dict[str, Any]:
    """Settings that suit all workers: the smallest of their tiles, and compilation if all of them support it."""
    answers = engine.ask(partial(_ask, make, decide))
    smallest = min(answers, key=lambda one: tuple(one["tile"]))
    return {**smallest, "compile": all(one["compile"] for one in answers)}


def _ask(make: Callable[[], Predictor], decide: Callable[[Predictor], dict[str, Any]]) -> dict[str, Any]:
    with one_at_a_time():
        return decide(make())


def tile_writer(
    make: Callable[[], Predictor], array: Path, tile: tuple[int, int, int], compiled: bool
) -> Callable[[Box], None]:
    """Load, open and compile in a worker; return a function that predicts and writes one tile."""
    predictor, threads = make(), torch.get_num_threads()
    if compiled:
        predictor.compile(tile)
    with explained(array):
        output = ZarrOutput.reopen(array)

    def predict(tile: Box) -> None:
        greys = predictor.read(tile)
        with one_at_a_time():
            torch.set_num_threads(threads)  # each thread has a number of its own
            found = predictor.compute(greys, tile)
        with explained(array):
            output.write(tile, predictor.encode(tile, found))

    return predict


@dataclass(frozen=True)
class PreparedVolume:
    """One volume, ready to be predicted.

    ``kind`` is what the tiles contain: ``probability``, ``mask`` or ``uncertainty``; ``restored`` turns them into a
    volume on the input's grid; None if they are already on it.
    """

    source: Volume
    predictor: Predictor
    kind: str
    restored: Restored | None

    @property
    def image(self) -> Volume:
        """The grey values on the result's grid; as seen by the network if that uses the same grid."""
        return self.predictor.volume if self.restored is None else self.source

    @property
    def voxel_size(self) -> VoxelSize | None:
        """(z, y, x) in nm of the result: the input's, else the checkpoint's."""
        return self.source.voxel_size or self.predictor.prediction.voxel_size

    def restore(self, tiles: Volume) -> Volume:
        """The finished tiles as a lazy volume on the input's grid."""
        return tiles if self.restored is None else self.restored(tiles)

    @property
    def padding(self) -> int:
        """How many voxels of the input were left out as padding."""
        with waiting("counting the voxels of padding"):
            return self.source.padding.count() if isinstance(self.source.padding, Padding) else 0


def prepare(
    model: Model,
    source: Volume,
    *,
    kind: str = "probability",
    normalize: str = "checkpoint",
    resample: object = "auto",
    **options: Any,  # noqa: ANN401 (of `make_prediction`)
) -> PreparedVolume:
    """Adapt a volume to what a model was trained on, and make the prediction.

    Tiles contain ``kind``, except that the mask of a resampled volume is computed from stored probabilities.
    """
    seen = resample_input(resample, source, model)
    with waiting("checking the grey values"):
        volume, normalization = adapt_greys(normalize, seen, model)
    restored = None if seen is source else Restored(source, kind == "mask")
    if restored is not None and restored.mask:
        kind = "probability"
    prediction = make_prediction(model, normalization=normalization, save=kind, **options)
    return PreparedVolume(source, Predictor(prediction, volume), kind, restored)


SHARED = "put it on storage that all machines share, under the same path"


@dataclass(frozen=True)
class WorkerInfo:
    """A worker; ``bf16`` are its devices with native bfloat16, ``versions`` those of mitoseg and torch."""

    machine: str
    cores: int
    devices: tuple[str, ...]
    bf16: tuple[str, ...]
    versions: tuple[str, str]


def worker_info() -> WorkerInfo:
    """Describe this process."""
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    devices = tuple(name for name, there in here.items() if there)
    bf16 = tuple(name for name in devices if has_bf16(torch.device(name)))
    return WorkerInfo(socket.gethostname(), usable_cores(), devices, bf16, (__version__, torch.__version__))


@dataclass(frozen=True)
class Workers:
    """What all workers of an engine have in common; ``neighbours`` is the most that share a machine."""

    device: str
    bf16: bool
    threads: int
    neighbours: int


def compare_workers(workers: Sequence[WorkerInfo], accelerator: str) -> Workers:
    """What the workers have in common; each has as many threads as the one with the fewest cores can have."""
    ours = (__version__, torch.__version__)
    for worker in workers:
        if worker.versions != ours:
            what = f"a worker on {worker.machine} has other versions of mitoseg and torch than {ours}"
            raise UserError(what, worker.versions, "install the same everywhere")
    wanted = {"gpu": "cuda"}.get(accelerator, accelerator)
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if all(name in worker.devices for worker in workers))
    lacking = [worker.machine for worker in workers if wanted not in worker.devices]
    if lacking:
        choose_device("cpu" if wanted in ("cuda", "mps") else wanted)  # refuses what does not exist at all
        what = f"{len(lacking)} of {len(workers)} workers lack the accelerator {wanted}, among them one on"
        raise UserError(what, lacking[0], "use accelerator=auto")
    crowd = Counter(worker.machine for worker in workers)
    threads = min(max(1, worker.cores // crowd[worker.machine]) for worker in workers)
    return Workers(wanted, all(wanted in worker.bf16 for worker in workers), threads, max(crowd.values()))


def find_files(sizes: Mapping[str, tuple[str, int | None]], token: Path, text: str) -> tuple[str, str | UserError]:
    """On a worker, check for files and for the coordinator's token, and write another token beside it.

    ``sizes`` maps what a file is to its path and size in bytes (None: a folder); ``text`` is the token's content.
    Returns the machine's name, and the name of the worker's own token or the error.
    """
    machine, folder = socket.gethostname(), str(token.parent)
    for what, (path, size) in sizes.items():
        if not os.path.exists(path):
            return machine, UserError(f"a worker on {machine} does not see the {what}", path, SHARED)
        if size is not None and os.path.getsize(path) != size:
            return machine, UserError(f"a worker on {machine} sees a different {what}", path, SHARED)
    try:
        wait_for(token, 5)
        same = token.read_text(encoding="utf-8") == text
    except (UserError, OSError):
        same = False
    if not same:
        return machine, UserError(f"a worker on {machine} does not see the output folder", folder, SHARED)
    own = token.with_name(f"{token.name}.{secrets.token_hex(8)}")
    try:
        own.write_text(text, encoding="utf-8")
    except OSError as error:
        what = f"a worker on {machine} cannot write ({error.strerror or error})"
        return machine, UserError(what, folder, "check its permissions")
    return machine, own.name


def check_shared_storage(
    engine: Engine, files: Mapping[str, str | Path], folder: Path, patience: float = PATIENCE
) -> None:
    """Check that every worker sees the files, and that workers and this process see each other's files in ``folder``.

    ``files`` are keyed by what they are; a worker's file must appear here within ``patience`` seconds.
    """
    sizes = {
        what: (os.path.abspath(path), None if os.path.isdir(path) else os.path.getsize(path))
        for what, path in files.items()
    }
    text = secrets.token_hex(8)
    token = folder.absolute() / f"token.{text}"
    try:
        token.write_text(text, encoding="utf-8")
        for machine, answer in engine.ask(partial(find_files, sizes, token, text)):
            if isinstance(answer, UserError):
                raise answer
            try:
                wait_for(token.with_name(answer), patience)
            except UserError as error:
                what = f"files that a worker on {machine} writes beside the output do not appear here"
                raise UserError(what, str(folder), SHARED) from error
    finally:
        for left in folder.glob(f"{token.name}*"):
            remove(left)
