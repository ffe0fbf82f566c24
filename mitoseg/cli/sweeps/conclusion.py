"""The end of a sweep in the process that started it: wait for stragglers, print the table, say what failed."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mitoseg.cli.console import shown
from mitoseg.cli.sweeps.plan import Sweep
from mitoseg.cli.sweeps.process import GRACE_SECONDS
from mitoseg.cli.sweeps.results import (
    Row,
    collect_reports,
    failure_line,
    peek_reports,
    summarise,
    varied_keys,
    write_results,
)

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
