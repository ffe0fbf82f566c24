"""The sweeper ``hydra/sweeper=optuna``: each job's parameters follow from the scores of those before.

It is our own because Hydra's plugin wants Optuna 2, counts ``n_trials`` anew in each call, and forgets the trials that
a killed sweep left behind. Optuna itself, an extra, is imported when a search begins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mitoseg.errors import UserError

INSTALL = 'pip install "mitoseg[sweep]"'


class OptunaSweeper(Sweeper):
    """Searches with Optuna's TPE.

    ``params`` is the search space, ``key: interval(...)`` and so on, as on the command line; the options are the
    fields of `mitoseg.cli.sweeps.search.SearchOptions`.
    """

    def __init__(self, params: Mapping[str, Any] | None = None, **options: Any) -> None:  # noqa: ANN401
        self.params = dict(params or {})
        self.options = options
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None
        self._launched = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands over before the sweep."""
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has ``n_trials`` of them."""
        assert self.config is not None
        assert self.hydra_context is not None
        try:
            from mitoseg.cli.sweeps.search import SearchOptions, distribution, open_study, run_trials
        except ModuleNotFoundError as error:
            raise UserError("hydra/sweeper=optuna needs a library that is missing", error.name, INSTALL) from error
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides([*(f"{key}={value}" for key, value in self.params.items()), *arguments])
        words = {override.get_key_element(): override for override in given}  # the command line comes last
        space = {key: distribution(word) for key, word in words.items() if word.is_sweep_override()}
        fixed = [f"{key}={word.get_value_element_as_str()}" for key, word in words.items() if key not in space]
        if not space:
            raise UserError("nothing to search", None, "give a range, such as 'optimizer.lr=interval(1e-4,1e-2)'")
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        options = SearchOptions(**self.options)
        study = open_study(folder, options)
        run_trials(study, space, folder, options, lambda jobs: self._launch(jobs, fixed))

    def _launch(self, parameters: Sequence[Mapping[str, object]], fixed: Sequence[str]) -> list[float]:
        """The scores of a batch of jobs, NaN for those that failed."""
        assert self.launcher is not None
        batch = [[*(f"{key}={value}" for key, value in job.items()), *fixed] for job in parameters]
        self.validate_batch_is_legal(batch)
        done = self.launcher.launch(batch, initial_job_idx=self._launched)
        self._launched += len(batch)
        return [math.nan if job.return_value is None else float(job.return_value) for job in done]


def register_sweeper() -> None:
    """Make ``hydra/sweeper=optuna`` known to Hydra, which takes plugins under such a name only."""
    Plugins.instance().class_name_to_class["hydra_plugins.mitoseg.OptunaSweeper"] = OptunaSweeper


def missing_plugin(error: BaseException) -> str | None:
    """The line for a launcher whose plugin is not installed; None for another error.

    >>> missing_plugin(RuntimeError("Unknown plugin class : 'hydra_plugins.hydra_joblib_launcher.X'"))
    'hydra/launcher=joblib needs a library that is missing; pip install "mitoseg[sweep]"'
    """
    for name in ("joblib", "submitit"):
        if re.search(
            rf"Unknown plugin class.*hydra_{name}_launcher|Could not (load|find) 'hydra/launcher/{name}", str(error)
        ):
            return f"hydra/launcher={name} needs a library that is missing; {INSTALL}"
    return None
