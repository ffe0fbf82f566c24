"""Sweeps: what a command line with ``-m`` or ``seeds=N`` asks for, its jobs, and the results that they leave.

outputs/sweeps/network=patch_cnn+context_cnn_seed=1+2+3_5d1c09f2/     the same for the same arguments
    network=patch_cnn,seed=1/                                         a job, a run's folder like any other
        job.json    its arguments, status, exit code, error, seconds over all attempts and objective
    results.csv, summary.csv

Names are the same on every machine. Where a character is replaced, or a name is cut, or only capitals would tell two
names apart, eight digits of a hash follow. A job that fails is no exception here: the launcher goes on.

Where joblib runs several jobs at once, a job gets a slot: its share of the GPUs, or of the cores. A slot is a lock
file in the sweep's folder, so it is free again however its job ended.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
from filelock import FileLock, Timeout
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mitoseg.arguments import SAVED, as_typed, key_of, literal, value_of
from mitoseg.cli.ranks import job_arguments
from mitoseg.control_groups import usable_cores
from mitoseg.errors import UserError, is_number
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


def _read_record(path: Path) -> dict[str, Any]:
    """A job's record; empty if there is none or it is damaged."""
    record = read_json(path)
    process = record.get("process") or {"pid": 0, "born": 0.0}
    sound = isinstance(record.get("varied", {}), dict) and isinstance(record.get("words", []), list)
    sound = sound and all(isinstance(word, str) for word in record.get("words", []))
    sound = sound and isinstance(process, dict) and all(is_number(process.get(key)) for key in ("pid", "born"))
    return record if sound else {}


def _done_before(folder: Path, words: Sequence[str]) -> dict[str, Any] | None:
    """The record of a job that has finished; `UserError` if the folder holds a job of other arguments or data."""
    record = _read_record(folder / RECORD)
    if record and record.get("words") != words:
        theirs, ours = set(record.get("words", [])), set(words)
        change = [*(f"-{word}" for word in sorted(theirs - ours)), *(f"+{word}" for word in sorted(ours - theirs))]
        what = f"the folder holds a job of other arguments ({' '.join(change)})"
        raise UserError(what, str(folder), "choose another name=...")
    if record.get("status") != "finished":
        return None
    from mitoseg.datasets.download import changed_files  # half a second, that the start of each command would take

    data = read_json(folder / "provenance.json").get("data") or {}
    if changed := changed_files(data):
        what = f"the data have changed since the job finished, among them {changed[0]}"
        raise UserError(what, str(folder), "choose another name=..., or put them back")
    log.info("%s: finished before", folder.name)
    return record


def _attempt(sweep: Sweep, folder: Path, record: dict[str, Any], cfg: DictConfig) -> dict[str, Any]:
    wait_for_orphan(_read_record(folder / RECORD))
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
        jobs = [(path.parent, record) for path in sorted(folder.rglob(RECORD)) if (record := _read_record(path))]
        keys = _union(record.get("varied", {}) for _, record in jobs)
        rows = [_row(job.relative_to(folder).as_posix(), job, record, keys) for job, record in jobs]
        write_text(folder / "results.csv", _table(rows))
        if summary := summarise(rows):
            write_text(folder / "summary.csv", _table(summary))
    return rows


def _row(name: str, job: Path, record: Mapping[str, Any], keys: Sequence[str]) -> Row:
    metrics = read_json(job / "metrics.json")
    parts = {part: found for part in _PARTS if isinstance(found := metrics.get(part), dict)}
    scores = {f"{part}_{score}": found.get(score) for part, found in parts.items() for score in _SCORES}
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
            values = [float(one[name]) for one in members if is_number(one.get(name))]
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
