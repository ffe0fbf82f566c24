"""What a command line with ``-m`` or ``seeds=N`` asks for: the sweep's folder, the keys that vary, a job's devices.

outputs/sweeps/network=patch_cnn+context_cnn_seed=1+2+3_5d1c09f2/     the same for the same arguments
    network=patch_cnn,seed=1/                                         a job, a run's folder like any other
    results.csv, summary.csv

Names are the same on every machine. Where a character is replaced, or a name is cut, or only capitals would tell two
names apart, eight digits of a hash follow.

Where joblib runs several jobs at once, a job gets a slot: its share of the GPUs, or of the cores. A slot is a lock
file in the sweep's folder, so it is free again however its job ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from filelock import FileLock, Timeout
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mitoseg.arguments import key_of, literal, value_of
from mitoseg.control_groups import usable_cores
from mitoseg.errors import UserError

ROOT = Path("outputs", "sweeps")
LONGEST_JOB = 100
LONGEST_SWEEP = 60
_ODD = re.compile(r"[^a-z0-9._+=,-]+")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_NAMED_FIRST = ("experiment", "hparams_search")
_POLL_SECONDS = 0.5
_parser = OverridesParser.create()
Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Sweep:
    """What every job of a sweep knows of it; pickled into the workers of a launcher.

    ``command`` starts a job's command line; ``varied`` are keys with several values; with ``own_folders`` the user
    names the jobs' folders; ``threads``: ``OMP_NUM_THREADS`` as the user has set it, since joblib sets its own in
    workers; ``invocation`` names this call, for its reports; ``pid`` is the process that the user has started.
    """

    folder: Path
    command: tuple[str, ...]
    varied: frozenset[str]
    own_folders: bool = False
    threads: str | None = field(default_factory=lambda: os.environ.get("OMP_NUM_THREADS"))
    invocation: str = field(default_factory=lambda: secrets.token_hex(4))
    pid: int = field(default_factory=os.getpid)


def find_sweep(words: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Arguments and options with ``seeds=N`` spelled out, and whether they are to run a sweep.

    >>> find_sweep(["seeds=2"], [])
    (['seed=1,2'], ['-m'], True)
    >>> find_sweep(["seeds=2"], ["--cfg", "job"])
    (['seeds=2'], ['--cfg', 'job'], False)
    """
    known = get_args_parser().parse_args(list(options))
    if any((known.cfg, known.help, known.hydra_help, known.info, known.shell_completion)):
        return list(words), list(options), False
    spelled, counted = expand_seeds(words)
    more = ["-m"] if counted and not known.multirun else []
    return spelled, [*options, *more], known.multirun or counted


def expand_seeds(words: Sequence[str]) -> tuple[list[str], bool]:
    """Turn ``seeds=3`` into ``seed=1,2,3``, counted from the given seed, and say whether that makes a sweep."""
    seeds = _given(words, "seeds")
    if seeds is None:
        return list(words), False
    if not re.fullmatch(r"[1-9]\d*", seeds):
        raise UserError("seeds counts runs, it cannot be", seeds, "give a whole number from 1, such as seeds=3")
    rest = [word for word in words if key_of(word) != "seeds"]
    if seeds == "1":
        return rest, False
    first = _given(rest, "seed") or "1"
    if not re.fullmatch(r"\d+", first):
        raise UserError("seeds= counts up from one seed", f"seed={first}", "give one seed, or leave out seeds=")
    counted = ",".join(str(int(first) + i) for i in range(int(seeds)))
    return [*(word for word in rest if key_of(word) != "seed"), f"seed={counted}"], True


def pin_sweep(words: Sequence[str], context: Sequence[str] = ()) -> list[str]:
    """Add where the sweep and its jobs lie, unless the user has said so.

    Hydra would work out ``hydra.sweep.dir`` anew for each job, so it must not depend on the time or on what varies.
    """
    folder = _given(words, "hydra.sweep.dir")
    if folder is not None and "${" in folder:
        raise UserError("one folder for all jobs is needed, hydra.sweep.dir", folder, "leave out the ${...}")
    pinned = {"hydra.output_subdir": "null"}  # a job writes its own
    launcher = _given(words, "hydra/launcher")
    pinned |= {key: value for key, value in _launcher_defaults(launcher).items() if _given(words, key) is None}
    if folder is None:
        swept = [word for word in words if _is_sweep(word)]
        pinned["hydra.sweep.dir"] = literal((ROOT / sweep_name(words, swept, context)).as_posix())
    if _given(words, "hydra.sweep.subdir") is None:
        pinned["hydra.sweep.subdir"] = "."
    kept = [word for word in words if key_of(word) != "hydra.output_subdir"]
    return [*kept, *(f"{key}={value}" for key, value in pinned.items())]


