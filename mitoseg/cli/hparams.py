"""The HParams table of TensorBoard: what a run was given, and its scores, beside those of the other runs.

Each run writes its own line into ``RUN/tensorboard``, so ``tensorboard --logdir outputs/sweeps/NAME`` shows a sweep as
a table and in parallel coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from mitoseg.cli.sweeps.names import key_of

CHOICES = ("data", "network", "optimizer", "scheduler", "experiment")
KEYS = ("seed", "epochs", "data.batch_size")
SCORES = ("jaccard_foreground", "jaccard_background", "jaccard_mean")
_NOT_SHOWN = ("hydra", "resume", "name")
Value = bool | int | float | str


def log_hparams(folder: Path, cfg: DictConfig, validation: Mapping[str, object]) -> None:
    """Write a run's line of the HParams table (call it inside a run).

    Args:
        folder: The run's.
        cfg: Its config.
        validation: Scores on the validation slabs, `SCORES` among them; others are left out.
    """
    runtime = HydraConfig.get()
    given = hyper_parameters(cfg, dict(runtime.runtime.choices), list(runtime.overrides.task))
    scores = {f"validation/{name}": float(validation[name]) for name in SCORES if name in validation}  # type: ignore[arg-type]
    write_hparams(folder / "tensorboard", given, scores)


def hyper_parameters(cfg: DictConfig, choices: Mapping[str, str | None], words: Iterable[str]) -> dict[str, Value]:
    """What set a run apart: the options of its groups, common numbers, the optimizer's, and each word that was given.

    Args:
        cfg: The run's config.
        choices: Option by group, as Hydra knows them.
        words: Overrides; paths' and folders' are among them as they were typed.
    """
    found: dict[str, Value] = {
        group: option for group in CHOICES if (option := choices.get(group)) not in {None, "null"}
    }
    for key, value in cfg.get("optimizer", {}).items():
        if isinstance(value, Value) and not str(key).startswith("_"):
            found[f"optimizer.{key!s}"] = value
    keys = [*KEYS, *(key_of(word) for word in words)]
    for key in keys:
        value = OmegaConf.select(cfg, key)
        if key not in found and value is not None and not key.startswith(_NOT_SHOWN):
            found[key] = value if isinstance(value, Value) else str(value)
    return found


def write_hparams(folder: Path, given: Mapping[str, Value], scores: Mapping[str, float]) -> None:
    """Write hyper-parameters and scores as TensorBoard events into a folder.

    Args:
        folder: Of events; made if missing.
        given: Value by name.
        scores: Score by tag.
    """
    with SummaryWriter(str(folder)) as writer:
        file_writer = writer._get_file_writer()
        for summary in hparams(dict(given), dict(scores)):  # type: ignore[no-untyped-call]
            file_writer.add_summary(summary)
        for tag, score in scores.items():
            writer.add_scalar(tag, score, 0)
