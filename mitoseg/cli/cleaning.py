"""Post-processing of stored probabilities, for the commands that offer ``postprocess=``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation.decision import decide
from mitoseg.segmentation import Postprocess
from mitoseg.segmentation.clean_volume import Source, clean_volume
from mitoseg.storage import make_folders
from mitoseg.volumes import Volume


def chosen_steps(cfg: DictConfig) -> Postprocess | None:
    """What ``postprocess=`` asks for; None where it is no more than the threshold."""
    steps: Postprocess = instantiate(cfg.postprocess)
    return None if steps == Postprocess() else steps


@contextmanager
def cleaned(
    steps: Postprocess,
    prediction: Volume,
    folder: Path,
    *,
    image: Volume | None = None,
    threshold: float | None = None,
    kind: str | None = None,
    voxel_size: Sequence[float] | None = None,
    engine: Engine | None = None,
) -> Iterator[Volume]:
    """A stored probability as a clean mask, which lies in a folder of its own until it is no longer needed.

    Args:
        steps: What is done.
        prediction: Probabilities.
        folder: In which that folder is made; all processes of the engine must see it.
        image: The EM image, whose edges the watershed follows.
        threshold: Overrides that of the prediction.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: (z, y, x) in nm; None: the prediction's.
        engine: Started; None: this process.

    Raises:
        UserError: The prediction holds no probabilities, or a step cannot be taken.
    """
    decision = decide(prediction, threshold, kind)
    if decision.kind != "probability":
        raise UserError(
            "postprocess needs probabilities", decision.kind, "give postprocess=none, or the probabilities"
        )
    size = voxel_size or prediction.voxel_size
    steps.spacing(size)
    source = Source(prediction, decision.threshold, decision.scale, size, image)
    metadata = {"kind": "mask", "threshold": decision.threshold, "postprocess": asdict(steps)}
    make_folders(folder)
    with TemporaryDirectory(dir=folder, prefix=".cleaning.", ignore_cleanup_errors=True) as scratch:
        yield clean_volume(steps, source, Path(scratch), engine=engine, metadata=metadata)
