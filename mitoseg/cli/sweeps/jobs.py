"""One job of a sweep, as any launcher calls it (skipped, resumed or run), and what the sweep writes and prints.

``job.json`` in the job's folder holds its arguments, status (running, finished, failed or interrupted), exit code,
error, seconds over all attempts and objective. A job that fails is not an exception here: the launcher goes on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mitoseg.arguments import SAVED, as_typed, key_of, literal, value_of
from mitoseg.cli.ranks import job_arguments
from mitoseg.cli.sweeps.plan import Sweep, free_slot, job_name
from mitoseg.datasets.download import changed_files
from mitoseg.errors import UserError
from mitoseg.processes import GRACE_SECONDS, attempt, ended_by_sigterm, wait_for_orphan, why
from mitoseg.storage import held, read_json, write_json, write_text
from mitoseg.tables import to_csv

log = logging.getLogger(__name__)

RECORD = "job.json"
LAST = Path("checkpoints", "last.ckpt")
Row = dict[str, Any]
_SHOWN = ("objective", "validation_jaccard_foreground", "test_jaccard_foreground")
_SCORES = ("jaccard_foreground", "jaccard_background", "jaccard_mean", "dice", "precision", "recall")
_PARTS = ("validation", "test")
_MEASURED = ("objective", *(f"{part}_{score}" for part in _PARTS for score in _SCORES))
_LISTED = 5
_SHORT = {"validation_jaccard_foreground": "validation JAC", "test_jaccard_foreground": "test JAC"}


def run_job(sweep: Sweep, cfg: DictConfig) -> float:
    """Do one job of a sweep (call it where Hydra calls the task); its objective, NaN if it failed or has none."""
    hydra = HydraConfig.get()
    keys = sweep.varied | {str(key) for key in hydra.sweeper.get("params") or {}}
    varied = [word for word in hydra.overrides.task if key_of(word) in keys]
    folder = Path(hydra.runtime.output_dir) if sweep.own_folders else sweep.folder / job_name(varied)
    words = sorted(word for word in job_arguments() if not key_of(word).startswith("hydra."))
    record: dict[str, Any] = {"status": "running", "varied": {key_of(word): value_of(word) for word in varied}}
    _report(sweep, folder.name, record)
    try:
        with held(folder / ".lock", "another sweep is running this job"), ended_by_sigterm():
            record = _done_before(folder, words) or _attempt(sweep, folder, {"words": words, **record}, cfg)
    except UserError as error:  # the folder is somebody else's: nothing is written there
        record |= {"status": "failed", "error": str(error)}
        log.error("%s: %s", folder.name, error)
    except BaseException:
        record["status"] = "interrupted"
        raise
    finally:
        _report(sweep, folder.name, record)
        write_results(sweep.folder)
    objective = record.get("objective")
    return float(objective) if objective is not None and record["status"] == "finished" else math.nan


def _done_before(folder: Path, words: Sequence[str]) -> dict[str, Any] | None:
    """The record of a job that has finished; `UserError` if the folder holds a job of other arguments or data."""
    record = read_json(folder / RECORD)
    if record and record.get("words") != words:
        theirs, ours = set(record.get("words", [])), set(words)
        change = [*(f"-{word}" for word in sorted(theirs - ours)), *(f"+{word}" for word in sorted(ours - theirs))]
        what = f"the folder holds a job of other words ({' '.join(change)})"
        raise UserError(what, str(folder), "choose another name=...")
    if record.get("status") != "finished":
        return None
    data = read_json(folder / "provenance.json").get("data") or {}
    if changed := changed_files(data):
        what = f"the data have changed since the job finished, among them {changed[0]}"
        raise UserError(what, str(folder), "choose another name=..., or put them back")
    log.info("%s: finished before", folder.name)
    return record


def _attempt(sweep: Sweep, folder: Path, record: dict[str, Any], cfg: DictConfig) -> dict[str, Any]:
    wait_for_orphan(read_json(folder / RECORD))
    name, in_worker = folder.name, sweep.pid != os.getpid()
    resumes = (folder / LAST).is_file() and (folder / SAVED).is_file()
    where = f"{'resume' if resumes else 'hydra.run.dir'}={literal(str(folder))}"
    record |= {"exit": None, "objective": None}

    def wanted() -> bool:  # a worker of joblib does not notice its launcher's death; submitit's jobs may outlive it
        alive = os.getppid() == sweep.pid and psutil.pid_exists(sweep.pid)
        return not in_worker or "SUBMITIT_EXECUTOR" in os.environ or alive

    with free_slot(sweep.folder, cfg, sweep.threads) as slot:
        log.info("%s: %s%s", name, "goes on" if resumes else "starts", f" on {slot}" if slot.variables else "")
        code = attempt(
            folder / RECORD,
            record,
            [[sys.executable, *sweep.command, *job_arguments(), where]],
            slot.variables,
            console=folder / "console.log" if in_worker else None,
            started=slot.bind,
            wanted=wanted,
        )
    if in_worker or code:
        log.info("%s: %s", name, "done" if code == 0 else f"ended, {why(code)}")
    return record


def conclude(sweep: Sweep) -> str | None:
    """Write the results, print them as a table, and give the line for jobs that failed; None if none did."""
    if not sweep.folder.is_dir():
        return None
    reports = _peek_reports(sweep)
    shutil.rmtree(_reports(sweep), ignore_errors=True)
    with contextlib.suppress(OSError):  # another call's reports lie there
        _reports(sweep).parent.rmdir()
    rows = write_results(sweep.folder)
    if rows:
        Console().print(_result_table(rows))
    print(as_typed(sweep.folder), flush=True)
    return failure_line(reports)


def _result_table(rows: Sequence[Row]) -> Table:
    """Jobs and their scores; where seeds vary, settings with the mean and spread of their scores."""
    summary = summarise(rows)
    scores = [s for s in _SHOWN if any(row.get(s) is not None for row in rows)]
    if "validation_jaccard_foreground" in scores:
        scores.remove("objective")
    if not summary:
        varied = _varied_keys(rows) or ["job"]
        table = Table(*varied, "status", *(_SHORT.get(s, s) for s in scores))
        for row in rows:
            values = (_short(row[key]) for key in varied)
            table.add_row(*values, row["status"], *(_number(row.get(s)) for s in scores))
        return table
    varied = [key for key in summary[0] if not key.endswith(("_mean", "_sd")) and key != "n"]
    table = Table(*varied, "seeds", *(f"{_SHORT.get(s, s)}, mean ± sd" for s in scores))
    for group in summary:
        spreads = (f"{_number(group.get(f'{s}_mean'))} ± {_number(group.get(f'{s}_sd'))}" for s in scores)
        table.add_row(*(_short(group[key]) for key in varied), str(group["n"]), *spreads)
    return table


def _short(value: object) -> str:
    """A value that varies, numbers with few digits."""
    text = "-" if value is None else escape(str(value))
    with contextlib.suppress(ValueError):
        return f"{float(text):.4g}" if len(text) > 8 else text
    return text


def _number(value: Any) -> str:  # noqa: ANN401 (a cell of a table)
    return "-" if value is None else f"{value:.4g}"


@contextlib.contextmanager
def jobs_end_first(sweep: Sweep) -> Iterator[None]:
    """Let an interrupt reach joblib's workers, and wait until their jobs ended; a second one does not wait.

    Otherwise joblib kills its workers, and all below them, before ``last.ckpt`` is written.
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
    if "joblib" not in sys.modules:
        return
    for worker in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("loky" in word for word in worker.cmdline()):
                worker.terminate()
    deadline = time.monotonic() + GRACE_SECONDS + 5
    while time.monotonic() < deadline and any(found.get("status") == "running" for found in _peek_reports(sweep)):
        time.sleep(0.2)


