"""From ``engine=`` to an engine, and from ``memory=`` to what it may hold at once."""

from __future__ import annotations

import logging
import socket
from collections import Counter

import psutil
from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.control_groups import memory_available
from mitoseg.engines import LANES, Engine
from mitoseg.errors import UserError
from mitoseg.inference.memory import HEAPS, budget_bytes, parse_bytes, used_bytes

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
