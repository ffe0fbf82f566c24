"""When checkpoints are written, and how: whole or not at all; signals; the state of random generators.

    best.ckpt   after a validation whose score is the highest so far
    last.ckpt   after every validation, every few minutes between them, and when the run is asked to stop

Both are what Lightning writes, with two more entries of plain data, and load with ``weights_only=True``.
"""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, distributed
from torch.utils._pytree import tree_leaves

from mitoseg.storage import atomic_output

log = logging.getLogger(__name__)
SCORE = "val/jaccard_foreground"  # what a run is judged by, on the validation slabs


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and renames it: a full disk or a kill leaves the old one as it was.

    Lightning 2.6 moves it from the folder of temporary files, which may be a copy that a kill can interrupt.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: object = None
    ) -> None:
        """Save to a local file."""
        with atomic_output(Path(path), overwrite=True) as temporary:
            torch.save(checkpoint, temporary)


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, that of the highest `SCORE`, also in a run whose folder was moved."""

    def __init__(self, folder: Path) -> None:
        fixed: dict[str, Any] = {"auto_insert_metric_name": False, "enable_version_counter": False, "mode": "max"}
        super().__init__(dirpath=folder, filename="best", monitor=SCORE, save_on_train_epoch_end=False, **fixed)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score with the folder's present path, where Lightning removes what is no longer best."""
        best = str(Path(str(self.dirpath), "best.ckpt"))
        paths = {name: state_dict[name] and best for name in state_dict if name.endswith("_model_path")}
        models = dict.fromkeys([best][: len(state_dict["best_k_models"])], state_dict["best_model_score"])
        super().load_state_dict({**state_dict, **paths, "dirpath": str(self.dirpath), "best_k_models": models})


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt``, every few minutes within an epoch, and stops the run in order when it is asked to.

    SIGINT (Ctrl-C), SIGTERM (a preempted job) and SIGUSR1 (a SLURM job whose time is nearly up) take effect after the
    current step or validation: the checkpoint is written, and training ends with `KeyboardInterrupt` or
    `SIGTERMException`; a second SIGINT interrupts at once. After SIGUSR1 a SLURM job is also put back into the queue.
    With several processes it is enough that one of them gets the signal; they agree on it ``every`` few steps.
    """

    def __init__(self, folder: Path, minutes: float = 10.0, every: int = 20) -> None:
        self.path = folder / "last.ckpt"
        self.seconds, self.every = 60 * minutes, every
        self.number = 0  # of the first signal
        self._before: dict[int, Any] = {}
        self._saved = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals after Lightning; one that is ignored (a background job's SIGINT) stays so."""
        self._saved = time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in filter(None, (signal.SIGINT, signal.SIGTERM, REQUEUE)):
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before.setdefault(number, before)
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = self.number or number
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        log.info("%s: stopping after this step%s", signal.Signals(number).name, again)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back to whoever had them."""
        while self._before:
            number, before = self._before.popitem()
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Save if it is time to, between two optimizer steps; the end of an epoch is left to the validation."""
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size > 1 and (batch_idx + 1) // trainer.accumulate_grad_batches % self.every:
            return
        stop, due = self._agree(trainer, time.monotonic() - self._saved >= self.seconds)
        if stop or due:
            self._save(trainer)
        self._end(stop)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save with the scores of this validation."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._save(trainer)
        self._end(self._agree(trainer, False)[0])

    def _agree(self, trainer: Trainer, due: bool) -> tuple[int, bool]:
        """The signal that any process got, and whether a checkpoint is due anywhere."""
        if trainer.world_size == 1 or not distributed.is_initialized():
            return self.number, due
        flags = torch.tensor([self.number, int(due)], device=trainer.strategy.root_device)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        return int(flags[0]), bool(flags[1])

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _end(self, number: int) -> None:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == REQUEUE:
            requeue()
        if number:
            raise SIGTERMException


def check_restored(trainer: Trainer) -> None:
    """Raise ValueError if a restored state is not of this training: an optimizer writes beyond too short a tensor."""
    for optimizer in trainer.optimizers:
        known = isinstance(optimizer, torch.optim.Adam | torch.optim.SGD)  # another one's state may have other shapes
        for parameter, state in optimizer.state.items() if known else ():
            if set(state) - {"step"} != set(next(iter(optimizer.state.values()))) - {"step"}:
                raise ValueError("the optimizer's state is incomplete")
            for name, value in state.items():
                shape = () if name == "step" else parameter.shape
                if value is not None and (not isinstance(value, Tensor) or value.shape != shape):
                    raise ValueError("the optimizer's state does not fit the network")
    for config in trainer.lr_scheduler_configs:
        rates = config.scheduler.state_dict()
        if not all(math.isfinite(rate) for rate in (*rates["base_lrs"], *rates["_last_lr"], rates["last_epoch"])):
            raise ValueError("the learning rates are not numbers")
    counts = [*tree_leaves(trainer.fit_loop.epoch_progress.state_dict())]
    counts += tree_leaves(trainer.fit_loop.epoch_loop.state_dict())
    if not all(isinstance(count, int) for count in counts):
        raise ValueError("the steps so far are not numbers")


def requeue() -> bool:
    """Put this SLURM job back into the queue, from its first process; False where there is no such job."""
    job = os.environ.get("SLURM_JOB_ID")
    if not job or os.environ.get("SLURM_PROCID", "0") != "0" or os.environ.get("LOCAL_RANK", "0") != "0":
        return False
    return subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0


REQUEUE = getattr(signal, "SIGUSR1", None)  # what SLURM is asked to send before a job's time is up


def capture() -> dict[str, Any]:
    """The random generators of this process, and its number of threads, on which the order of sums depends."""
    version, internal, gauss = random.getstate()
    state = np.random.get_state(legacy=False)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": [version, list(internal), gauss],
        "numpy": {**state, "state": {"key": state["state"]["key"].tolist(), "pos": int(state["state"]["pos"])}},
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "threads": torch.get_num_threads(),
    }


def restore(state: dict[str, Any]) -> None:
    """Restore what `capture` returned; the number of threads only if ``OMP_NUM_THREADS`` is not set."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kept = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {"key": np.array(kept["key"], np.uint32), "pos": kept["pos"]}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    threads = state.get("threads", torch.get_num_threads())
    if threads != torch.get_num_threads() and "OMP_NUM_THREADS" not in os.environ:
        log.info("resuming with %d thread(s), as before", threads)
        torch.set_num_threads(threads)


def capture_ranks() -> list[dict[str, Any]]:
    """`capture` of every rank; all of them must call this."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [capture()]
    states: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(states, capture())
    return states
