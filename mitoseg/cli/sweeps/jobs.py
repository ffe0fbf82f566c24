"""A job's process: in a group of its own, clean of its parent's surroundings, gone when its parent is.

    sweep ──stdin──> job ──> further ranks, loaders' workers          (one process group)

The job holds the reading end of a pipe whose writing end is the sweep's. However the sweep dies, the pipe closes; the
job then ends itself as if asked to (SIGTERM), so training writes ``last.ckpt``. The other way round, when the job's
first process ends, the sweep kills what is left of its group, so no rank waits for a partner that is gone.

One job of a sweep, as any launcher calls it: skip it, take it up again, or run it; and write down what came of it.

``job.json`` in the job's folder holds its words, status (running, finished, failed or interrupted), exit code, error,
seconds over all attempts and objective. A job that fails is no exception here: the launcher goes on with the others.

The end of a sweep in the process that started it: wait for stragglers, print the table, say what failed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import psutil
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mitoseg.cli.console import shown
from mitoseg.cli.quoting import literal
from mitoseg.cli.ranks import job_arguments
from mitoseg.cli.sweeps.plan import Slot, Sweep, free_slot, job_name, key_of, value_of
from mitoseg.cli.sweeps.results import (
    Row,
    collect_reports,
    failure_line,
    peek_reports,
    report,
    summarise,
    varied_keys,
    write_results,
)
from mitoseg.datasets.download import changed_files
from mitoseg.errors import UserError
from mitoseg.storage import held, read_json, write_json

log = logging.getLogger(__name__)

GRACE_SECONDS = 60.0
"""How long a job that is asked to end may write its last checkpoint."""

PARENT_PIPE = "MITOSEG_PARENT_PIPE"

OUTCOME = "MITOSEG_JOB_OUTCOME"

_POLL_SECONDS = 1.0

_NOT_FOR_JOBS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "MITOSEG_RUN_DIR", PARENT_PIPE, OUTCOME),
)

_FAMILIES_NOT_FOR_JOBS = ("MASTER_", "SLURM_", "SUBMITIT_", "TORCHELASTIC_")


def job_variables(before: Mapping[str, str], outcome: Path, more: Mapping[str, str]) -> dict[str, str]:
    """The environment of a job.

    Without the variables of SLURM, except the job's number, Lightning starts the ranks of the job itself; with them it
    would take the job for one of several tasks and wait for the others.

    Args:
        before: The environment of the sweep.
        outcome: Where the job shall write how it ended.
        more: Variables to set on top.
    """
    kept = {
        name: value
        for name, value in before.items()
        if name not in _NOT_FOR_JOBS and (not name.startswith(_FAMILIES_NOT_FOR_JOBS) or name == "SLURM_JOB_ID")
    }
    return {**kept, **more, PARENT_PIPE: "1", OUTCOME: str(outcome)}


def run_process(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    console: Path | None = None,
    started: Callable[[psutil.Process], None] = lambda process: None,
    wanted: Callable[[], bool] = lambda: True,
) -> int:
    """Run a job to its end.

    Args:
        command: Program and arguments.
        environment: All of its variables.
        console: File to append its output to; None leaves it the terminal.
        started: Told of the process as soon as it runs.
        wanted: Asked every second; False ends the job.

    Returns:
        Its exit code, negative for a signal.

    Raises:
        BaseException: Whatever interrupts the waiting, once the job has ended.
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
            _prefer_as_victim(process.pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                started(psutil.Process(process.pid))
            while wanted():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(_POLL_SECONDS)
            return stop(process)
        except BaseException:
            stop(process)
            raise
        finally:
            kill_group(process.pid)


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask a job to end, wait, and kill its group if it does not; another interrupt kills at once.

    Only its first process is asked: it passes the signal on to its ranks, while loaders' workers that died of it would
    make the last checkpoint fail.
    """
    process.terminate()
    try:
        return process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        return -int(getattr(signal, "SIGKILL", signal.SIGTERM))
    finally:
        kill_group(process.pid)


def kill_group(pid: int) -> None:
    """Kill a job's first process and all that it started, as far as they are still there."""
    if sys.platform == "win32":
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(pid).children(recursive=True)
            for member in [*family, psutil.Process(pid)]:
                with contextlib.suppress(psutil.Error):
                    member.kill()
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where only zombies are left
            os.killpg(pid, signal.SIGKILL)


def why(code: int | None) -> str:
    """An exit code in words.

    >>> why(-9)
    'killed by SIGKILL, out of memory perhaps'
    """
    if code is None:
        return "interrupted"
    if code in {130, 143}:  # how a shell tells of a signal
        code = 128 - code
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}, out of memory perhaps" if name == "SIGKILL" else f"killed by {name}"


def wait_for_orphan(record: Mapping[str, Any]) -> None:
    """Wait for a process that a killed sweep has left behind: it is writing its last checkpoint."""
    left = record.get("process")
    if not left:
        return
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(left["pid"])
        if process.create_time() == left["born"]:
            process.wait(GRACE_SECONDS + 10)