def _reports(sweep: Sweep) -> Path:
    return sweep.folder / ".jobs" / sweep.invocation


def _report(sweep: Sweep, job: str, record: Mapping[str, Any]) -> None:
    """File how a job stands, for the process that started the sweep."""
    _reports(sweep).mkdir(parents=True, exist_ok=True)
    write_json(_reports(sweep) / f"{job}.json", {"job": job, **record})


def _peek_reports(sweep: Sweep) -> list[dict[str, Any]]:
    return [read_json(path) for path in sorted(_reports(sweep).glob("*.json"))]


def write_results(folder: Path) -> list[Row]:
    """Write ``results.csv``, whose rows it returns, and ``summary.csv`` where seeds vary, from a sweep's jobs."""
    with FileLock(folder / ".results.lock"):
        jobs = [(path.parent, record) for path in sorted(folder.rglob("job.json")) if (record := read_json(path))]
        keys = _union(record.get("varied", {}) for _, record in jobs)
        rows = [_row(job.relative_to(folder).as_posix(), job, record, keys) for job, record in jobs]
        write_text(folder / "results.csv", _table(rows))
        if summary := summarise(rows):
            write_text(folder / "summary.csv", _table(summary))
    return rows


def _row(name: str, job: Path, record: Mapping[str, Any], keys: Sequence[str]) -> Row:
    metrics = read_json(job / "metrics.json")
    scores = {f"{part}_{score}": metrics[part].get(score) for part in _PARTS if part in metrics for score in _SCORES}
    return {
        "job": name,
        "status": record.get("status"),
        **{key: record.get("varied", {}).get(key) for key in keys},
        "objective": record.get("objective"),
        **scores,
        "seconds": record.get("seconds"),
        "error": record.get("error"),
    }


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Mean and sample standard deviation of each score over the seeds of finished jobs that agree in all else.

    No rows if seeds do not vary; the deviation of one seed is empty.
    """
    if len({row.get("seed") for row in rows}) < 2:
        return []
    keys = [key for key in _varied_keys(rows) if key != "seed"]
    groups: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
    for row in rows:
        if row["status"] == "finished":
            groups.setdefault(tuple((key, row.get(key)) for key in keys), []).append(row)
    found = [{**dict(setting), "n": len(members)} for setting, members in groups.items()]
    for row, members in zip(found, groups.values(), strict=True):
        for name in _MEASURED:
            values = [float(one[name]) for one in members if one.get(name) is not None]
            if values:
                row[f"{name}_mean"] = statistics.fmean(values)
                row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return found


def _varied_keys(rows: Iterable[Row]) -> list[str]:
    """The columns that say what sets the jobs apart."""
    return [key for key in _union(rows) if key not in {"job", "status", "seconds", "error", *_MEASURED}]


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _table(rows: Sequence[Row]) -> str:
    columns = sorted(_union(rows), key=lambda name: name == "error")
    return to_csv(columns, ([row.get(column) for column in columns] for row in rows))


def failure_line(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """The line that names the jobs of a sweep that did not finish; None if all did."""
    failed = [found for found in reports if found.get("status") != "finished"]
    if not failed:
        return None
    named = [f"{found.get('job')} ({found.get('error') or found.get('status')})" for found in failed[:_LISTED]]
    more = [f"and {len(failed) - _LISTED} more"] if len(failed) > _LISTED else []
    rest = f"the same command runs {'it' if len(failed) == 1 else 'them'} again"
    return f"{len(failed)} of {len(reports)} jobs failed: {', '.join([*named, *more])}; {rest}"
