"""Further processes of one run, which Lightning starts with ``sys.argv``, and the folder that they share.

Inside a job ``sys.argv`` is therefore the command of this one job (no sweep, everything quoted), and the folder of
rank 0 travels in an environment variable. When a job ends, its traces go: otherwise the next job of a sweep would
take itself for a rank that somebody else has started and wait for ever.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from subprocess import Popen

import psutil
from hydra.core.hydra_config import HydraConfig

from mitoseg.arguments import key_of, literal, requote_override, value_of
from mitoseg.processes import is_main_process

RUN_DIR = "MITOSEG_RUN_DIR"
_LEFT_BY_A_JOB = (
    *("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "OMP_NUM_THREADS", RUN_DIR),
)
_OF_THE_SWEEP = (
    *("hydra.mode", "hydra.run.", "hydra.output_subdir"),
    *("hydra.sweep", "hydra.launcher", "hydra/sweeper", "hydra/launcher"),
)


def outside_job() -> str | None:
    """A name that ranks started by somebody else (``srun``, ``torchrun``) share; None where there are none.

    A job of SLURM that is queued again keeps its number. Without ``--rdzv-id`` torchrun has no name for its job; the
    ranks of one machine then share the time at which their torchrun started.
    """
    slurm = os.environ.get("SLURM_JOB_ID")
    if slurm and "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        step = os.environ.get("SLURM_STEP_ID", "0")
        return slurm if step == "0" else f"{slurm}_{step}"
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None or int(os.environ.get("WORLD_SIZE", "1")) < 2 or RUN_DIR in os.environ:
        return None
    if run_id != "none":
        return re.sub(r"[^\w.-]+", "-", run_id)
    born = datetime.fromtimestamp(psutil.Process(os.getppid()).create_time())
    return f"{born:%Y-%m-%d_%H-%M-%S}_{os.environ.get('MASTER_PORT', '0')}"


def pin_common_folder(overrides: Sequence[str], command: str) -> list[str]:
    """Give ranks that were started from outside one folder, and ``last.ckpt`` in it if their job was here before."""
    words = list(overrides)
    given = [value_of(word) for word in words if word.startswith("hydra.run.dir=")]
    folder = Path(given[-1] if given else f"outputs/{command}/job_{outside_job()}")
    if not given:
        words.append(f"hydra.run.dir={literal(folder.as_posix())}")
    if (folder / "checkpoints" / "last.ckpt").is_file() and "resume" not in map(key_of, words):
        words.append(f"resume={literal(folder.as_posix())}")
    return words if is_main_process() else [*words, "hydra.output_subdir=null"]


def job_arguments() -> list[str]:
    """What follows the command's name to run this very job alone, as one run (call it inside a job)."""
    given = HydraConfig.get().overrides
    ours = [word for word in given.hydra if not word.startswith(_OF_THE_SWEEP)]
    return [*map(requote_override, given.task), *ours, "hydra.mode=RUN"]


def program(run: Callable[..., object]) -> list[str]:
    """The start of the command of further ranks: a file that Python can run, and the subcommand.

    The console script is not a Python file on Windows, and a sweep's worker has an ``sys.argv`` of its own.
    """
    package, _, name = run.__module__.rpartition(".")
    if package in {"mitoseg.workflows", "mitoseg.viewers"}:
        return [str(Path(__file__).parents[1] / "__main__.py"), name]
    return [os.path.abspath(sys.argv[0])]


@contextmanager
def job_environment(argv: Sequence[str], folder: Path) -> Iterator[None]:
    """Run one job, whose command is ``argv``, so that Lightning can relaunch it; leave the process as it was."""
    main = sys.modules["__main__"]
    argv_before, spec_before = sys.argv, main.__spec__
    environment_before = {name: os.environ.get(name) for name in _LEFT_BY_A_JOB}
    sys.argv = list(argv)
    if len(argv) > 1 and argv[0].endswith("__main__.py"):
        main.__spec__ = None  # a worker of joblib would be started again by its own module's name
    if is_main_process():
        os.environ[RUN_DIR] = str(folder)
    try:
        yield
    except BaseException:
        _kill_ranks()
        raise
    finally:
        if "torch" in sys.modules:
            import torch.distributed as dist

            if dist.is_available() and dist.is_initialized():  # so that the next job can form its own group
                dist.destroy_process_group()
        sys.argv, main.__spec__ = argv_before, spec_before
        for name, value in environment_before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _kill_ranks() -> None:
    """Kill the further ranks of a job that failed: they wait in a collective for a partner that is gone.

    Lightning's observer thread knows them. It loses its list first, since it ends this process too when a child dies.
    """
    for thread in threading.enumerate():
        children: list[Popen[bytes]] = getattr(thread, "_child_processes", [])
        started = list(children)
        children.clear()
        for child in started:
            child.kill()
            child.wait()
