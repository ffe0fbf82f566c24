"""What a sweep writes: results.csv, summary.csv over seeds, and the line for jobs that failed."""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from mitoseg.cli.sweeps.plan import Sweep
from mitoseg.storage import read_json, write_json, write_text
from mitoseg.tables import to_csv

_SCORES = ("jaccard_foreground", "jaccard_background", "jaccard_mean", "dice", "precision", "recall")
_PARTS = ("validation", "test")
_MEASURED = ("objective", *(f"{part}_{score}" for part in _PARTS for score in _SCORES))
_LISTED = 5
Row = dict[str, Any]


def _reports(sweep: Sweep) -> Path:
    return sweep.folder / ".jobs" / sweep.invocation


def report(sweep: Sweep, job: str, record: Mapping[str, Any]) -> None:
    """File how a job stands, for the process that started the sweep."""
    _reports(sweep).mkdir(parents=True, exist_ok=True)
    write_json(_reports(sweep) / f"{job}.json", {"job": job, **record})


def peek_reports(sweep: Sweep) -> list[dict[str, Any]]:
    """The reports of this call's jobs so far, in order of their names."""
    return [read_json(path) for path in sorted(_reports(sweep).glob("*.json"))]


def collect_reports(sweep: Sweep) -> list[dict[str, Any]]:
    """The reports of this call's jobs, which are then removed."""
    reports = peek_reports(sweep)
    shutil.rmtree(_reports(sweep), ignore_errors=True)
    with contextlib.suppress(OSError):  # another call's reports lie there
        _reports(sweep).parent.rmdir()
    return reports


def write_results(folder: Path) -> list[Row]:
    """Write ``results.csv``, and ``summary.csv`` where seeds vary, from the jobs in a sweep's folder.

    Returns:
        The rows of ``results.csv``.
    """
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

    Returns:
        A row for each setting: what varies but the seed, ``n``, then ``<score>_mean`` and ``<score>_sd`` (empty for
        one seed). No rows if seeds do not vary.
    """
    if len({row.get("seed") for row in rows}) < 2:
        return []
    keys = [key for key in varied_keys(rows) if key != "seed"]
    groups: dict[tuple[tuple[str, Any], ...], list[Row]] = {}
    for row in rows:
        if row["status"] == "finished":
            groups.setdefault(tuple((key, row.get(key)) for key in keys), []).append(row)
    return [{**dict(setting), "n": len(members), **_spreads(members)} for setting, members in groups.items()]


def _spreads(members: Sequence[Row]) -> Row:
    found: Row = {}
    for name in _MEASURED:
        values = [float(row[name]) for row in members if row.get(name) is not None]
        if values:
            found[f"{name}_mean"] = statistics.fmean(values)
            found[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
    return found


def varied_keys(rows: Iterable[Row]) -> list[str]:
    """The columns that say what sets the jobs apart."""
    return [key for key in _union(rows) if key not in {"job", "status", "seconds", "error", *_MEASURED}]


def _union(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _table(rows: Sequence[Row]) -> str:
    columns = sorted(_union(rows), key=lambda name: name == "error")
    return to_csv(columns, ([row.get(column) for column in columns] for row in rows))


def failure_line(reports: Sequence[Mapping[str, Any]]) -> str | None:
    """The line that names the jobs of a sweep that did not finish; None if all did.

    >>> failure_line([{"job": "a=1", "status": "finished"}, {"job": "a=2", "status": "failed", "error": "why"}])
    '1 of 2 jobs failed: a=2 (why); the same command runs it again'
    """
    failed = [found for found in reports if found.get("status") != "finished"]
    if not failed:
        return None
    named = [f"{found.get('job')} ({found.get('error') or found.get('status')})" for found in failed[:_LISTED]]
    more = [f"and {len(failed) - _LISTED} more"] if len(failed) > _LISTED else []
    rest = f"the same command runs {'it' if len(failed) == 1 else 'them'} again"
    return f"{len(failed)} of {len(reports)} jobs failed: {', '.join([*named, *more])}; {rest}"
