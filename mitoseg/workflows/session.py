"""Steps shared by the commands: the engine, the model and its device, adapting the volume, and post-processing."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from hydra.utils import instantiate

from mitoseg.control_groups import memory_available
from mitoseg.engines import LANES, Engine, LocalEngine
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import Options, Prediction, Predictor, predict_volume
from mitoseg.inference.precision import choose_precision
from mitoseg.inference.prepare import (
    CUDA_SLICES,
    Restored,
    adapt_greys,
    choose_device,
    make_prediction,
    resample_input,
)
from mitoseg.inference.sizing import HEAPS, budget_bytes, parse_bytes, used_bytes
from mitoseg.networks.checkpoint import DEFAULT, Model, find_weights, load_model
from mitoseg.progress import progress, waiting
from mitoseg.segmentation import Postprocess
from mitoseg.segmentation.postprocess import BLOCK, BYTES, Cleaner
from mitoseg.storage import scratch_folder
from mitoseg.volumes import Normalization, Volume, VoxelSize
from mitoseg.volumes.base import BoxWriter
from mitoseg.volumes.padding import Padding
from mitoseg.volumes.predicted import decide
from mitoseg.workflows.options import PredictOptions, VolumeOptions
from mitoseg.workflows.remote import Remote, Workers, compare_workers, worker_info

log = logging.getLogger(__name__)

SHARE = 0.75
"""Fraction of the memory for items; the rest is for their results and for memory held by allocators."""

LEAST = 100 * 10**6
"""Least memory for the blocks of one process, in bytes; with less they would be inefficiently small."""


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
    """Post-process stored probabilities block by block; yields a mask.

    A large mask is kept in ``folder``, visible to the engine's workers, until the with block ends. The watershed uses
    the edges in ``image``; ``threshold``, ``kind`` and ``voxel_size`` override the prediction's metadata.
    """
    decision = decide(prediction, threshold, kind)
    if decision.kind != "probability":
        remedy = "give postprocess=none, or the probabilities"
        raise UserError("postprocess needs probabilities", decision.kind, remedy)
    with scratch_folder(folder / "cleaning") as scratch:
        cleaner = Cleaner(steps, scratch.absolute(), engine)
        if engine is not None:
            most = int(min(cleaner.in_memory, engine.item_bytes / BYTES))
            cleaner = replace(cleaner, block=engine.fit(BLOCK, 2 * BYTES), in_memory=most)  # twice, for the halo
        with progress("post-processing", prediction.box.size, unit="voxels", show=show) as task:
            mask = cleaner(
                prediction,
                decision.threshold,
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
    """What all volumes of one run share; ``workers`` is None if this process computes."""

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

    def prediction(self, options: PredictOptions, normalization: Normalization | None, save: str) -> Prediction:
        """The prediction of one volume; with workers, this process keeps its network on the CPU."""
        names = ["threshold", *(field.name for field in fields(Options) if hasattr(options, field.name))]
        chosen: dict[str, Any] = {name: getattr(options, name) for name in names} | {
            "accelerator": "cpu" if self.workers else options.accelerator,
            "precision": self.precision,
            "save": save,
        }
        prediction = make_prediction(self.model, normalization=normalization, **chosen)
        return replace(prediction, slices=CUDA_SLICES if self.device == "cuda" else 1)

    def remote(self, prediction: Prediction, volume: Volume) -> Remote:
        """The same prediction for the workers."""
        assert self.workers is not None
        settings = {f.name: getattr(prediction, f.name) for f in fields(prediction) if f.name != "network"}
        path, threads = str(self.checkpoint.absolute()), self.workers.threads
        return Remote(path, self.sha256, self.trust, settings, volume, self.device, threads)


def load(checkpoint: str | None, *, trust: bool) -> tuple[Model, Path]:
    """The model named by ``checkpoint=``, and its file."""
    path = find_weights(checkpoint)
    if checkpoint is None:
        log.info("no checkpoint= is given: predicting with %s, see %s", DEFAULT, path.with_name("CARD.md"))
    return load_model(path, trust=trust), path


@dataclass(frozen=True)
class Prepared:
    """One volume, ready to be predicted, and how to restore the result to its grid.

    Attributes:
        source: The input, with its padding if that is to be detected.
        predictor: Predictor of the volume that the network sees.
        kind: What the tiles contain: ``probability``, ``mask`` or ``uncertainty``.
        restored: Turns the tiles into a volume on the input's grid; None if they are already on it.
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
    make: Callable[[Normalization | None, str], Prediction],
    *,
    normalize: str,
    resample: object,
    kind: str,
) -> Prepared:
    """Adapt a volume to what a model was trained on; see `adapt_greys` and `resample_input`.

    ``make`` creates the prediction, given the volume's own normalisation, if any, and the tiles' content: ``kind``,
    except that the mask of a resampled volume is computed from stored probabilities.
    """
    seen = resample_input(resample, source, model)
    with waiting("checking the grey values"):
        volume, normalization = adapt_greys(normalize, seen, model)
    restored = None if seen is source else Restored(source, kind == "mask")
    if restored is not None and restored.mask:
        kind = "probability"
    return Prepared(source, Predictor(make(normalization, kind), volume), kind, restored)


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
