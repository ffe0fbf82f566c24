"""After training: the best checkpoint on the validation slabs and, once, on the test volume."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mitoseg.datasets import Region, Splits
from mitoseg.evaluation import Evaluation, evaluate, pool_evaluations
from mitoseg.evaluation.figures import save_curves
from mitoseg.evaluation.figures import save_overlays as draw_overlays
from mitoseg.evaluation.table import score_table
from mitoseg.inference import Prediction, predict_volume
from mitoseg.inference.prepare import make_prediction
from mitoseg.networks.checkpoint import load_model
from mitoseg.progress import Tell, progress, waiting
from mitoseg.segmentation import Postprocess
from mitoseg.storage import write_json
from mitoseg.training.module import finish_checkpoint
from mitoseg.volumes import ArrayVolume, Volume, create_volume, open_volume
from mitoseg.volumes.padding import as_stored
from mitoseg.workflows.options import EnsembleOptions
from mitoseg.workflows.session import chosen_steps, cleaned


def score_checkpoint(
    path: Path,
    folder: Path,
    splits: Splits,
    options: DictConfig | EnsembleOptions,
    tell: Tell,
    *,
    accelerator: str,
    trust: bool,
) -> dict[str, Evaluation]:
    """Finish a checkpoint on validation, predict and score validation and test; write ``metrics.json`` and figures.

    The checkpoint gets its calibration and threshold. Figures, and ``save_overlays`` slices, show the last part.
    Returns the content of ``metrics.json``: scores by part, with post-processing also of ``validation_clean`` and so
    on.
    """
    parts = {"validation": splits.validation}
    if options.test and splits.test:
        parts["test"] = splits.test
    steps = chosen_steps(options.postprocess)
    given: dict[str, Any] = {"method": options.method, "accelerator": accelerator}
    with waiting("choosing the threshold on validation"):
        finish_checkpoint(path, make_prediction(load_model(path, trust=trust), **given), splits.validation)
    prediction = make_prediction(load_model(path, trust=trust), **given)
    metrics: dict[str, Evaluation] = {}
    for name, regions in parts.items():
        for i, region in enumerate(regions):
            predict_region(_path(folder, f"{name}_{i}"), region, prediction, f"{name}_{i}")
        metrics[name] = _score(folder, name, regions)
    if steps is not None:
        metrics |= {f"{name}_clean": _score(folder, name, regions, steps) for name, regions in parts.items()}
    write_json(folder / "metrics.json", metrics)
    shown = next(reversed(parts))
    if options.figures:
        save_curves(folder / "figures", metrics[shown], title=shown)
    for i, region in enumerate(parts[shown] if options.save_overlays else ()):
        result = open_volume(_path(folder, f"{shown}_{i}"))
        image = ArrayVolume(as_stored(region.image).read(region.box), result.voxel_size)
        place = folder / "figures" / f"{shown}_{i}"
        draw_overlays(place, image, _truth(region, result), result, count=options.save_overlays)
    for name, scores in metrics.items():
        tell(score_table(scores, title=name))
    tell(f"JAC of mitochondria, {shown}: {metrics[shown]['jaccard_foreground']:.3f}")
    return metrics


def predict_region(path: Path, region: Region, prediction: Prediction, title: str, *, show: bool = True) -> None:
    """Predict one region into a file, with a progress bar; an existing file is replaced."""
    path.parent.mkdir(exist_ok=True)
    about: dict[str, Any] = {"voxel_size": region.image.voxel_size, "metadata": prediction.metadata}
    with (
        create_volume(str(path), region.box.shape, prediction.dtype, overwrite=True, **about) as writer,
        progress(f"predicting {title}", region.box.size, unit="voxels", show=show) as task,
    ):
        predict_volume(prediction, region.image, writer, box=region.box, on_tile=lambda part: task.advance(part.size))


def _score(folder: Path, name: str, regions: Sequence[Region], steps: Postprocess | None = None) -> Evaluation:
    """Scores of the predictions of a part, post-processed if there are ``steps``."""
    found = []
    for i, region in enumerate(regions):
        result = open_volume(_path(folder, f"{name}_{i}"))
        with ExitStack() as stack:
            if steps is not None:
                image = ArrayVolume(region.read_image(), result.voxel_size)
                result = stack.enter_context(cleaned(steps, result, folder, image=image))
            found.append(evaluate(result, _truth(region, result)))
    return pool_evaluations(found)


def _path(folder: Path, name: str) -> Path:
    return folder / "predictions" / f"{name}.tif"


def _truth(region: Region, result: Volume) -> Volume:
    return ArrayVolume(region.read_label(), result.voxel_size, region.label.path)
