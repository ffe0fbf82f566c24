"""``benchmark``: train, predict and score every method on the same voxels; write a table and a figure.

The methods run as processes, one after the other, and a record is written for each.

benchmark ──> train resume=RUN/unet25d/train      networks are trained first, unless that is done
          ──> benchmark job=unet25d               then each method predicts and is scored in its own process
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
import yaml
from hydra.core.hydra_config import HydraConfig

import mitoseg
from mitoseg.arguments import as_typed, key_of, literal, split_words, words_kept
from mitoseg.benchmark import Method, Source, open_source, read_methods
from mitoseg.benchmark.estimator import (
    Cost,
    check_saved,
    checkpoint_of,
    describe_run,
    make_estimator,
    run_estimator,
    stage,
)
from mitoseg.benchmark.methods import (
    COSTS,
    LAST,
    MODEL,
    RECORD,
    TRAIN,
    check_options,
    clear,
    is_finished,
    prediction_path,
    read_source,
    scored_regions,
)
from mitoseg.benchmark.report import Report, common_options, picture_box, read_crop, score_part, terminal
from mitoseg.datasets import Splits
from mitoseg.datasets.download import fingerprint
from mitoseg.errors import UserError
from mitoseg.evaluation import BANDS
from mitoseg.processes import ended_by_sigterm, job_variables, run_process, wait_for_orphan, why
from mitoseg.progress import Tell
from mitoseg.provenance import SOURCE, collect, git_state, peak_memory
from mitoseg.storage import held, read_json, write_json, write_text
from mitoseg.workflows.options import BenchmarkOptions

log = logging.getLogger(__name__)

_NOT_PASSED_ON = {"resume", "overwrite", "job", "hydra.run.dir"}

PROGRAM = (sys.executable, str(Path(mitoseg.__file__).with_name("__main__.py")))


def run(options: BenchmarkOptions, folder: Path, tell: Tell) -> None:
    """Compare the methods; with ``job=NAME``, run one of them in this process.

    Raises:
        UserError: An option or the data are invalid, or a method failed.
    """
    if options.band not in BANDS:
        raise UserError("no such boundary band", options.band, f"give band={BANDS[0]} to band={BANDS[-1]}")
    with ended_by_sigterm():
        if options.job is not None:
            run_one(options, folder)
            return
        with held(folder / ".lock", "another benchmark is running in this folder"):
            with words_kept(folder):
                jobs, changes, report, names, figure = make_plan(options, folder)
            write_text(folder / "config.yaml", yaml.safe_dump(vars(options), sort_keys=False, allow_unicode=True))
            provenance = collect(seed=options.seed, data=dict(report.splits.provenance))
            write_json(folder / "provenance.json", provenance)
            for _ in run_jobs(jobs, changes):
                report.write(names)
            if figure is not None:
                report.draw(names, *figure)
            tell(terminal(report.write(names)))
    failed = [name for name in names if not is_finished(folder / name)]
    if failed:
        named = ", ".join(f"{name} ({read_json(folder / name / RECORD).get('error')})" for name in failed)
        remedy = f"continue with: python benchmark.py resume={as_typed(folder)}"
        raise UserError(f"{len(failed)} of {len(names)} methods failed: {named}", None, remedy)


def make_plan(
    options: BenchmarkOptions, folder: Path
) -> tuple[list[Job], dict[str, str], Report, list[str], tuple[object, object] | None]:
    """Check all options and the data before anything is run.

    Returns:
        The methods, in order; for each method to be run again, what has changed; the report; the names of these
        methods and of others that have already finished; size and position of the figure's crop, None for no figure.
    """
    methods, source = read_methods(options.methods, options.size), find_source(options)
    splits = open_source(source)
    regions = scored_regions(splits, options.part)
    for method in methods:
        if method.estimator is not None:
            make_estimator(method.name, method.estimator, splits.voxel_size)
            if method.checkpoint is not None:
                check_saved(Path(method.checkpoint))
        elif method.checkpoint is not None:
            checkpoint_of(method, folder / method.name)
    figure = (options.figure_size, options.figure_box) if options.figure else None
    if figure is not None:
        picture_box(regions[0], *figure)
    crop = read_crop(options.crop, regions)
    common = common_options(source.record(), splits, options.part, options.seed)
    jobs = make_jobs(options, folder, methods, source, common)
    report = Report(folder, source.name, splits, regions, options.part, options.band, crop, options.published)
    names = [method.name for method in methods]
    checked = {
        job.method.name: check_options(job.method.name, job.folder, job.options, overwrite=options.overwrite)
        for job in jobs
    }
    changes = {name: change for name, change in checked.items() if change is not None}
    return jobs, changes, report, [*names, *report.others(names, common)], figure


def find_source(options: BenchmarkOptions) -> Source:
    """The data set, reduced if ``size=small``."""
    name = HydraConfig.get().runtime.choices.get("data")
    if name is None:
        raise UserError("data has no value", None, "add data=NAME, such as data=phantom")
    if "sets" in options.data:
        raise UserError("the benchmark takes a single data set", name, "give data=lucchi, data=files or the like")
    less = options.small.get(name, {}) if options.size == "small" else {}
    given = {key_of(word) for word in HydraConfig.get().overrides.task}
    return read_source(str(name), options.data, less, given)


def make_jobs(
    options: BenchmarkOptions, folder: Path, methods: Sequence[Method], source: Source, common: dict[str, Any]
) -> list[Job]:
    """The job of each method; to be called inside a run."""
    config, given = split_words(sys.argv[2:])  # of this run, as set by `mitoseg.cli.ranks.job_environment`
    arguments = [argument for argument in given if key_of(argument) not in _NOT_PASSED_ON]
    training = training_arguments(
        source,
        seed=options.seed,
        accelerator=options.accelerator,
        prediction=options.prediction,
        progress=options.progress,
    )
    jobs = []
    for method in methods:
        found = {**method.record(), **common}
        if method.estimator is None:
            found["prediction"] = options.prediction
        if method.checkpoint is not None:
            found["checkpoint_sha256"] = fingerprint(method.checkpoint)["sha256"]
        jobs.append(Job(method, folder / method.name, found, arguments, training, config))
    return jobs


def run_one(options: BenchmarkOptions, folder: Path) -> None:
    """Run one method in this process: finish its training, then predict and score."""
    named = {method.name: method for method in read_methods(options.methods, options.size)}
    if options.job not in named:
        raise UserError("job= names none of methods=", options.job, f"give one of {', '.join(named)}")
    for told_before in ("mitoseg.datasets", "mitoseg.volumes"):  # already logged by the parent process
        logging.getLogger(told_before).setLevel(logging.ERROR)
    method, part, show = named[options.job], options.part, options.progress
    splits = open_source(find_source(options))
    regions = scored_regions(splits, part)
    if method.estimator is not None:
        costs = run_estimator(method, splits, regions, folder, part=part, show=show)
    else:
        costs = predict_regions(
            method,
            splits,
            folder,
            part=part,
            prediction_method=options.prediction,
            accelerator=options.accelerator,
            trust=options.trust,
            show=show,
        )
    write_json(folder / COSTS, costs)
    score_part(folder, regions, part)


@dataclass(frozen=True)
class Job:
    """A method to run in its folder; ``options`` holds everything that its result depends on.

    ``arguments`` are the benchmark's, without those about its folder; ``training`` are those passed to every training;
    ``config`` are Hydra's options that select the config.
    """

    method: Method
    folder: Path
    options: Mapping[str, Any]
    arguments: Sequence[str]
    training: Sequence[str]
    config: Sequence[str] = ()

    def commands(self) -> list[list[str]]:
        """The commands that still have to be run, in order."""
        where = f"hydra.run.dir={literal(str(self.folder))}"
        scoring = [*PROGRAM, "benchmark", *self.config, *self.arguments, f"job={self.method.name}", where]
        trains = self.method.train is not None and self.method.checkpoint is None
        if not trains or (self.folder / TRAIN / "metrics.json").is_file():
            return [scoring]
        key = "resume" if (self.folder / LAST).is_file() else "hydra.run.dir"
        arguments = [*self.training, *(self.method.train or ()), f"{key}={literal(str(self.folder / TRAIN))}"]
        return [[*PROGRAM, "train", *self.config, *arguments], scoring]


def run_jobs(jobs: Sequence[Job], changes: Mapping[str, str]) -> Iterator[Job]:
    """Run the methods one after the other, those in ``changes`` from scratch; yield each when it ends or fails."""
    for i, job in enumerate(jobs, 1):
        name = f"{job.method.name} ({i} of {len(jobs)})"
        if change := changes.get(job.method.name):
            log.info("%s: options have changed (%s), starting again", name, change)
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
    """Run the processes of a method, and record how they ended, even if the wait is interrupted."""
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
        report = read_json(outcome)
        outcome.unlink(missing_ok=True)
        record.pop("process", None)
        record["status"] = "finished" if code == 0 else "interrupted" if code is None else "failed"
        record["error"] = None if code == 0 else report.get("error") or why(code)
        record["seconds"] = round(seconds + time.time() - start, 1)
        write_json(job.folder / RECORD, record)


def training_arguments(source: Source, *, seed: int, accelerator: str, prediction: str, progress: bool) -> list[str]:
    """Arguments of every training in a benchmark: the same data and split, and no use of the test volume."""
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


def predict_regions(
    method: Method,
    splits: Splits,
    folder: Path,
    *,
    part: str,
    prediction_method: str,
    accelerator: str,
    trust: bool,
    show: bool,
) -> dict[str, Any]:
    """Write the probabilities of the scored regions; returns the costs, including training, and a protocol note."""
    # Imported here: otherwise torch's memory would count towards an estimator's.
    import torch

    from mitoseg.inference.prepare import make_prediction
    from mitoseg.networks.checkpoint import load_model
    from mitoseg.workflows.scoring import predict_region

    path = checkpoint_of(method, folder)
    record = describe_run(method, path, splits.provenance)
    prediction = make_prediction(load_model(path, trust=trust), method=prediction_method, accelerator=accelerator)
    total = Cost()
    for i, region in enumerate(scored_regions(splits, part)):
        where = prediction_path(folder, part, i)
        with stage(f"predicting {part}_{i}", show=False) as cost:
            predict_region(where, region, prediction, f"{part}_{i}", show=show)
        total += cost
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    here = {"process": peak_memory(), "device": on_gpu}
    before = record["peak_memory"]
    memory = {key: max(before.get(key) or 0, value or 0) or None for key, value in here.items()}
    return {**record, **total.record("prediction"), "peak_memory": memory}
