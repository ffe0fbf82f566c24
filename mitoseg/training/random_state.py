"""The state of all random generators as plain data, so that a checkpoint that holds it loads with ``weights_only``."""

from __future__ import annotations

import logging
import os
import random
from typing import Any

import numpy as np
import torch
from torch import distributed

log = logging.getLogger(__name__)


def capture() -> dict[str, Any]:
    """The generators of this process: Python's, numpy's, torch's on the CPU and on the current GPU.

    And the number of threads: gradients are summed in another order on each number.
    """
    version, words, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": [version, list(words), gauss],
        "numpy": {**state, "state": {"key": state["state"]["key"].tolist(), "pos": int(state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "threads": torch.get_num_threads(),
    }


def restore(state: dict[str, Any]) -> None:
    """Put back the generators of this process, and the number of threads unless ``OMP_NUM_THREADS`` is set."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kept = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {"key": np.array(kept["key"], np.uint32), "pos": kept["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    threads = state.get("threads", torch.get_num_threads())
    if threads != torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        log.info("going on with %d thread(s), as before", threads)
        torch.set_num_threads(threads)


def capture_ranks() -> list[dict[str, Any]]:
    """`capture` of every rank, by rank; all of them must call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [capture()]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, capture())
    return states
