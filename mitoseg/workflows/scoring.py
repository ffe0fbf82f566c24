"""After training: the best checkpoint on the validation slabs and, once, on the test volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mitoseg.datasets import Region, Splits
from mitoseg.errors import UserError
from mitoseg.evaluation import Evaluation, evaluate, pool_evaluations
from mitoseg.evaluation.figures import save_curves
from mitoseg.evaluation.figures import save_overlays as draw_overlays
from mitoseg.evaluation.table import score_table
from mitoseg.inference import Prediction, predict_volume
from mitoseg.inference.prepare import make_prediction
from mitoseg.networks.checkpoint import KEY, load_model, read_checkpoint
from mitoseg.progress import Tell, progress, waiting
from mitoseg.segmentation import Postprocess
from mitoseg.storage import write_json
from mitoseg.training.module import finish_checkpoint
from mitoseg.volumes import ArrayVolume, Volume, create_volume, open_volume
from mitoseg.volumes.padding import as_stored
from mitoseg.workflows.session import chosen_steps, cleaned


def score_run(
    folder: Path, splits: Splits, cfg: DictConfig, network: Mapping[str, Any], tell: Tell
) -> dict[str, Evaluation]:
    """Call `score_checkpoint` for the ``best.ckpt`` of a training run.

    A class from outside mitoseg is trusted if the run has built its own network, configured by ``network``, from it.
    """
    best = folder / "checkpoints" / "best.ckpt"
    if not best.is_file():
        remedy = "train longer, or validate sooner with trainer.val_check_interval=STEPS"
        raise UserError("training ended before its first validation", f"epochs={cfg.epochs}", remedy)
    return score_checkpoint(
        best,
        folder,
        splits,
        accelerator=cfg.trainer.accelerator,
        tell=tell,
        steps=chosen_steps(cfg.postprocess),
        trust=read_checkpoint(best)[KEY].get("network") == network,
        **{key: cfg[key] for key in ("method", "test", "figures", "save_overlays")},
    )


def score_checkpoint(
    path: Path,
    folder: Path,
    splits: Splits,
    *,
    method: str,
    accelerator: str,
    tell: Tell,
    test: bool,
    figures: bool,
    save_overlays: int,
    steps: Postprocess | None = None,
    trust: bool = False,
) -> dict[str, Evaluation]:
    """Finish a checkpoint on validation, predict and score validation and test; write ``metrics.json`` and figures.

    The checkpoint gets its calibration and threshold. Figures, and ``save_overlays`` slices, show the last part.
    Returns the content of ``metrics.json``: scores by part, with post-processing also of ``validation_clean`` and so
    on.
    """
    parts = {"validation": splits.validation}
    if test and splits.test:
        parts["test"] = splits.test
    options: dict[str, Any] = {"method": method, "accelerator": accelerator}
    with waiting("choosing the threshold on validation"):
        finish_checkpoint(path, make_prediction(load_model(path, trust=trust), **options), splits.validation)
    prediction = make_prediction(load_model(path, trust=trust), **options)
    metrics = {
        name: pool_evaluations([_score(folder, f"{name}_{i}", region, prediction) for i, region in enumerate(regions)])
        for name, regions in parts.items()
    }
    shown = next(reversed(parts))
    if steps is not None:
        metrics |= {f"{name}_clean": _score_clean(folder, name, parts[name], steps) for name in parts}
    write_json(folder / "metrics.json", metrics)
    if figures:
        save_curves(folder / "figures", metrics[shown], title=shown)
    for i, region in enumerate(parts[shown] if save_overlays else ()):
        result = open_volume(str(_prediction_path(folder, f"{shown}_{i}")))
        image = ArrayVolume(as_stored(region.image).read(region.box), result.voxel_size)
        draw_overlays(folder / "figures" / f"{shown}_{i}", image, _truth(region, result), result, count=save_overlays)
    for name, scores in metrics.items():
        tell(score_table(scores, title=name))
    tell(f"JAC of mitochondria, {shown}: {metrics[shown]['jaccard_foreground']:.3f}")
    return metrics


def _score(folder: Path, name: str, region: Region, prediction: Prediction) -> Evaluation:
    path = _prediction_path(folder, name)
    predict_region(path, region, prediction, name)
    result = open_volume(str(path))
    return evaluate(result, _truth(region, result))


def predict_region(path: Path, region: Region, prediction: Prediction, title: str, *, show: bool = True) -> None:
    """Predict one region into a file, with a progress bar; an existing file is replaced."""
    path.parent.mkdir(exist_ok=True)
    about: dict[str, Any] = {"voxel_size": region.image.voxel_size, "metadata": prediction.metadata}
    with (
        create_volume(str(path), region.box.shape, prediction.dtype, overwrite=True, **about) as writer,
        progress(f"predicting {title}", region.box.size, unit="voxels", show=show) as task,
    ):
        predict_volume(prediction, region.image, writer, box=region.box, on_tile=lambda part: task.advance(part.size))


def _score_clean(folder: Path, name: str, regions: Sequence[Region], steps: Postprocess) -> Evaluation:
    found = []
    for i, region in enumerate(regions):
        result = open_volume(str(_prediction_path(folder, f"{name}_{i}")))
        image = ArrayVolume(region.read_image(), result.voxel_size)
        with cleaned(steps, result, folder, image=image) as mask:
            found.append(evaluate(mask, _truth(region, result)))
    return pool_evaluations(found)


def _prediction_path(folder: Path, name: str) -> Path:
    return folder / "predictions" / f"{name}.tif"


def _truth(region: Region, result: Volume) -> Volume:
    return ArrayVolume(region.read_label(), result.voxel_size, region.label.path)
