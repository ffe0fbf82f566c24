"""Optuna's part of a search: the study, its trials, what is kept of them.

The study lies in the sweep's folder and ``n_trials`` counts all of it. A sweep that was killed leaves trials that
never ended; the same command tells the study so, asks for the same parameters again, and so comes back to the same
job folders, where training resumes from ``last.ckpt``. The same holds for jobs that failed. Nothing is pruned: a job
does not know of its trial; let it stop early instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
import yaml
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from mitoseg.errors import UserError
from mitoseg.storage import write_text

_REPLACES = "replaces"


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        n_trials: Trials of the study, those of earlier calls included.
        n_jobs: Trials at once; the launcher must run as many.
        direction: ``maximize`` or ``minimize`` what the jobs return.
        seed: Of the sampler.
        n_startup_trials: Random trials before the sampler learns from scores.
        storage: Optuna's storage; None is an SQLite file in the sweep's folder.
        study_name: None is the name of the sweep's folder.
        max_failure_rate: The search ends when more than this share of ``n_trials`` has failed.
    """

    n_trials: int
    n_jobs: int
    direction: Literal["maximize", "minimize"]
    seed: int
    n_startup_trials: int
    storage: str | None
    study_name: str | None
    max_failure_rate: float


def open_study(folder: Path, options: SearchOptions) -> optuna.Study:
    """The study of a sweep's folder, made if there is none, with trials that failed or were left running in its queue.

    The sampler's seed differs from call to call: the same one would draw the first parameters again.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=options.storage or f"sqlite:///{(folder / 'study.db').as_posix()}",
        study_name=options.study_name or folder.name,
        direction=options.direction,
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(
        seed=options.seed + len(study.trials), n_startup_trials=options.n_startup_trials
    )
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    for trial in _counted(study):
        if trial.state == TrialState.FAIL:
            study.enqueue_trial(trial.params, user_attrs={_REPLACES: trial.number})
    return study


def run_trials(
    study: optuna.Study,
    space: dict[str, BaseDistribution],
    folder: Path,
    options: SearchOptions,
    launch: Callable[[Sequence[Mapping[str, object]]], Sequence[float]],
) -> None:
    """Run trials until the study has ``n_trials`` of them, and write ``optimization_results.yaml``.

    ``launch`` runs jobs with such parameters and returns their scores, NaN for those that failed.
    """
    while (left := options.n_trials - len(_counted(study))) > 0:
        trials = [study.ask(space) for _ in range(min(left, options.n_jobs))]
        for trial, score in zip(trials, launch([trial.params for trial in trials]), strict=True):
            if math.isfinite(score):
                study.tell(trial, score)
            else:
                study.tell(trial, state=TrialState.FAIL)
        _write_best(study, folder)
        failed = sum(trial.state == TrialState.FAIL for trial in _counted(study))
        if failed > options.max_failure_rate * options.n_trials:
            what = f"{failed} of {options.n_trials} trials failed"
            raise UserError(what, None, "see results.csv, or raise max_failure_rate")
    _write_best(study, folder)


def distribution(word: Override) -> BaseDistribution:
    """What Optuna draws from for ``lr=tag(log, interval(1e-4, 1e-1))`` or ``network=a,b``."""
    value = word.value()
    log_scale = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep) and value.start is not None and value.end is not None:
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=log_scale)
        return FloatDistribution(float(value.start), float(value.end), log=log_scale)
    if isinstance(value, RangeSweep) and isinstance(value.start, int) and isinstance(value.stop, int):
        step = int(value.step)
        return IntDistribution(value.start, value.start + (value.stop - 1 - value.start) // step * step, step=step)
    if not word.is_discrete_sweep():
        raise UserError("no range to search", word.input_line, "give key=interval(from,to) or key=a,b,c")
    return CategoricalDistribution([str(choice) for choice in word.sweep_string_iterator()])


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: ended, and not asked for again."""
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get(_REPLACES) for trial in trials}
    return [t for t in trials if t.state in {TrialState.COMPLETE, TrialState.FAIL} and t.number not in replaced]


def _write_best(study: optuna.Study, folder: Path) -> None:
    """Write ``optimization_results.yaml``: the best parameters and their score."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if done:
        best = study.best_trial
        found = {"name": "optuna", "best_evaluated_params": best.params, "best_value": best.value, "trials": len(done)}
        write_text(folder / "optimization_results.yaml", yaml.safe_dump(found, sort_keys=False))
