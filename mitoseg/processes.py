"""Run jobs as processes: each in its own process group and a clean environment, and ending when its parent does.

    sweep ──stdin──> job ──> further ranks, data loader workers       (one process group)

The job holds the read end of a pipe and the sweep the write end. However the sweep dies, the pipe closes, and the job
then ends as on SIGTERM, so training writes ``last.ckpt``. Conversely, when the job's first process ends, the sweep
kills the rest of its group, so that no rank waits for one that is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil

from mitoseg.storage import read_json, write_json

GRACE_SECONDS = 60.0
"""Seconds that a terminated job has to write its last checkpoint."""
_POLL_SECONDS = 1.0
_PARENT_PIPE = "MITOSEG_PARENT_PIPE"
_OUTCOME = "MITOSEG_JOB_OUTCOME"
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_NOT_FOR_JOBS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "MITOSEG_RUN_DIR", _PARENT_PIPE, _OUTCOME),
)
_FAMILIES_NOT_FOR_JOBS = ("MASTER_", "SLURM_", "SUBMITIT_", "TORCHELASTIC_")


def is_main_process() -> bool:
    """Whether this is rank 0, the only one that prints and writes."""
    return all(os.environ.get(name) in {None, "", "0"} for name in _RANK_VARIABLES)


def attempt(
    path: Path,
    record: dict[str, Any],
    commands: Iterable[Sequence[str]],
    variables: Mapping[str, str] | None = None,
    *,
    started: Callable[[psutil.Process], None] = lambda process: None,
    **options: Any,  # noqa: ANN401 (of `run_process`)
) -> int | None:
    """Run the processes of a job, one after the other, until one fails; the exit code of the last.

    ``record`` gets status, error and seconds over all attempts, exit code and objective if it has such keys, and while
    a process runs, which it is. It is written to ``path``, also if the waiting is interrupted.
    """
    outcome, start, code = path.with_name(".outcome.json"), time.time(), None
    seconds = record["seconds"] = read_json(path).get("seconds", 0.0)

    def note(process: psutil.Process) -> None:
        started(process)
        record["process"] = {"pid": process.pid, "born": process.create_time()}
        write_json(path, record)

    try:
        for command in commands:
            outcome.unlink(missing_ok=True)
            code = None
            code = run_process(command, job_variables(os.environ, outcome, variables or {}), started=note, **options)
            if code:
                break
    finally:
        reported = read_json(outcome)
        outcome.unlink(missing_ok=True)
        record.pop("process", None)
        record["status"] = "finished" if code == 0 else "interrupted" if code is None else "failed"
        found = {"exit": code, "objective": reported.get("objective") if code == 0 else None}
        record |= {key: value for key, value in found.items() if key in record}
        record["error"] = None if code == 0 else reported.get("error") or why(code)
        record["seconds"] = round(seconds + time.time() - start, 1)
        write_json(path, record)
    return code


def job_variables(before: Mapping[str, str], outcome: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job that reports to ``outcome``.

    SLURM's variables are removed, except the job's number, so that Lightning starts the ranks itself; with them it
    would take the job for one of several tasks and wait for the others.
    """
    kept = {
        name: value
        for name, value in before.items()
        if name not in _NOT_FOR_JOBS and (not name.startswith(_FAMILIES_NOT_FOR_JOBS) or name == "SLURM_JOB_ID")
    }
    return {**kept, **more, _PARENT_PIPE: "1", _OUTCOME: str(outcome)}


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    console: Path | None = None,
    started: Callable[[psutil.Process], None] = lambda process: None,
    wanted: Callable[[], bool] = lambda: True,
) -> int:
    """Run a job to its end, also when the waiting is interrupted; its exit code, negative for a signal.

    ``console`` gets its output, else the terminal; it is ended once ``wanted``, asked every second, is False.
    """
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(console.open("ab")) if console else None
        error = subprocess.STDOUT if output else None
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            options = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        process = stack.enter_context(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=error, **options)
        )
        try:
            with contextlib.suppress(OSError):  # if memory runs out, Linux should kill the job, not the sweep
                Path(f"/proc/{process.pid}/oom_score_adj").write_text("500", encoding="ascii")
            with contextlib.suppress(psutil.NoSuchProcess):
                started(psutil.Process(process.pid))
            while wanted():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL_SECONDS)
            return _stop(process)
        except BaseException:
            _stop(process)
            raise
        finally:
            _kill_group(process.pid)


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Terminate a job, wait, and kill its group if it does not end; another interrupt kills at once.

    Only its first process gets the signal and forwards it to its ranks: if data loader workers died of it, the last
    checkpoint would fail.
    """
    process.terminate()
    try:
        return process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        return -int(getattr(signal, "SIGKILL", signal.SIGTERM))
    finally:
        _kill_group(process.pid)


def _kill_group(pid: int) -> None:
    """Kill a job's first process and everything it started, as far as they still run."""
    if sys.platform == "win32":
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(pid).children(recursive=True)
            for member in [*family, psutil.Process(pid)]:
                with contextlib.suppress(psutil.Error):
                    member.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses if only zombies are left
            os.killpg(pid, signal.SIGKILL)


def why(code: int | None) -> str:
    """Describe an exit code."""
    if code is None:
        return "interrupted"
    if code in {130, 143}:  # how a shell reports a signal
        code = 128 - code
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}, out of memory perhaps" if name == "SIGKILL" else f"killed by {name}"


def wait_for_orphan(record: Mapping[str, Any]) -> None:
    """Wait for a process left behind by a killed sweep, which is writing its last checkpoint."""
    left = record.get("process")
    if left:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(left["pid"])
            if process.create_time() == left["born"]:
                process.wait(GRACE_SECONDS + 10)


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process through its ``finally`` blocks, with exit code 143, unless already handled."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    first = threading.current_thread() is threading.main_thread()
    if not first or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def follow_parent() -> Callable[..., None]:
    """In a job, end when the sweep does, and return a function to report ``objective=0.8`` or ``error="..."`` with."""
    path = os.environ.pop(_OUTCOME, None)
    if os.environ.pop(_PARENT_PIPE, None) is not None:
        threading.Thread(target=_end_with_parent, daemon=True, name="parent-watch").start()

    def report(**facts: object) -> None:
        if path:
            write_json(Path(path), facts)

    return report


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    _kill_group(os.getpid())
