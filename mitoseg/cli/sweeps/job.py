"""One job of a sweep, as any launcher calls it: skip it, take it up again, or run it; and write down what came of it.

``job.json`` in the job's folder holds its words, status (running, finished, failed or interrupted), exit code, error,
seconds over all attempts and objective. A job that fails is no exception here: the launcher goes on with the others.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mitoseg.cli.quoting import literal
from mitoseg.cli.ranks import held, job_arguments
from mitoseg.cli.sweeps.names import job_name, key_of, value_of
from mitoseg.cli.sweeps.plan import Sweep
from mitoseg.cli.sweeps.process import ended_by_sigterm, job_variables, run_process, wait_for_orphan, why
from mitoseg.cli.sweeps.results import report, write_results
from mitoseg.cli.sweeps.slots import Slot, free_slot
from mitoseg.datasets.checksums import changed_files
from mitoseg.errors import UserError
from mitoseg.storage import read_json, write_json

RECORD = "job.json"
LAST = Path("checkpoints", "last.ckpt")
log = logging.getLogger(__name__)


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
