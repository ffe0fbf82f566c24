"""``benchmark``: every method trained, predicted and scored on the same voxels; the table and one picture of them.

The methods of a benchmark as processes, one after the other, and what is written down about each.

benchmark ──> train resume=RUN/unet25d/train      a network is trained first, unless that is done
          ──> benchmark job=unet25d               then each method predicts and is scored in a process of its own

A network of a benchmark: its checkpoint predicts the regions that are scored.
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
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

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

log = logging.getLogger(__name__)

_SWITCHES = ("overwrite", "published", "figure", "trust", "progress")

_NOT_PASSED_ON = {"resume", "overwrite", "job", "hydra.run.dir"}


@dataclass(frozen=True)
class Plan:
    """A benchmark whose options are all sound.

    Attributes:
        jobs: The methods, in their order.
        changes: By method, why what is there is to be made anew.
        report: Tells of them.
        names: Of these methods and of others that lie there finished.
        figure: Size and place of the picture; None for none.
    """

    jobs: list[Job]
    changes: dict[str, str]
    report: Report
    names: list[str]
    figure: tuple[object, object] | None


def run(cfg: DictConfig, folder: Path, tell: Tell) -> None:
    """Compare the methods; with ``job=NAME``, do one of them in this process.

    Raises:
        UserError: An option or the data are no good, or a method failed.
    """
    with ended_by_sigterm():
        if cfg.job is not None:
            run_one(cfg, folder)
            return
        with held(folder / ".lock", "another benchmark is running in this folder"):
            with words_kept(folder):
                plan = make_plan(cfg, folder)
            write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            provenance = collect(seed=cfg.seed, data=dict(plan.report.splits.provenance))
            write_json(folder / "provenance.json", provenance)
            compare(plan, tell)


def make_plan(cfg: DictConfig, folder: Path) -> Plan:
    """Look at all options and the data before anything is run.

    Raises:
        UserError: Something is no good, or a folder holds results of other options.
    """
    check_benchmark_options(cfg)
    methods, source = read_methods(_plain(cfg.get("methods")), cfg.size), find_source(cfg)
    splits = open_source(source)
    regions = scored_regions(splits, cfg.part)
    for method in methods:
        if method.estimator is not None:
            make_estimator(method.name, method.estimator, splits.voxel_size)
            if method.checkpoint is not None:
                check_saved(Path(method.checkpoint))
        elif method.checkpoint is not None:
            checkpoint_of(method, folder / method.name)
    figure = (_plain(cfg.figure_size), _plain(cfg.figure_box)) if cfg.figure else None
    if figure is not None:
        picture_box(regions[0], *figure)
    crop = read_crop(_plain(cfg.crop), regions)
    common = common_options(source.record(), splits, cfg.part, cfg.seed)
    jobs = make_jobs(cfg, folder, methods, source, common)
    report = Report(folder, source.name, splits, regions, cfg.part, cfg.band, crop, cfg.published)
    names = [method.name for method in methods]
    changes = find_changes(jobs, overwrite=cfg.overwrite)
    return Plan(jobs, changes, report, [*names, *report.others(names, common)], figure)


def compare(plan: Plan, tell: Tell) -> None:
    """Run all methods, write the table after each, and draw them.

    Raises:
        UserError: A method failed.
    """
    folder, names, report = plan.report.folder, plan.names, plan.report
    for _ in run_jobs(plan.jobs, plan.changes):
        report.write(names)
    if plan.figure is not None:
        report.draw(names, *plan.figure)
    tell(terminal(report.write(names)))
    failed = [name for name in names if not is_finished(folder / name)]
    if failed:
        named = ", ".join(f"{name} ({read_json(folder / name / RECORD).get('error')})" for name in failed)
        remedy = f"go on with: python benchmark.py resume={as_typed(folder)}"
        raise UserError(f"{len(failed)} of {len(names)} methods failed: {named}", None, remedy)


def check_benchmark_options(cfg: DictConfig) -> None:
    """Refuse what cannot be, before anything is opened.

    Raises:
        UserError: A switch, the band or the seed is no good.
    """
    for key in _SWITCHES:
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} is neither true nor false", cfg[key], f"give {key}=true or {key}=false")
    if cfg.band not in BANDS:
        raise UserError("no such boundary band", cfg.band, f"give band={BANDS[0]} to band={BANDS[-1]}")
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        raise UserError("the seed is no whole number", cfg.seed, "give 0 or more, such as seed=1")


def find_source(cfg: DictConfig) -> Source:
    """The data set, made small where that is asked for."""
    name = HydraConfig.get().runtime.choices["data"]
    less = (_plain(cfg.small) or {}).get(name, {}) if cfg.size == "small" else {}
    given = {key_of(word) for word in HydraConfig.get().overrides.task}
    return read_source(str(name), _plain(cfg.data), less, given)


def make_jobs(
    cfg: DictConfig, folder: Path, methods: Sequence[Method], source: Source, common: dict[str, Any]
) -> list[Job]:
    """What is to be run for each method (call it inside a run)."""
    config, words = split_words(sys.argv[2:])  # of this very run, as `mitoseg.cli.ranks.job_environment` has set it
    words = [word for word in words if key_of(word) not in _NOT_PASSED_ON]
    training = training_words(
        source, seed=cfg.seed, accelerator=cfg.accelerator, prediction=cfg.prediction, progress=cfg.progress
    )
    jobs = []
    for method in methods:
        options = {**method.record(), **common}
        if method.estimator is None:
            options["prediction"] = cfg.prediction
        if method.checkpoint is not None:
            options["checkpoint_sha256"] = fingerprint(method.checkpoint).sha256
        jobs.append(Job(method, folder / method.name, options, words, training, config))
    return jobs


def run_one(cfg: DictConfig, folder: Path) -> None:
    """One method in this process: what its training has left undone, its predictions, and their scores.

    Raises:
        UserError: There is no such method, or something in it is no good.
    """
    check_benchmark_options(cfg)
    named = {method.name: method for method in read_methods(_plain(cfg.get("methods")), cfg.size)}
    if cfg.job not in named:
        raise UserError("job= names none of methods=", cfg.job, f"give one of {', '.join(named)}")
    for told_before in ("mitoseg.datasets", "mitoseg.volumes"):  # by the process that started this one
        logging.getLogger(told_before).setLevel(logging.ERROR)
    method = named[cfg.job]
    splits = open_source(find_source(cfg))
    regions = scored_regions(splits, cfg.part)
    if method.estimator is not None:
        costs = run_estimator(method, splits, regions, folder, part=cfg.part, show=cfg.progress)
    else:
        costs = run_network(cfg, method, splits, folder)
    write_json(folder / COSTS, costs)
    score_part(folder, regions, cfg.part)


def run_network(cfg: DictConfig, method: Method, splits: Splits, folder: Path) -> dict[str, Any]:
    """Predict with a checkpoint; costs and a note on the protocol."""
    return predict_regions(
        method,
        splits,
        folder,
        part=cfg.part,
        prediction_method=cfg.prediction,
        accelerator=cfg.accelerator,
        trust=cfg.trust,
        show=cfg.progress,
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 (what a config holds)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


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
    """Write the probabilities of the scored regions.

    Args:
        method: With a checkpoint, or trained in its folder.
        splits: Of the benchmark.
        folder: The method's.
        part: Of the data that is scored.
        prediction_method: How volumes are predicted.
        accelerator: Where.
        trust: As `load_model`.
        show: Progress on the terminal.

    Returns:
        Costs, of training as its run tells them, and a note on the protocol.

    Raises:
        UserError: There is no checkpoint, or it cannot be used.
    """
    # Imported here: torch's memory would count as an estimator's.
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
    here = {"process": peak_memory(), "device": _device_memory()}
    before = record["peak_memory"]
    memory = {key: max(before.get(key) or 0, value or 0) or None for key, value in here.items()}
    return {**record, **total.record("prediction"), "peak_memory": memory}


def _device_memory() -> int | None:
    """The most that torch has allocated on a GPU; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
