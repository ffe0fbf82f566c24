"""From ``engine=`` to an engine, and from ``memory=`` to what it may hold at once.

``labelling=``: how the commands that offer it number mitochondria.

Post-processing of stored probabilities, for the commands that offer ``postprocess=``.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.control_groups import memory_available
from mitoseg.engines import LANES, Engine
from mitoseg.errors import UserError
from mitoseg.inference.sizing import HEAPS, budget_bytes, parse_bytes, used_bytes
from mitoseg.progress import progress
from mitoseg.segmentation import Labelling, Postprocess
from mitoseg.segmentation.cleaning import BLOCK, Cleaner
from mitoseg.segmentation.postprocess import BYTES
from mitoseg.storage import scratch_folder
from mitoseg.volumes import Volume
from mitoseg.volumes.predicted import decide

log = logging.getLogger(__name__)

SHARE = 0.75
"""Of that memory, for items; the rest for what comes of them, and for what allocators keep."""

LEAST = 100 * 10**6
"""Bytes for the blocks of one process, below which they would be too small to be worth it."""


def make_engine(cfg: DictConfig) -> Engine:
    """The engine that ``engine=`` names, not started.

    Raises:
        UserError: An option of it is no good, or ``memory`` is no amount of memory.
    """
    if cfg.memory is not None and parse_bytes(cfg.memory) > (there := psutil.virtual_memory().total):
        log.warning("memory=%s is more than this machine has, %.1f GB", cfg.memory, there / 1e9)
    engine: Engine = instantiate(cfg.engine, _convert_="all")
    return engine


def limit_memory(engine: Engine, memory: object) -> None:
    """Tell a started engine what its items may take, so that all workers of a machine together stay within ``memory``.

    Args:
        engine: Whose workers.
        memory: What all processes of the command may take on a machine; None: all that is free.

    Raises:
        UserError: That is too little.
    """
    workers = 1 if engine.in_process else max(Counter(engine.ask(socket.gethostname)).values())
    besides = 0 if engine.in_process else used_bytes()  # by this process, which imports what its workers import
    budget = memory_available() // workers
    if memory is not None:
        budget = budget_bytes(memory, workers=workers, besides=besides)
    if budget < LEAST:
        needed = (used_bytes() + HEAPS + LEAST) * workers + besides
        what = f"too little memory for {workers} process{'es' if workers > 1 else ''}"
        raise UserError(what, memory or "what is free", f"give memory={needed / 1e9 + 0.05:.1f}GB or more")
    engine.item_bytes = SHARE * budget / (1 if engine.in_process else LANES)


def chosen_labelling(cfg: DictConfig) -> Labelling:
    """What ``labelling=`` asks for.

    Raises:
        UserError: A value is out of range.
    """
    labelling: Labelling = instantiate(cfg.labelling)
    return labelling


def chosen_steps(cfg: DictConfig) -> Postprocess | None:
    """What ``postprocess=`` asks for; None where it is no more than the threshold."""
    steps: Postprocess = instantiate(cfg.postprocess)
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
    """A stored probability as a clean mask, block by block.

    Args:
        steps: What is done.
        prediction: Probabilities.
        folder: In which a large mask lies until the end of the block.
        image: The EM image, whose edges the watershed follows.
        threshold: Overrides that of the prediction.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: (z, y, x) in nm; None: the prediction's.
        engine: Started; None: this process. The workers of another one see ``folder``.
        show: Whether a progress bar is drawn.

    Raises:
        UserError: The prediction holds no probabilities, or a step cannot be taken.
    """
    decision = decide(prediction, threshold, kind)
    if decision.kind != "probability":
        raise UserError(
            "postprocess needs probabilities", decision.kind, "give postprocess=none, or the probabilities"
        )
    size = voxel_size or prediction.voxel_size
    with scratch_folder(folder / "cleaning") as scratch:
        cleaner = Cleaner(steps, scratch.absolute(), engine)
        if engine is not None:
            most = int(min(cleaner.in_memory, engine.item_bytes / BYTES))
            cleaner = replace(cleaner, block=engine.fit(BLOCK, 2 * BYTES), in_memory=most)  # twice: with the halo
        options = {"scale": decision.scale, "voxel_size": size, "image": image}
        with progress("post-processing", prediction.box.size, unit="voxels", show=show) as task:
            mask = cleaner(prediction, decision.threshold, **options, on_box=lambda box: task.advance(box.size))  # type: ignore[arg-type]
        metadata = {"kind": "mask", "threshold": decision.threshold, "postprocess": asdict(steps)}
        mask.info = replace(mask.info, path=prediction.path, voxel_size=prediction.voxel_size, metadata=metadata)
        yield mask
