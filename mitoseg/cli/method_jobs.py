"""The methods of a benchmark as processes, one after the other, and what is written down about each.

benchmark ──> train resume=RUN/unet25d/train      a network is trained first, unless that is done
          ──> benchmark job=unet25d               then each method predicts and is scored in a process of its own
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

import mitoseg
from mitoseg.benchmark import Method, Source
from mitoseg.benchmark.records import LAST, MODEL, RECORD, TRAIN, check_options, clear, is_finished
from mitoseg.cli.quoting import literal
from mitoseg.cli.sweeps.process import job_variables, run_process, wait_for_orphan, why
from mitoseg.provenance import SOURCE, git_state
from mitoseg.storage import read_json, write_json

log = logging.getLogger(__name__)

PROGRAM = (sys.executable, str(Path(mitoseg.__file__).with_name("__main__.py")))


@dataclass(frozen=True)
class Job:
    """A method that is to be run.

    Attributes:
        method: Which.
        folder: Its own.
        options: What its result depends on.
        words: Of the benchmark, without those that say where.
        training: Words that every training gets: data, seed, device, looks.
        config: Options of Hydra's that choose the config.
    """

    method: Method
    folder: Path
    options: Mapping[str, Any]
    words: Sequence[str]
    training: Sequence[str]
    config: Sequence[str] = ()

    def commands(self) -> list[list[str]]:
        """What is still to be started, in this order."""
        where = f"hydra.run.dir={literal(str(self.folder))}"
        scoring = [*PROGRAM, "benchmark", *self.config, *self.words, f"job={self.method.name}", where]
        trains = self.method.train is not None and self.method.checkpoint is None
        if not trains or (self.folder / TRAIN / "metrics.json").is_file():
            return [scoring]
        key = "resume" if (self.folder / LAST).is_file() else "hydra.run.dir"
        words = [*self.training, *(self.method.train or ()), f"{key}={literal(str(self.folder / TRAIN))}"]
        return [[*PROGRAM, "train", *self.config, *words], scoring]


def find_changes(jobs: Sequence[Job], *, overwrite: bool) -> dict[str, str]:
    """By method, how its options differ from those that its folder was made with, where it is to be made anew.

    Raises:
        UserError: A folder holds something that was made with other options, and may not be overwritten.
    """
    found = {j.method.name: check_options(j.method.name, j.folder, j.options, overwrite=overwrite) for j in jobs}
    return {name: change for name, change in found.items() if change is not None}


def run_jobs(jobs: Sequence[Job], changes: Mapping[str, str]) -> Iterator[Job]:
    """Run the methods one after the other; give each back when it has ended, however that was.

    Args:
        jobs: To run, those that have finished before as well.
        changes: Of `find_changes`; these start again.

    Raises:
        BaseException: What interrupts the benchmark.
    """
    for i, job in enumerate(jobs, 1):
        name = f"{job.method.name} ({i} of {len(jobs)})"
        if change := changes.get(job.method.name):
            log.info("%s: options have changed (%s), it starts again", name, change)
            clear(job.folder)
        if is_finished(job.folder):
            log.info("%s: finished before", name)
        else:
            wait_for_orphan(read_json(job.folder / RECORD))
            going_on = (job.folder / LAST).is_file() or (job.folder / MODEL).is_dir()
            log.info("%s: %s", name, "goes on" if going_on else "starts")
            attempt(job)
        yield job


def attempt(job: Job) -> None:
    """Run the processes of a method, and write down how they ended.

    Raises:
        BaseException: What interrupts the waiting, once the process has ended and that is written down.
    """
    commit, dirty = git_state(SOURCE)
    job.folder.mkdir(parents=True, exist_ok=True)
    seconds = read_json(job.folder / RECORD).get("seconds", 0.0)
    record: dict[str, Any] = {"name": job.method.name, "title": job.method.title, "options": job.options}
    record |= {"status": "running", "commit": commit, "dirty": dirty}
    outcome, start, code = job.folder / ".outcome.json", time.time(), None

    def started(process: psutil.Process) -> None:
        record["process"] = {"pid": process.pid, "born": process.create_time()}
        write_json(job.folder / RECORD, record)

    try:
        for command in job.commands():
            outcome.unlink(missing_ok=True)
            code = None
            code = run_process(command, job_variables(os.environ, outcome, {}), started=started)
            if code:
                break
    finally:
        told = read_json(outcome)
        outcome.unlink(missing_ok=True)
        record.pop("process", None)
        record["status"] = "finished" if code == 0 else "interrupted" if code is None else "failed"
        record["error"] = None if code == 0 else told.get("error") or why(code)
        record["seconds"] = round(seconds + time.time() - start, 1)
        write_json(job.folder / RECORD, record)


def training_words(source: Source, *, seed: int, accelerator: str, prediction: str, progress: bool) -> list[str]:
    """Words that every training of a benchmark gets: the same data and split, and no look at the test volume."""
    data = [f"{key}={word_value(value)}" for key, value in source.leaves().items()]
    looks = ["test=false", "figures=false", "save_overlays=0", f"trainer.enable_progress_bar={word_value(progress)}"]
    chosen = [f"seed={seed}", f"trainer.accelerator={accelerator}", f"method={prediction}"]
    return [f"data={source.name}", *data, *chosen, *looks]


def word_value(value: object) -> str:
    """A value as Hydra reads it back.

    >>> word_value([None, True, 2, "a b.tif", [1.5]])
    '[null,true,2,"a b.tif",[1.5]]'
    """
    if isinstance(value, list | tuple):
        return f"[{','.join(map(word_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return literal(value) if isinstance(value, str) else str(value)
