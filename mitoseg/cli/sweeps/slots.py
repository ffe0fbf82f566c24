"""Which device or cores a job gets, when a launcher runs several at once on this machine.

With ``n_jobs=2`` on four GPUs and ``trainer.devices=2``: slot 0 has GPUs 0 and 1, slot 1 has 2 and 3. On a CPU each
slot has its share of the cores. Where there are more slots than devices, slots share them. A slot is a lock file in
the sweep's folder, so it is free again however its job ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Slot:
    """A place to run a job: variables for its environment, and cores to keep to."""

    variables: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()

    def bind(self, process: psutil.Process) -> None:
        """Keep a process that has just started, and what it will start, to the slot's cores."""
        if self.cores and hasattr(process, "cpu_affinity"):  # macOS has none
            with contextlib.suppress(psutil.Error, OSError):
                process.cpu_affinity(list(self.cores))

    def __str__(self) -> str:
        if "CUDA_VISIBLE_DEVICES" in self.variables:
            return f"GPU {self.variables['CUDA_VISIBLE_DEVICES']}"
        return f"core {','.join(map(str, self.cores))}"


@contextlib.contextmanager
def free_slot(folder: Path, cfg: DictConfig, threads: str | None = None) -> Iterator[Slot]:
    """Wait for a slot and hold it; a launcher that runs one job at a time, or elsewhere, has one that binds nothing.

    Args:
        folder: The sweep's folder.
        cfg: The job's config; its ``trainer.devices`` and ``trainer.accelerator`` count, if there are any.
        threads: ``OMP_NUM_THREADS`` of the job's processes; None divides the slot's cores among them.
    """
    count = slot_count()
    if count < 2:
        yield Slot()
        return
    places = folder / ".slots"
    places.mkdir(parents=True, exist_ok=True)
    while True:
        for index in range(count):
            lock = FileLock(places / f"{index}.lock", timeout=0)
            with contextlib.suppress(Timeout):
                lock.acquire()
                try:
                    yield make_slot(index, count, cfg, threads)
                finally:
                    lock.release()
                return
        time.sleep(_POLL_SECONDS)


def slot_count() -> int:
    """How many jobs joblib runs at once; 1 for the other launchers."""
    launcher = HydraConfig.get().launcher
    if not str(launcher.get("_target_", "")).endswith("JoblibLauncher"):
        return 1
    jobs = int(launcher.get("n_jobs") or 1)
    return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)


def make_slot(index: int, count: int, cfg: DictConfig, threads: str | None = None) -> Slot:
    """The slot of an index: its share of the GPUs, or of the cores where there are none or none are asked for."""
    cores = _own_cores()
    share = max(1, len(cores) // count)
    gpus = [] if OmegaConf.select(cfg, "trainer.accelerator") == "cpu" else visible_gpus()
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    each = devices if isinstance(devices, int) and devices > 0 else max(1, len(gpus) // count)
    variables = {"OMP_NUM_THREADS": threads or str(max(1, share // each))}
    if gpus:
        return Slot({**variables, "CUDA_VISIBLE_DEVICES": ",".join(_portion(gpus, index, each))})
    return Slot(variables, tuple(sorted({int(core) for core in _portion(list(map(str, cores)), index, share)})))


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, found without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in {"", "-1", "NoDevFiles"}]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [str(i) for i, _ in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


def _own_cores() -> list[int]:
    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return list(process.cpu_affinity() or [])
    return list(range(os.cpu_count() or 1))


def _portion(things: Sequence[str], index: int, each: int) -> list[str]:
    """Things number ``index * each`` and so on, ``each`` of them, counted round in a circle.

    >>> _portion("abcd", 1, 2), _portion("ab", 2, 1)
    (['c', 'd'], ['a'])
    """
    return [things[(index * each + i) % len(things)] for i in range(min(each, len(things)))]