def _launcher_defaults(launcher: str | None) -> dict[str, str]:
    if launcher == "joblib":
        count = max(len(visible_gpus()), 2)  # a job on each GPU; batches would keep jobs from free slots
        return {"hydra.launcher.n_jobs": str(count), "hydra.launcher.batch_size": "1"}
    if launcher not in {"submitit_local", "submitit_slurm", "slurm"}:
        return {}
    # a new name each time: submitit unpickles whatever lies there for one of its jobs
    folder = {"hydra.launcher.submitit_folder": f"${{hydra.sweep.dir}}/.submitit/{secrets.token_hex(8)}/%j"}
    return folder | ({"hydra.launcher.timeout_min": "10080"} if launcher == "submitit_local" else {})


def plan_sweep(pinned: Sequence[str], command: Sequence[str]) -> Sweep:
    """The sweep that arguments of `pin_sweep` describe; ``command`` as of `Sweep`."""
    folder = _given(pinned, "hydra.sweep.dir") or str(ROOT)
    varied = frozenset(key_of(word) for word in pinned if _is_sweep(word))
    own_folders = _given(pinned, "hydra.sweep.subdir") != "."
    return Sweep(Path(folder).absolute(), tuple(command), varied, own_folders)


def _is_sweep(word: str) -> bool:
    if key_of(word).startswith("hydra"):
        return False
    try:
        return bool(_parser.parse_override(word).is_sweep_override())
    except HydraException:  # told when Hydra itself reads it
        return False


def _given(words: Sequence[str], key: str) -> str | None:
    values = [value_of(word).replace("\\${", "${") for word in words if key_of(word) == key]
    return values[-1] if values else None


def job_name(words: Iterable[str]) -> str:
    """The folder of a job, from the arguments that set it apart, in whatever order."""
    ordered = sorted(words, key=key_of)
    plain = ",".join(f"{key_of(word)}={value_of(word)}" for word in ordered)
    return safe_name(plain, identity="\n".join(ordered), longest=LONGEST_JOB) if plain else "job"


def sweep_name(words: Sequence[str], swept: Sequence[str], context: Sequence[str] = ()) -> str:
    """The folder of a sweep: ``name=`` if it is given, else what varies and a hash of all that decides the jobs."""
    named = [word for word in words if key_of(word) == "name" and word not in swept]
    if named:
        return safe_name(value_of(named[-1]), identity=value_of(named[-1]), longest=LONGEST_SWEEP)
    # not what says how jobs are started or how many
    decisive = [w for w in words if not key_of(w).startswith("hydra") or key_of(w).startswith("hydra.sweeper.params")]
    decisive.sort(key=key_of)
    first = [value_of(word) for key in _NAMED_FIRST for word in words if key_of(word) == key and word not in swept]
    shown = "_".join([*first, *(word.replace(",", "+") for word in sorted(swept, key=key_of))])
    cut = _ODD.sub("-", shown.lower()).strip("-._")[: LONGEST_SWEEP - 9].rstrip("-._") or "sweep"
    return f"{cut}_{_digest(chr(10).join([*context, *decisive]))}"


def safe_name(text: str, identity: str, longest: int) -> str:
    """A file name for ``text``, with a hash of ``identity`` if the text does not survive as it is."""
    plain = _ODD.sub("-", text.lower())
    if plain == text and len(plain) <= longest and plain.strip(".") == plain and not _RESERVED.fullmatch(plain):
        return plain
    cut = plain.strip("-._")[: longest - 9].rstrip("-._") or "job"
    return f"{cut}_{_digest(identity)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


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
    """Wait for a slot of a sweep's folder and hold it; it binds nothing unless joblib runs several jobs at once."""
    launcher = HydraConfig.get().launcher
    count = 1
    if str(launcher.get("_target_", "")).endswith("JoblibLauncher"):
        jobs = int(launcher.get("n_jobs") or 1)
        count = jobs if jobs > 0 else max(1, usable_cores() + 1 + jobs)
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


def make_slot(index: int, count: int, cfg: DictConfig, threads: str | None = None) -> Slot:
    """The slot of an index: its share of the GPUs, or of the cores where there are none or none are asked for."""
    process = psutil.Process()
    cores = list(process.cpu_affinity() or []) if hasattr(process, "cpu_affinity") else list(range(usable_cores()))
    share = max(1, len(cores) // count)
    gpus = [] if OmegaConf.select(cfg, "trainer.accelerator") == "cpu" else visible_gpus()
    devices = OmegaConf.select(cfg, "trainer.devices", default=1)
    each = devices if isinstance(devices, int) and devices > 0 else max(1, len(gpus) // count)
    variables = {"OMP_NUM_THREADS": threads or str(max(1, min(share, usable_cores() // count) // each))}
    if gpus:
        return Slot({**variables, "CUDA_VISIBLE_DEVICES": ",".join(_portion(gpus, index, each))})
    return Slot(variables, tuple(sorted(set(_portion(cores, index, share)))))


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


def _portion(things: Sequence[Thing], index: int, each: int) -> list[Thing]:
    """Things number ``index * each`` and so on, ``each`` of them, counted round in a circle.

    >>> _portion("abcd", 1, 2), _portion("ab", 2, 1)
    (['c', 'd'], ['a'])
    """
    return [things[(index * each + i) % len(things)] for i in range(min(each, len(things)))]
