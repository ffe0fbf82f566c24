"""Predict the tiles of one volume on an engine's workers: each opens checkpoint and volume, and writes its own chunks.

coordinator    chooses method, precision, tile, compilation    hands out tiles    records those done
worker             network, volume     read -> compute -> write one chunk

The workers' devices and their access to files are checked before anything is computed; a failure later costs hours.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from mitoseg import __version__
from mitoseg.control_groups import usable_cores
from mitoseg.engines import Engine, Prepared, one_at_a_time, worker_rank
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Prediction, Predictor
from mitoseg.inference.precision import has_bf16
from mitoseg.inference.prepare import choose_device
from mitoseg.networks.checkpoint import Model, load_model
from mitoseg.networks.kinds import dimensions
from mitoseg.progress import progress
from mitoseg.storage import remove
from mitoseg.volumes import Volume
from mitoseg.volumes.staging import PATIENCE, StagedVolume, explained, wait_for
from mitoseg.volumes.zarrs import ZarrOutput, remove_partial

Decisions = dict[str, Any]


@dataclass(frozen=True)
class Remote:
    """A prediction without its network, which every worker loads itself.

    ``settings`` are all fields of `Prediction` except the network; ``volume`` refers to the voxels without holding
    them. Workers on a machine with several GPUs use one each; ``threads`` apply to computing on a CPU.
    """

    checkpoint: str
    sha256: str
    trust: bool
    settings: Mapping[str, Any]
    volume: Volume
    device: str
    threads: int

    def predictor(self) -> Predictor:
        """A predictor on this worker's device."""
        torch.set_num_threads(self.threads)
        network = _load(self.checkpoint, self.sha256, self.trust).network
        layout = torch.channels_last if dimensions(network) == 2 else torch.channels_last_3d
        cuda = self.device == "cuda"
        device = f"cuda:{worker_rank() % torch.cuda.device_count()}" if cuda else self.device
        network.to(torch.device(device), memory_format=layout)  # type: ignore[call-overload]
        return Predictor(Prediction(network=network, **self.settings), self.volume)


@lru_cache(1)
def _load(checkpoint: str, sha256: str, trust: bool) -> Model:
    """The model, loaded once for all volumes of a run."""
    if sha256 != (Path(checkpoint).exists() and hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()):
        raise UserError("a worker does not see this checkpoint, or another", checkpoint, "put it on shared storage")
    return load_model(checkpoint, trust=trust)


def decide_together(engine: Engine, remote: Remote, decide: Callable[[Predictor], Decisions]) -> Decisions:
    """Settings that suit all workers: the smallest of their tiles, and compilation if all of them support it."""
    answers = engine.ask(partial(_decide, remote, decide))
    smallest = min(answers, key=lambda one: tuple(one["tile"]))
    return {**smallest, "compile": all(one["compile"] for one in answers)}


def _decide(remote: Remote, decide: Callable[[Predictor], Decisions]) -> Decisions:
    with one_at_a_time():
        return decide(remote.predictor())


def predict_on_workers(
    engine: Engine, remote: Remote, stage: StagedVolume, *, compiled: bool, title: str, show: bool
) -> None:
    """Predict every tile still missing from a stage; if workers fail, finished tiles are kept."""
    make = partial(_tile_writer, remote, stage.array.absolute(), stage.tile, compiled)
    missing = (tile for tile in stage.tiles() if tile not in stage.done)
    done, total = sum(tile.size for tile in stage.done), remote.volume.box.size
    with progress(f"predicting {title}", total, done=done, unit="voxels", show=show) as task:

        def take(tile: Box, _: None) -> None:
            stage.take(tile)
            task.advance(tile.size)

        engine.map(Prepared(make), missing, take)
    remove_partial(stage.array)


def _tile_writer(remote: Remote, array: Path, tile: tuple[int, int, int], compiled: bool) -> Callable[[Box], None]:
    """Load, open and compile; return a function that predicts and writes one tile."""
    predictor = remote.predictor()
    if compiled:
        predictor.compile(tile)
    with explained(array):
        output = ZarrOutput.reopen(array)

    def predict(tile: Box) -> None:
        greys = predictor.read(tile)
        with one_at_a_time():
            torch.set_num_threads(remote.threads)  # the setting is per thread
            found = predictor.compute(greys, tile)
        with explained(array):
            output.write(tile, predictor.encode(tile, found))

    return predict


SHARED = "put it on storage that all machines share, under the same path"


@dataclass(frozen=True)
class WorkerInfo:
    """A worker: its machine, usable cores, devices, devices with native bfloat16, versions of mitoseg and torch."""

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
    """All workers of an engine, which use the same kind of device: ``cpu``, ``cuda`` or ``mps``.

    ``bf16``: whether all support bfloat16 natively on it; ``threads``: cores per worker, the minimum over workers;
    ``neighbours``: workers that share a machine, the maximum over machines.
    """

    device: str
    bf16: bool
    threads: int
    neighbours: int


def compare_workers(workers: Sequence[WorkerInfo], accelerator: str) -> Workers:
    """What all workers have in common; ``accelerator`` is ``auto`` or the user's choice."""
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

    ``files`` are keyed by what they are, such as "checkpoint"; a worker's file must appear here within ``patience``
    seconds.
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
