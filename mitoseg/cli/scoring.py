"""After training: the best checkpoint on the validation slabs and, once, on the test volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from mitoseg.cli.cleaning import chosen_steps, clean
from mitoseg.cli.prediction import make_prediction, predict_with_progress
from mitoseg.datasets import Region, Splits
from mitoseg.evaluation import Evaluation, evaluate, pool_evaluations, save_curves, save_overlays, score_table
from mitoseg.inference import Prediction
from mitoseg.networks.checkpoint import load_model
from mitoseg.segmentation import Postprocess
from mitoseg.storage import write_json
from mitoseg.training.finish import finish_checkpoint
from mitoseg.volumes import ArrayVolume, Volume, create_volume, open_volume


def score_run(folder: Path, splits: Splits, cfg: DictConfig) -> dict[str, Evaluation]:
    """Finish ``best.ckpt`` on validation, predict and score validation and test; write ``metrics.json`` and figures.

    Args:
        folder: The run's folder.
        splits: Regions to score.
        cfg: The composed training config: ``test``, ``figures``, ``save_overlays``, ``method``.

    Returns:
        What ``metrics.json`` holds: the keys of `evaluate` under ``validation`` and ``test``, and, with
        post-processing, under ``validation_clean`` and ``test_clean``.
    """
    parts = {"validation": splits.validation}
    if cfg.test and splits.test:
        parts["test"] = splits.test
    best = folder / "checkpoints" / "best.ckpt"
    options = {"method": cfg.method, "accelerator": cfg.trainer.accelerator}
    finish_checkpoint(best, make_prediction(load_model(best), **options), splits.validation)
    prediction = make_prediction(load_model(best), **options)
    metrics = {
        name: pool_evaluations([_score(folder, f"{name}_{i}", region, prediction) for i, region in enumerate(regions)])
        for name, regions in parts.items()
    }
    shown = next(reversed(parts))
    if (steps := chosen_steps(cfg)) is not None:
        metrics |= {f"{name}_clean": _score_clean(folder, name, parts[name], steps) for name in parts}
    write_json(folder / "metrics.json", metrics)
    if cfg.figures:
        save_curves(folder / "figures", metrics[shown], title=shown)
    for i, region in enumerate(parts[shown] if cfg.save_overlays else ()):
        result = open_volume(str(_prediction_path(folder, f"{shown}_{i}")))
        image = ArrayVolume(region.read_image(), result.voxel_size)
        figures = folder / "figures" / f"{shown}_{i}"
        save_overlays(figures, image, _truth(region, result), result, count=cfg.save_overlays)
    console = Console()
    for name, scores in metrics.items():
        console.print(score_table(scores, title=name))
    console.print(f"JAC of mitochondria, {shown}: {metrics[shown]['jaccard_foreground']:.3f}")
    return metrics


def _score(folder: Path, name: str, region: Region, prediction: Prediction) -> Evaluation:
    path = _prediction_path(folder, name)
    path.parent.mkdir(exist_ok=True)
    with create_volume(
        str(path),
        region.box.shape,
        prediction.dtype,
        voxel_size=region.image.voxel_size,
        metadata=prediction.metadata,
        overwrite=True,
    ) as writer:
        predict_with_progress(prediction, region.image, writer, box=region.box, title=name)
    result = open_volume(str(path))
    return evaluate(result, _truth(region, result))


def _score_clean(folder: Path, name: str, regions: Sequence[Region], steps: Postprocess) -> Evaluation:
    """Scores of what was predicted, after post-processing."""
    found = []
    for i, region in enumerate(regions):
        result = open_volume(str(_prediction_path(folder, f"{name}_{i}")))
        image = ArrayVolume(region.read_image(), result.voxel_size)
        found.append(evaluate(clean(steps, result, image=image), _truth(region, result)))
    return pool_evaluations(found)


def _prediction_path(folder: Path, name: str) -> Path:
    return folder / "predictions" / f"{name}.tif"


def _truth(region: Region, result: Volume) -> Volume:
    return ArrayVolume(region.read_label(), result.voxel_size, region.label.path)
