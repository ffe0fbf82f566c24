"""What a run starts from: nothing, a checkpoint of its own, or its own end, extended.

``extend=N`` takes a finished run N epochs further. The schedule, which has run down over the epochs so far, runs once
more from its start over the N new ones: a warm restart (Loshchilov and Hutter, SGDR, 2017). Momentum, the best score
and the numbering of epochs and steps go on.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from mitoseg.errors import UserError
from mitoseg.networks.bounds import Bounds, within
from mitoseg.networks.checkpoint import read_checkpoint
from mitoseg.storage import move_into_place
from mitoseg.training.module import STATE


@dataclass(frozen=True)
class Continuation:
    """Where a run goes on from.

    Attributes:
        folder: The run's folder.
        checkpoint: To restore; None for a new run.
        extended: Epochs of each extension, the one that now begins included.
        epochs: Of the whole run, extensions included.
        scored: Whether a finished run is extended just now, so that its scores are those of an earlier state.
        bounds: To build the network in, whose arguments may be a stranger's.
    """

    folder: Path
    checkpoint: Path | None
    extended: tuple[int, ...]
    epochs: int
    scored: bool
    bounds: AbstractContextManager[None] = field(default_factory=nullcontext)

    @classmethod
    def find(cls, cfg: DictConfig, folder: Path) -> Continuation:
        """What ``resume`` and ``extend`` ask for.

        Raises:
            UserError: There is no checkpoint, it cannot be read, or the run to extend has not finished.
        """
        checkpoint = resume_checkpoint(cfg.resume)
        if checkpoint is None:
            if cfg.extend is not None:
                raise UserError("extend= without a run", cfg.extend, "add resume=RUN, the run to extend")
            return cls(folder, None, (), cfg.trainer.max_epochs, False)
        found = read_checkpoint(checkpoint)
        extended = list(found.get(STATE, {}).get("extended", []))
        if not all(isinstance(epochs, int) for epochs in extended):
            raise UserError(
                "the checkpoint does not say how far the run was extended", str(checkpoint), "start a new run"
            )
        if cfg.extend is not None:
            if not isinstance(cfg.extend, int) or cfg.extend < 1:
                raise UserError("extend is no number of epochs", cfg.extend, "give 1 or more")
            if not (folder / "metrics.json").is_file():
                raise UserError("the run has not finished", str(folder), "go on with resume= alone, without extend=")
            extended.append(cfg.extend)
        epochs = cfg.trainer.max_epochs + sum(extended)
        bounds = nullcontext() if cfg.trust else within(Bounds(found["state_dict"].values()))
        return cls(folder, checkpoint, tuple(extended), epochs, cfg.extend is not None, bounds)

    def put_scores_aside(self) -> None:
        """Keep the scores of a run that is extended under another name, until there are new ones."""
        if self.scored:
            name = f"metrics_after_{self.epochs - self.extended[-1]}_epochs.json"
            move_into_place(self.folder / "metrics.json", self.folder / name, overwrite=True)


def resume_checkpoint(resume: str | None) -> Path | None:
    """The checkpoint that ``resume=`` names: a file, or the last one of a run folder.

    Raises:
        UserError: There is none.
    """
    if resume is None:
        return None
    path = Path(resume)
    path = path if path.is_file() else path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise UserError("nothing to resume from", str(resume), "name a run folder that has checkpoints/last.ckpt")
    return path
