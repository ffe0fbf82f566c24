"""Tiles of one prediction on the workers of an engine: each opens checkpoint and volume, and writes its own chunks.

coordinator    decides method, precision, tile, compilation    deals out tiles    lists those that are done
worker             network, volume     read -> compute -> write one chunk
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mitoseg.engines import Engine, Prepared, here, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Prediction, Predictor
from mitoseg.inference.protocol import dimensions
from mitoseg.networks.checkpoint import Model, load_model
from mitoseg.progress import progress
from mitoseg.volumes import Volume
from mitoseg.volumes.staging import StagedVolume, explained
from mitoseg.volumes.zarr_output import ZarrOutput

Decisions = dict[str, Any]


@dataclass(frozen=True)
class Remote:
    """A prediction without its network, which every worker loads for itself.

    Attributes:
        checkpoint: Absolute path.
        sha256: Of the checkpoint.
        trust: As `load_model`.
        settings: All fields of `Prediction` but the network.
        volume: Opened; it holds where the voxels lie, not the voxels.
        device: ``cpu``, ``cuda`` or ``mps``.
        threads: For computing on a CPU.
    """

    checkpoint: str
    sha256: str
    trust: bool
    settings: Mapping[str, Any]
    volume: Volume
    device: str
    threads: int

    def predictor(self) -> Predictor:
        """A predictor on this worker's device.

        Raises:
            UserError: Another checkpoint lies here than where the run was started.
        """
        torch.set_num_threads(self.threads)
        network = _load(self.checkpoint, self.sha256, self.trust).network
        layout = torch.channels_last if dimensions(network) == 2 else torch.channels_last_3d
        network.to(own_device(self.device), memory_format=layout)  # type: ignore[call-overload]
        return Predictor(Prediction(network=network, **self.settings), self.volume)


def make_remote(
    prediction: Prediction, volume: Volume, *, checkpoint: Path, sha256: str, trust: bool, device: str, threads: int
) -> Remote:
    """What is sent to the workers instead of a prediction."""
    settings = {f.name: getattr(prediction, f.name) for f in fields(prediction) if f.name != "network"}
    return Remote(str(checkpoint.absolute()), sha256, trust, settings, volume, device, threads)


def own_device(kind: str) -> torch.device:
    """This worker's device: of several, workers of one machine take one each."""
    return torch.device(f"cuda:{here().index % torch.cuda.device_count()}" if kind == "cuda" else kind)


@lru_cache(1)
def _load(checkpoint: str, sha256: str, trust: bool) -> Model:
    """The model, once for all volumes of a run."""
    if sha256 != (Path(checkpoint).exists() and hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest()):
        raise UserError("a worker does not see the checkpoint, or another one", checkpoint, "put it on shared storage")
    return load_model(checkpoint, trust=trust)


@dataclass(frozen=True)
class Deciding:
    """Decides on a worker, whose memory counts.

    Attributes:
        remote: What is predicted.
        decide: From a predictor to what it decides.
    """

    remote: Remote
    decide: Callable[[Predictor], Decisions]

    def __call__(self) -> Decisions:
        """What this worker would decide."""
        with one_at_a_time():
            return self.decide(self.remote.predictor())


def decide_together(engine: Engine, remote: Remote, decide: Callable[[Predictor], Decisions]) -> Decisions:
    """What suits all workers: the smallest tile that one of them has memory for, compiled where all can.

    Raises:
        UserError: One of them has no memory for the smallest tile, or refuses what the user wants.
    """
    answers = engine.ask(Deciding(remote, decide))
    smallest = min(answers, key=lambda one: tuple(one["tile"]))
    return {**smallest, "compile": all(one["compile"] for one in answers)}


@dataclass(frozen=True)
class TileMaker:
    """Makes what predicts and writes one tile.

    Attributes:
        remote: What is predicted.
        array: Of the stage; see `StagedVolume.array`.
        tile: (z, y, x) voxels.
        compiled: Whether the network is compiled for that tile.
    """

    remote: Remote
    array: Path
    tile: tuple[int, int, int]
    compiled: bool

    def __call__(self) -> Callable[[Box], None]:
        """Load, open, compile."""
        predictor = self.remote.predictor()
        if self.compiled:
            predictor.compile(self.tile)
        with explained(self.array):
            output = ZarrOutput.reopen(self.array)

        def predict(tile: Box) -> None:
            greys = predictor.read(tile)
            with one_at_a_time():
                torch.set_num_threads(self.remote.threads)  # each thread has a number of its own
                found = predictor.compute(greys, tile)
            with explained(self.array):
                output.write(tile, predictor.encode(tile, found))

        return predict


def predict_on_workers(
    engine: Engine, remote: Remote, stage: StagedVolume, *, compiled: bool, title: str, show: bool
) -> None:
    """Predict every tile that a stage does not hold yet.

    Raises:
        UserError: A worker cannot read or write, or the workers are gone; finished tiles are kept.
    """
    maker = TileMaker(remote, stage.array.absolute(), stage.tile, compiled)
    missing = (tile for tile in stage.tiles() if tile not in stage.done)
    done, total = sum(tile.size for tile in stage.done), remote.volume.box.size
    with progress(f"predicting {title}", total, done=done, unit="voxels", show=show) as task:

        def take(tile: Box, _: None) -> None:
            stage.take(tile)
            task.advance(tile.size)

        engine.map(Prepared(maker), missing, take)
    stage.tidy()
