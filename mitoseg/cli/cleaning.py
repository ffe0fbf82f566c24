"""Post-processing of stored probabilities, for the commands that offer ``postprocess=``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from mitoseg.engines import Engine
from mitoseg.errors import UserError
from mitoseg.evaluation.decision import decide
from mitoseg.progress import progress
from mitoseg.segmentation import Postprocess
from mitoseg.segmentation.cleaning import BLOCK, Cleaner
from mitoseg.segmentation.postprocess import BYTES
from mitoseg.storage import scratch_folder
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
    show: bool = False,
) -> Iterator[Volume]:
    """A stored probability as a clean mask, block by block.

    Args:
        steps: What is done.
        prediction: Probabilities.
        folder: In which a large mask lies until the end of the block.
        image: The EM image, whose edges the watershed follows.
        threshold: Overrides that of the prediction.
        kind: Overrides what the prediction's metadata says it is.
        voxel_size: (z, y, x) in nm; None: the prediction's.
        engine: Started; None: this process. The workers of another one see ``folder``.
        show: Whether a progress bar is drawn.

    Raises:
        UserError: The prediction holds no probabilities, or a step cannot be taken.
    """
    decision = decide(prediction, threshold, kind)
    if decision.kind != "probability":
        raise UserError(
            "postprocess needs probabilities", decision.kind, "give postprocess=none, or the probabilities"
        )
    size = voxel_size or prediction.voxel_size
    with scratch_folder(folder / "cleaning") as scratch:
        cleaner = Cleaner(steps, scratch.absolute(), engine)
        if engine is not None:
            most = int(min(cleaner.in_memory, engine.item_bytes / BYTES))
            cleaner = replace(cleaner, block=engine.fit(BLOCK, 2 * BYTES), in_memory=most)  # twice: with the halo
        options = {"scale": decision.scale, "voxel_size": size, "image": image}
        with progress("post-processing", prediction.box.size, unit="voxels", show=show) as task:
            mask = cleaner(prediction, decision.threshold, **options, on_box=lambda box: task.advance(box.size))  # type: ignore[arg-type]
        metadata = {"kind": "mask", "threshold": decision.threshold, "postprocess": asdict(steps)}
        mask.info = replace(mask.info, path=prediction.path, voxel_size=prediction.voxel_size, metadata=metadata)
        yield mask
