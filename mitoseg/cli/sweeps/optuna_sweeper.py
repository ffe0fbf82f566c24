"""The sweeper ``hydra/sweeper=optuna``: each job's parameters follow from the scores of those before.

It is our own because Hydra's plugin wants Optuna 2, counts ``n_trials`` anew in each call, and forgets the trials that
a killed sweep left behind. Those, and trials that failed, are asked for again with the same parameters, and so come
back to the same job folders. Nothing is pruned: a job does not know of its trial.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mitoseg.errors import UserError
from mitoseg.storage import write_text

if TYPE_CHECKING:
    import optuna

INSTALL = 'pip install "mitoseg[sweep]"'
_REPLACES = "replaces"


@dataclass(eq=False)
class OptunaSweeper(Sweeper):
    """Searches with Optuna's TPE; ``conf/hydra/sweeper/optuna.yaml`` describes the options."""

    n_trials: int
    n_jobs: int
    direction: Literal["maximize", "minimize"]
    seed: int
    n_startup_trials: int
    storage: str | None
    study_name: str | None
    max_failure_rate: float
    params: Mapping[str, Any] = field(default_factory=dict)
    config: DictConfig | None = field(default=None, init=False)
    launcher: Launcher | None = field(default=None, init=False)
    hydra_context: HydraContext | None = field(default=None, init=False)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over before the sweep."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has ``n_trials`` of them, and write ``optimization_results.yaml``."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        try:
            from optuna.trial import TrialState
        except ModuleNotFoundError as error:
            raise UserError("hydra/sweeper=optuna needs a library that is missing", error.name, INSTALL) from error
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        words = {override.get_key_element(): override for override in given}  # the command line comes last
        space = {key: _distribution(word) for key, word in words.items() if word.is_sweep_override()}
        fixed = [f"{key}={word.get_value_element_as_str()}" for key, word in words.items() if key not in space]
        if not space:
            raise UserError("nothing to search", None, "give a range, such as 'optimizer.lr=interval(1e-4,1e-2)'")
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        study, launched = self._open_study(folder), 0
        while (left := self.n_trials - len(_counted(study))) > 0:
            trials = [study.ask(space) for _ in range(min(left, self.n_jobs))]
            batch = [[*(f"{key}={value}" for key, value in trial.params.items()), *fixed] for trial in trials]
            self.validate_batch_is_legal(batch)
            jobs = self.launcher.launch(batch, initial_job_idx=launched)
            launched += len(batch)
            for trial, job in zip(trials, jobs, strict=True):
                score = math.nan if job.return_value is None else float(job.return_value)
                if math.isfinite(score):
                    study.tell(trial, score)
                else:
                    study.tell(trial, state=TrialState.FAIL)
            _write_best(study, folder)
            failed = sum(trial.state == TrialState.FAIL for trial in _counted(study))
            if failed > self.max_failure_rate * self.n_trials:
                what = f"{failed} of {self.n_trials} trials failed"
                raise UserError(what, None, "see results.csv, or raise max_failure_rate")
        _write_best(study, folder)

    def _open_study(self, folder: Path) -> optuna.Study:
        """The study of a sweep's folder, with what must be asked again in its queue.

        The sampler's seed differs from call to call: the same one would draw the first parameters again.
        """
        import optuna
        from optuna.trial import TrialState

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=self.storage or f"sqlite:///{(folder / 'study.db').as_posix()}",
            study_name=self.study_name or folder.name,
            direction=self.direction,
            load_if_exists=True,
        )
        study.sampler = optuna.samplers.TPESampler(
            seed=self.seed + len(study.trials), n_startup_trials=self.n_startup_trials
        )
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        for trial in _counted(study):
            if trial.state == TrialState.FAIL:
                study.enqueue_trial(trial.params, user_attrs={_REPLACES: trial.number})
        return study


def _distribution(word: Override) -> optuna.distributions.BaseDistribution:
    """What Optuna draws from for ``lr=tag(log, interval(1e-4, 1e-1))`` or ``network=a,b``."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

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


def _counted(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that count: ended, and not asked for again."""
    trials = study.get_trials(deepcopy=False)
    replaced = {trial.user_attrs.get(_REPLACES) for trial in trials}
    return [t for t in trials if t.state.name in {"COMPLETE", "FAIL"} and t.number not in replaced]


def _write_best(study: optuna.Study, folder: Path) -> None:
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if done:
        best = study.best_trial
        found = {"name": "optuna", "best_evaluated_params": best.params, "best_value": best.value, "trials": len(done)}
        write_text(folder / "optimization_results.yaml", yaml.safe_dump(found, sort_keys=False))


def register_sweeper() -> None:
    """Make ``hydra/sweeper=optuna`` known to Hydra, which takes plugins under such a name only."""
    Plugins.instance().class_name_to_class["hydra_plugins.mitoseg.OptunaSweeper"] = OptunaSweeper


def missing_plugin(error: BaseException) -> str | None:
    """The line for a launcher whose plugin is not installed; None for another error."""
    match = re.search(
        r"Unknown plugin class.*hydra_(\w+)_launcher|Could not (?:load|find) 'hydra/launcher/([a-z]+)", str(error)
    )
    name = match and (match[1] or match[2])
    if name not in {"joblib", "submitit"}:
        return None
    return f"hydra/launcher={name} needs a library that is missing; {INSTALL}"
