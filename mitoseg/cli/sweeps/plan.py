"""What a command line with ``-m`` or ``seeds=N`` asks for: the sweep's folder and the keys that vary in it.

python train.py -m network=patch_cnn,context_cnn seed=1,2,3

outputs/sweeps/network=patch_cnn+context_cnn_seed=1+2+3_5d1c09f2/     the sweep, the same for the same words
    network=patch_cnn,seed=1/                                         a job, a run's folder like any other
    ...
    results.csv, summary.csv
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from mitoseg.cli.quoting import literal, unquote
from mitoseg.cli.sweeps.names import key_of, sweep_name, value_of
from mitoseg.cli.sweeps.slots import visible_gpus
from mitoseg.errors import UserError

ROOT = Path("outputs", "sweeps")
_parser = OverridesParser.create()


@dataclass(frozen=True)
class Sweep:
    """What every job of a sweep knows of it; pickled into the workers of a launcher.

    Attributes:
        folder: Absolute folder of the sweep.
        command: Start of a job's command line after the interpreter: the program, and options that choose the config.
        varied: Keys with several values on the command line.
        own_folders: Whether the user names the jobs' folders (``hydra.sweep.subdir``).
        threads: ``OMP_NUM_THREADS`` as the user has set it; joblib sets its own in its workers.
        invocation: Name of this call of the sweep, which reports are filed under.
        pid: The process that was started by the user.
    """

    folder: Path
    command: tuple[str, ...]
    varied: frozenset[str]
    own_folders: bool = False
    threads: str | None = field(default_factory=lambda: os.environ.get("OMP_NUM_THREADS"))
    invocation: str = field(default_factory=lambda: secrets.token_hex(4))
    pid: int = field(default_factory=os.getpid)


def find_sweep(words: Sequence[str], options: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Words and options with ``seeds=N`` spelled out, and whether they are to run a sweep.

    Raises:
        UserError: ``seeds`` is no such number.

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
    """Turn ``seeds=3`` into ``seed=1,2,3``, counted from the given seed if there is one.

    Returns:
        The words, and whether they are a sweep for that reason.

    Raises:
        UserError: ``seeds`` or ``seed`` is no such number, or both ask for several runs.

    >>> expand_seeds(["epochs=2", "seeds=3", "seed=5"])
    (['epochs=2', 'seed=5,6,7'], True)
    """
    given = [value_of(word) for word in words if key_of(word) == "seeds"]
    if not given:
        return list(words), False
    if not re.fullmatch(r"[1-9]\d*", given[-1]):
        raise UserError("seeds counts runs, it cannot be", given[-1], "give a whole number from 1, such as seeds=3")
    rest = [word for word in words if key_of(word) != "seeds"]
    if given[-1] == "1":
        return rest, False
    first = ([value_of(word) for word in rest if key_of(word) == "seed"] or ["1"])[-1]
    if not re.fullmatch(r"\d+", first):
        raise UserError("seeds= counts up from one seed", f"seed={first}", "give one seed, or leave out seeds=")
    counted = ",".join(str(int(first) + i) for i in range(int(given[-1])))
    return [*(word for word in rest if key_of(word) != "seed"), f"seed={counted}"], True


def pin_sweep(words: Sequence[str], context: Sequence[str] = ()) -> list[str]:
    """Add where the sweep and its jobs lie, unless the user has said so.

    Hydra would work out ``hydra.sweep.dir`` anew for each job, so it must not depend on the time or on what varies.

    Raises:
        UserError: The user's folder is an interpolation.
    """
    folder = _given(words, "hydra.sweep.dir")
    if folder is not None and "${" in folder:
        raise UserError("one folder for all jobs is needed, hydra.sweep.dir", folder, "leave out the ${...}")
    pinned = {"hydra.output_subdir": "null"}  # a job writes its own
    launcher = _given(words, "hydra/launcher")
    pinned |= {key: value for key, value in _launcher_defaults(launcher).items() if _given(words, key) is None}
    if folder is None:
        pinned["hydra.sweep.dir"] = literal((ROOT / sweep_name(words, swept(words), context)).as_posix())
    if _given(words, "hydra.sweep.subdir") is None:
        pinned["hydra.sweep.subdir"] = "."
    kept = [word for word in words if key_of(word) != "hydra.output_subdir"]
    return [*kept, *(f"{key}={value}" for key, value in pinned.items())]


def _launcher_defaults(launcher: str | None) -> dict[str, str]:
    """What suits long jobs better than the plugins' own defaults."""
    if launcher == "joblib":
        count = max(len(visible_gpus()), 2)  # a job on each GPU; batches would keep jobs from free slots
        return {"hydra.launcher.n_jobs": str(count), "hydra.launcher.batch_size": "1"}
    if launcher not in {"submitit_local", "submitit_slurm", "slurm"}:
        return {}
    # a new name each time: submitit unpickles whatever lies there for one of its jobs
    folder = {"hydra.launcher.submitit_folder": f"${{hydra.sweep.dir}}/.submitit/{secrets.token_hex(8)}/%j"}
    return folder | ({"hydra.launcher.timeout_min": "10080"} if launcher == "submitit_local" else {})


def plan_sweep(pinned: Sequence[str], command: Sequence[str]) -> Sweep:
    """The sweep that words of `pin_sweep` describe.

    Args:
        pinned: The words.
        command: Program and options, as `Sweep.command`.
    """
    folder = _given(pinned, "hydra.sweep.dir") or str(ROOT)
    varied = frozenset(key_of(word) for word in swept(pinned))
    own_folders = _given(pinned, "hydra.sweep.subdir") != "."
    return Sweep(Path(folder).absolute(), tuple(command), varied, own_folders)


def swept(words: Sequence[str]) -> list[str]:
    """The words that hold several values.

    >>> swept(["seed=1,2", "epochs=3", "network=choice(a,b)", "optimizer.lr=interval(0.1,1)"])
    ['seed=1,2', 'network=choice(a,b)', 'optimizer.lr=interval(0.1,1)']
    """
    return [word for word in words if _is_sweep(word)]


def _is_sweep(word: str) -> bool:
    if key_of(word).startswith("hydra"):
        return False
    try:
        return bool(_parser.parse_override(word).is_sweep_override())
    except HydraException:  # told when Hydra itself reads it
        return False


def _given(words: Sequence[str], key: str) -> str | None:
    values = [unquote(word.partition("=")[2]).replace("\\${", "${") for word in words if key_of(word) == key]
    return values[-1] if values else None
