"""``benchmark``: every method trained, predicted and scored on the same voxels; the table and one picture of them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mitoseg.benchmark import Method, Source, open_source, read_methods
from mitoseg.benchmark.data import read_source, scored_regions
from mitoseg.benchmark.estimator import make_estimator
from mitoseg.benchmark.fitting import check_saved, run_estimator
from mitoseg.benchmark.networks import checkpoint_of
from mitoseg.benchmark.picture import picture_box
from mitoseg.benchmark.records import COSTS, RECORD, is_finished
from mitoseg.benchmark.report import Report, common_options
from mitoseg.benchmark.scoring import read_crop, score_part
from mitoseg.benchmark.table import terminal
from mitoseg.cli.console import shown
from mitoseg.cli.launch import run_dir, split_words
from mitoseg.cli.method_jobs import Job, find_changes, run_jobs, training_words
from mitoseg.cli.ranks import held
from mitoseg.cli.resume import words_kept
from mitoseg.cli.sweeps.names import key_of
from mitoseg.cli.sweeps.process import ended_by_sigterm
from mitoseg.datasets import Splits
from mitoseg.datasets.checksums import fingerprint
from mitoseg.errors import UserError
from mitoseg.evaluation import BANDS
from mitoseg.provenance import collect
from mitoseg.storage import read_json, write_json, write_text

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


def run(cfg: DictConfig) -> None:
    """Compare the methods; with ``job=NAME``, do one of them in this process.

    Raises:
        UserError: An option or the data are no good, or a method failed.
    """
    with ended_by_sigterm():
        if cfg.job is not None:
            run_one(cfg)
            return
        with held(run_dir() / ".lock", "another benchmark is running in this folder"):
            with words_kept(run_dir()):
                plan = make_plan(cfg)
            write_text(run_dir() / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            provenance = collect(seed=cfg.seed, data=dict(plan.report.splits.provenance))
            write_json(run_dir() / "provenance.json", provenance)
            compare(plan)


def make_plan(cfg: DictConfig) -> Plan:
    """Look at all options and the data before anything is run.

    Raises:
        UserError: Something is no good, or a folder holds results of other options.
    """
    check_options(cfg)
    methods, source, folder = read_methods(_plain(cfg.get("methods")), cfg.size), find_source(cfg), run_dir()
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
    jobs = make_jobs(cfg, methods, source, common)
    report = Report(folder, source.name, splits, regions, cfg.part, cfg.band, crop, cfg.published)
    names = [method.name for method in methods]
    changes = find_changes(jobs, overwrite=cfg.overwrite)
    return Plan(jobs, changes, report, [*names, *report.others(names, common)], figure)


def compare(plan: Plan) -> None:
    """Run all methods, write the table after each, and draw them.

    Raises:
        UserError: A method failed.
    """
    folder, names, report = plan.report.folder, plan.names, plan.report
    for _ in run_jobs(plan.jobs, plan.changes):
        report.write(names)
    if plan.figure is not None:
        report.draw(names, *plan.figure)
    Console().print(terminal(report.write(names)))
    failed = [name for name in names if not is_finished(folder / name)]
    if failed:
        named = ", ".join(f"{name} ({read_json(folder / name / RECORD).get('error')})" for name in failed)
        remedy = f"go on with: python benchmark.py resume={shown(folder)}"
        raise UserError(f"{len(failed)} of {len(names)} methods failed: {named}", None, remedy)


def check_options(cfg: DictConfig) -> None:
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


def make_jobs(cfg: DictConfig, methods: Sequence[Method], source: Source, common: dict[str, Any]) -> list[Job]:
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
        jobs.append(Job(method, run_dir() / method.name, options, words, training, config))
    return jobs


def run_one(cfg: DictConfig) -> None:
    """One method in this process: what its training has left undone, its predictions, and their scores.

    Raises:
        UserError: There is no such method, or something in it is no good.
    """
    check_options(cfg)
    named = {method.name: method for method in read_methods(_plain(cfg.get("methods")), cfg.size)}
    if cfg.job not in named:
        raise UserError("job= names none of methods=", cfg.job, f"give one of {', '.join(named)}")
    for told_before in ("mitoseg.datasets", "mitoseg.volumes"):  # by the process that started this one
        logging.getLogger(told_before).setLevel(logging.ERROR)
    method, folder = named[cfg.job], run_dir()
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
    from mitoseg.cli.network_job import predict_regions  # torch, whose memory is not an estimator's

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
