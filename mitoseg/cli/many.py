"""Several volumes in one run: one model, one result each, and a table of what became of them."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg.cli.console import user_message
from mitoseg.cli.inputs import Job
from mitoseg.cli.ranks import held
from mitoseg.cli.session import Session
from mitoseg.cli.summary import DONE, FAILED, NAME, Row, read_rows, write_rows
from mitoseg.engines import Engine, EngineError, one_at_a_time
from mitoseg.errors import UserError
from mitoseg.evaluation.decision import KINDS, Decision, decide
from mitoseg.geometry import Box, tiles
from mitoseg.storage import changes, plain, remove
from mitoseg.volumes import Volume, open_volume
from mitoseg.volumes.staging import holds_finished, stage_folder

log = logging.getLogger(__name__)
_BLOCK = (64, 512, 512)


def predict_many(
    cfg: DictConfig,
    session: Session,
    jobs: Sequence[Job],
    *,
    open_input: Callable[[DictConfig], Volume],
    identity: Callable[[DictConfig, Session, Volume], Mapping[str, Any]],
    predict: Callable[[DictConfig, Session, Volume, Callable[[], None]], object],
) -> None:
    """Predict each volume; one that fails does not stop the others, one that is done already is left alone.

    Args:
        cfg: Of the run; each volume gets it with its own input and output.
        session: What they share.
        jobs: The volumes.
        open_input: Opens the input of a config.
        identity: What makes a prediction another one than the next.
        predict: Predicts one, and calls a function when it is written.

    Raises:
        UserError: Some have failed, or another process works in the folder.
        EngineError: The engine is gone, and with it all that was to come.
    """
    folder = Path(cfg.output)
    with held(folder / ".lock", "another process is writing into this folder"):
        before = read_rows(folder)
        rows = [before.get(Path(job.output).name, Row(job.input, job.output)) for job in jobs]
        names = {Path(job.output).name for job in jobs}
        others = [row for name, row in before.items() if name not in names and row.status == DONE]
        skipped = 0
        for number, (job, row) in enumerate(zip(jobs, rows, strict=True)):
            own = OmegaConf.merge(cfg, {"input": job.input, "output": job.output})
            assert isinstance(own, DictConfig)
            log.info("volume %d of %d: %s", number + 1, len(jobs), job.input)
            try:
                source = open_input(own)
                command = plain(identity(own, session, source))
                if _is_done(row, command, overwrite=cfg.overwrite):
                    row.status, row.error = DONE, ""
                    skipped += 1
                    continue
                rows[number] = row = Row(job.input, job.output, voxels=str(source.box.size))
                write_rows(folder, [*rows, *others])  # an output that is replaced is no longer that of its row
                start = time.monotonic()

                def note(row: Row = row, start: float = start, command: object = command) -> None:
                    row.seconds = f"{time.monotonic() - start:.1f}"
                    row.foreground = _foreground(row.output, session.engine)
                    row.status, row.command = DONE, json.dumps(command, sort_keys=True)
                    write_rows(folder, [*rows, *others])

                predict(own, session, source, note)
            except EngineError:
                raise
            except Exception as error:
                row.status, row.error = FAILED, _told(error)
                log.error("%s", row.error)
            finally:
                write_rows(folder, [*rows, *others])
    remove(folder / ".lock")
    _conclude(folder, rows, skipped)


def _conclude(folder: Path, rows: Sequence[Row], skipped: int) -> None:
    """Say what became of all.

    Raises:
        UserError: Some have failed.
    """
    failed = [row for row in rows if row.status == FAILED]
    done = sum(row.status == DONE for row in rows)
    again = f", {skipped} of them before" if skipped else ""
    Console().print(f"{done} of {len(rows)} volumes are done{again}; table in {folder / NAME}", soft_wrap=True)
    if failed:
        names = ", ".join(row.input for row in failed[:5]) + (", ..." if len(failed) > 5 else "")
        remedy = f"{folder / NAME} says why; the same command again does these alone"
        raise UserError(f"{len(failed)} of {len(rows)} volumes have failed", names, remedy)


def _told(error: Exception) -> str:
    """The line for a failure; a bug also leaves its traceback in the log."""
    line = user_message(error)
    if line is None:
        log.error("this is a bug in mitoseg; please report it with these lines", exc_info=error)
        line = f"a bug: {type(error).__name__}: {error}"
    return " ".join(line.split())


def _is_done(row: Row, command: Mapping[str, Any], *, overwrite: bool) -> bool:
    """Whether a volume's output is there, made by the same command from the same input.

    Raises:
        UserError: It was made by another one, and may not be replaced.
    """
    if not row.command or not os.path.lexists(row.output):
        return False
    before = json.loads(row.command)
    if before == command:
        if holds_finished(row.output):
            remove(stage_folder(row.output))  # a kill came between the row and the end
        return True
    if not overwrite:
        remedy = "give overwrite=true, or another output folder"
        raise UserError(f"the output is that of another command ({changes(before, command)})", row.output, remedy)
    return False


@dataclass(frozen=True)
class _Counting:
    """Counts the foreground voxels of a box.

    Attributes:
        volume: A result.
        decision: What its values mean.
    """

    volume: Volume
    decision: Decision

    def __call__(self, box: Box) -> int:
        values = self.volume.read(box)
        with one_at_a_time():
            return int(self.decision.foreground(values).sum())


def _foreground(output: str, engine: Engine) -> str:
    """Share of a result's voxels that are foreground; nothing where it says nothing of it."""
    volume = open_volume(output)
    if volume.info.metadata.get("kind") not in KINDS:
        return ""
    counts: list[int] = []
    engine.map(_Counting(volume, decide(volume)), tiles(volume.box, _BLOCK), lambda _, count: counts.append(count))
    return f"{sum(counts) / volume.box.size:.6f}"