def _prefer_as_victim(pid: int) -> None:
    """When memory runs out, let Linux kill the job rather than the sweep."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("500", encoding="ascii")


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process through its ``finally`` blocks, with exit code 143, where nobody else heeds it."""
    first = threading.current_thread() is threading.main_thread()
    if not first or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


class Outcome:
    """The job's side: where it tells how it ended; and it ends when its parent does.

    In a process that is no job of a sweep nothing happens. Further ranks do not see the variables.
    """

    def __init__(self) -> None:
        path = os.environ.pop(OUTCOME, None)
        self._path = Path(path) if path else None
        if os.environ.pop(PARENT_PIPE, None) is not None:
            threading.Thread(target=_end_with_parent, daemon=True, name="parent-watch").start()

    def tell(self, **facts: object) -> None:
        """Write down facts such as ``objective=0.8`` or ``error="..."``."""
        if self._path is not None:
            write_json(self._path, facts)


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    kill_group(os.getpid())


RECORD = "job.json"

LAST = Path("checkpoints", "last.ckpt")


@dataclass(frozen=True)
class Job:
    """A job: its folder, what follows the program's name, and the words that vary, by key."""

    folder: Path
    arguments: list[str]
    varied: dict[str, str]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def words(self) -> list[str]:
        """What the job does, as compared with what an earlier one in its folder did."""
        return sorted(word for word in self.arguments if not key_of(word).startswith("hydra."))


def run_job(sweep: Sweep, cfg: DictConfig) -> float:
    """Do one job of a sweep (call it where Hydra calls the task).

    Returns:
        The job's objective, NaN if it failed or has none.

    Raises:
        BaseException: Only what interrupts the sweep.
    """
    job = _describe(sweep)
    record: dict[str, Any] = {"status": "running", "varied": job.varied}
    report(sweep, job.name, record)
    try:
        with held(job.folder / ".lock", "another sweep is running this job"), ended_by_sigterm():
            record = _done_before(job) or _attempt(sweep, job, cfg)
    except UserError as error:  # the folder is somebody else's: nothing is written there
        record |= {"status": "failed", "error": str(error)}
        log.error("%s: %s", job.name, error)
    except BaseException:
        record["status"] = "interrupted"
        raise
    finally:
        report(sweep, job.name, record)
        write_results(sweep.folder)
    objective = record.get("objective")
    return float(objective) if objective is not None and record["status"] == "finished" else math.nan


def _describe(sweep: Sweep) -> Job:
    hydra = HydraConfig.get()
    keys = sweep.varied | {str(key) for key in hydra.sweeper.get("params") or {}}
    varied = [word for word in hydra.overrides.task if key_of(word) in keys]
    folder = Path(hydra.runtime.output_dir) if sweep.own_folders else sweep.folder / job_name(varied)
    return Job(folder, job_arguments(), {key_of(word): value_of(word) for word in varied})


def _done_before(job: Job) -> dict[str, Any] | None:
    """The record of a job that has finished, None if it is to be run.

    Raises:
        UserError: The folder holds a job of other words.
    """
    record = read_json(job.folder / RECORD)
    if record and record.get("words") != job.words:
        theirs, ours = set(record.get("words", [])), set(job.words)
        change = " ".join(
            [*(f"-{word}" for word in sorted(theirs - ours)), *(f"+{word}" for word in sorted(ours - theirs))]
        )
        raise UserError(
            f"the folder holds a job of other words ({change})", str(job.folder), "choose another name=..."
        )
    if record.get("status") != "finished":
        return None
    data = read_json(job.folder / "provenance.json").get("data") or {}
    if changed := changed_files(data):
        what = f"the data have changed since the job finished, among them {changed[0]}"
        raise UserError(what, str(job.folder), "choose another name=..., or put them back")
    log.info("%s: finished before", job.name)
    return record


def _attempt(sweep: Sweep, job: Job, cfg: DictConfig) -> dict[str, Any]:
    before = read_json(job.folder / RECORD)
    wait_for_orphan(before)
    outcome = job.folder / ".outcome.json"
    outcome.unlink(missing_ok=True)
    record = {"words": job.words, "varied": job.varied, "status": "running", "seconds": before.get("seconds", 0.0)}
    start = time.time()
    code: int | None = None
    try:
        with free_slot(sweep.folder, cfg, sweep.threads) as slot:
            start = time.time()
            code = _run(sweep, job, slot, record, outcome)
    finally:  # also when the sweep is interrupted
        told = read_json(outcome)
        outcome.unlink(missing_ok=True)
        record.pop("process", None)
        record |= _ending(code, told)
        record["seconds"] = round(record["seconds"] + time.time() - start, 1)
        write_json(job.folder / RECORD, record)
    return record


