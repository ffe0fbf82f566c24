"""``benchmark``: train, predict and score every method on the same voxels; write a table and a figure.

benchmark --> train resume=RUN/unet25d/train      networks are trained first, unless that is done
          --> benchmark job=unet25d               then each method predicts and is scored in its own process
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig

import mitoseg
from mitoseg.arguments import as_typed, key_of, literal, split_words, words_kept
from mitoseg.benchmark import Method, Source, open_source, read_methods
from mitoseg.benchmark.methods import (
    COSTS,
    LAST,
    RECORD,
    TRAIN,
    check_options,
    checkpoint_of,
    clear,
    describe_run,
    is_finished,
    make_estimator,
    prediction_path,
    read_source,
    run_estimator,
    scored_regions,
    timed,
)
from mitoseg.benchmark.report import Report, finished_before, picture_box, read_crop, score_part, terminal
from mitoseg.datasets.download import checksums, fingerprint
from mitoseg.errors import UserError
from mitoseg.evaluation import BANDS
from mitoseg.processes import attempt, ended_by_sigterm, wait_for_orphan
from mitoseg.progress import Tell
from mitoseg.provenance import SOURCE, collect, git_state, peak_memory
from mitoseg.storage import flatten, held, read_json, write_json, write_text
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
                jobs, changes, report = make_plan(options, folder)
            write_text(folder / "config.yaml", yaml.safe_dump(vars(options), sort_keys=False, allow_unicode=True))
            provenance = collect(seed=options.seed, data=dict(report.splits.provenance))
            write_json(folder / "provenance.json", provenance)
            for i, job in enumerate(jobs, 1):
                run_job(job, f"{job.method.name} ({i} of {len(jobs)})", changes.get(job.method.name))
                report.write()
            if options.figure:
                report.draw(options.figure_size, options.figure_box)
            tell(terminal(report.write()))
    failed = [name for name in report.names if not is_finished(folder / name)]
    if failed:
        named = ", ".join(f"{name} ({read_json(folder / name / RECORD).get('error')})" for name in failed)
        remedy = f"continue with: python benchmark.py resume={as_typed(folder)}"
        raise UserError(f"{len(failed)} of {len(report.names)} methods failed: {named}", None, remedy)


def make_plan(options: BenchmarkOptions, folder: Path) -> tuple[list[Job], dict[str, str], Report]:
    """Check all options and the data before anything is run; to be called inside a run.

    Returns the methods in order; for each method to be run again, what has changed; and the report, which includes
    methods that have finished before.
    """
    methods, source = read_methods(options.methods, options.size), find_source(options)
    splits = open_source(source)
    regions = scored_regions(splits, options.part)
    for method in methods:
        if method.estimator is not None:
            make_estimator(method.name, method.estimator, splits.voxel_size)
        elif method.checkpoint is not None:
            checkpoint_of(method, folder / method.name)
    if options.figure:
        picture_box(regions[0], options.figure_size, options.figure_box)
    crop = read_crop(options.crop, regions)
    data = {"name": source.name, **source.options}
    common = {"data": data, "files": checksums(splits.provenance), "part": options.part, "seed": options.seed}
    config, given = split_words(sys.argv[2:])  # of this run, as set by `mitoseg.cli.ranks.job_environment`
    arguments = [argument for argument in given if key_of(argument) not in _NOT_PASSED_ON]
    training = training_arguments(source, options)
    jobs, changes = [], {}
    for method in methods:
        found = {**method.record(), **common}
        if method.estimator is None:
            found["prediction"] = options.prediction
        if method.checkpoint is not None:
            found["checkpoint_sha256"] = fingerprint(method.checkpoint)["sha256"]
        jobs.append(Job(method, folder / method.name, found, arguments, training, config))
        change = check_options(method.name, folder / method.name, found, overwrite=options.overwrite)
        if change is not None:
            changes[method.name] = change
    names = [method.name for method in methods]
    names += finished_before(folder, names, common)
    report = Report(folder, names, source.name, splits, regions, options.part, options.band, crop, options.published)
    return jobs, changes, report


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
        # Imported here: otherwise torch's memory would count towards an estimator's.
        import torch

        from mitoseg.inference.prepare import make_prediction
        from mitoseg.networks.checkpoint import load_model
        from mitoseg.workflows.scoring import predict_region

        path = checkpoint_of(method, folder)
        costs = describe_run(method, path, splits.provenance)
        model = load_model(path, trust=options.trust)
        prediction = make_prediction(model, method=options.prediction, accelerator=options.accelerator)
        for i, region in enumerate(regions):
            with timed(costs, "prediction", title=f"predicting {part}_{i}", show=False):
                predict_region(prediction_path(folder, part, i), region, prediction, f"{part}_{i}", show=show)
        on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        before = costs["peak_memory"]  # of the training
        here = {"process": peak_memory(), "device": on_gpu}
        costs["peak_memory"] = {k: max(before.get(k) or 0, value or 0) or None for k, value in here.items()}
    write_json(folder / COSTS, costs)
    score_part(folder, regions, part)


@dataclass(frozen=True)
class Job:
    """A method to run in its folder; ``options`` holds everything that its result depends on.

    ``arguments`` are the benchmark's, ``training`` those of every training, ``config`` Hydra's that select the config.
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


def run_job(job: Job, name: str, change: str | None) -> None:
    """Run a method, unless it is finished, until it ends or fails; from scratch if its options have a ``change``."""
    if change:
        log.info("%s: options have changed (%s), starting again", name, change)
        clear(job.folder)
    if is_finished(job.folder):
        log.info("%s: finished before", name)
        return
    wait_for_orphan(read_json(job.folder / RECORD))
    log.info("%s: %s", name, "goes on" if (job.folder / LAST).is_file() else "starts")
    commit, dirty = git_state(SOURCE)
    job.folder.mkdir(parents=True, exist_ok=True)
    record = {"name": job.method.name, "title": job.method.title, "options": job.options}
    attempt(job.folder / RECORD, record | {"status": "running", "commit": commit, "dirty": dirty}, job.commands())


def training_arguments(source: Source, options: BenchmarkOptions) -> list[str]:
    """Arguments of every training in a benchmark: the same data and split, and no use of the test volume."""
    data = [f"data.{key}={word_value(value)}" for key, value in flatten(source.options).items()]
    bar = f"trainer.enable_progress_bar={word_value(options.progress)}"
    chosen = [f"seed={options.seed}", f"trainer.accelerator={options.accelerator}", f"method={options.prediction}"]
    return [f"data={source.name}", *data, *chosen, "test=false", "figures=false", "save_overlays=0", bar]


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