def _run(sweep: Sweep, job: Job, slot: Slot, record: dict[str, Any], outcome: Path) -> int:
    """Start the job's process in its folder, from ``last.ckpt`` if there is one, and wait."""
    resumes = (job.folder / LAST).is_file() and (job.folder / ".hydra" / "overrides.yaml").is_file()
    where = f"{'resume' if resumes else 'hydra.run.dir'}={literal(str(job.folder))}"
    in_worker = sweep.pid != os.getpid()

    def started(process: psutil.Process) -> None:
        slot.bind(process)
        record["process"] = {"pid": process.pid, "born": process.create_time()}
        write_json(job.folder / RECORD, record)

    log.info("%s: %s%s", job.name, "goes on" if resumes else "starts", f" on {slot}" if slot.variables else "")
    code = run_process(
        [sys.executable, *sweep.command, *job.arguments, where],
        job_variables(os.environ, outcome, slot.variables),
        console=job.folder / "console.log" if in_worker else None,
        started=started,
        wanted=lambda: not in_worker or _launcher_lives(sweep.pid),
    )
    if in_worker or code:
        log.info("%s: %s", job.name, "done" if code == 0 else f"ended, {why(code)}")
    return code


def _ending(code: int | None, told: Mapping[str, Any]) -> dict[str, Any]:
    """Status, exit code, error and objective of a job; ``code`` is None if it ended because the sweep does."""
    if code == 0:
        return {"status": "finished", "exit": 0, "error": None, "objective": told.get("objective")}
    status = "interrupted" if code is None else "failed"
    return {"status": status, "exit": code, "error": told.get("error") or why(code), "objective": None}


def _launcher_lives(pid: int) -> bool:
    """Whether the process that started the sweep is still there; a worker of joblib does not notice its death.

    Jobs that submitit has submitted are meant to outlive it.
    """
    return "SUBMITIT_EXECUTOR" in os.environ or (os.getppid() == pid and psutil.pid_exists(pid))


_SHOWN = ("objective", "validation_jaccard_foreground", "test_jaccard_foreground")

_SHORT = {"validation_jaccard_foreground": "validation JAC", "test_jaccard_foreground": "test JAC"}


def conclude(sweep: Sweep) -> str | None:
    """Write the results, print them as a table, and give the line for jobs that failed; None if none did."""
    if not sweep.folder.is_dir():
        return None
    reports = collect_reports(sweep)
    rows = write_results(sweep.folder)
    if rows:
        Console().print(result_table(rows))
    print(shown(sweep.folder), flush=True)
    return failure_line(reports)


def result_table(rows: Sequence[Row]) -> Table:
    """Jobs and their scores; where seeds vary, settings with the mean and spread of their scores."""
    summary = summarise(rows)
    shown = [s for s in _SHOWN if any(row.get(s) is not None for row in rows)]
    if "validation_jaccard_foreground" in shown:
        shown.remove("objective")
    if not summary:
        varied = varied_keys(rows) or ["job"]
        table = Table(*varied, "status", *(_SHORT.get(s, s) for s in shown))
        for row in rows:
            values = (_short(row[key]) for key in varied)
            table.add_row(*values, row["status"], *(_number(row.get(s)) for s in shown))
        return table
    measured = [key for key in summary[0] if key.endswith(("_mean", "_sd")) or key == "n"]
    varied = [key for key in summary[0] if key not in measured]
    table = Table(*varied, "seeds", *(f"{_SHORT.get(s, s)}, mean ± sd" for s in shown))
    for group in summary:
        spreads = (f"{_number(group.get(f'{s}_mean'))} ± {_number(group.get(f'{s}_sd'))}" for s in shown)
        table.add_row(*(_short(group[key]) for key in varied), str(group["n"]), *spreads)
    return table


def _short(value: object) -> str:
    """A value that varies, numbers with few digits.

    >>> _short("0.0013648156854197653"), _short("patch_cnn"), _short(None)
    ('0.001365', 'patch_cnn', '-')
    """
    text = "-" if value is None else escape(str(value))
    with contextlib.suppress(ValueError):
        return f"{float(text):.4g}" if len(text) > 8 else text
    return text


def _number(value: Any) -> str:  # noqa: ANN401 (a cell of a table)
    return "-" if value is None else f"{value:.4g}"


@contextlib.contextmanager
def jobs_end_first(sweep: Sweep) -> Iterator[None]:
    """While a sweep runs, let an interrupt (SIGINT, SIGTERM) reach joblib's workers, and wait until their jobs ended.

    Otherwise joblib kills its workers, and all below them, before ``last.ckpt`` is written. A second interrupt does
    not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not seen:
            seen.append(number)
            _end_workers(sweep)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_workers(sweep: Sweep) -> None:
    """Ask the workers to end their jobs, and wait until all have; a job of this very process ends afterwards."""
    if "joblib" not in sys.modules:
        return
    for worker in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("loky" in word for word in worker.cmdline()):
                worker.terminate()
    deadline = time.monotonic() + GRACE_SECONDS + 5
    while time.monotonic() < deadline and _any_running(peek_reports(sweep)):
        time.sleep(0.2)


def _any_running(reports: Sequence[Mapping[str, Any]]) -> bool:
    return any(found.get("status") == "running" for found in reports)
