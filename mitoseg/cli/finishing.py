"""The last step of ``predict``: from the tiles of a network to what was asked for."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np

from mitoseg.cli.cleaning import cleaned
from mitoseg.engines import Engine
from mitoseg.evaluation.decision import decide
from mitoseg.evaluation.instances import label_prediction
from mitoseg.inference import Predictor
from mitoseg.segmentation import Labelling, Postprocess, write_instances
from mitoseg.segmentation.block_writing import write_blocks
from mitoseg.segmentation.labelling import BLOCK
from mitoseg.volumes import Volume, VolumeWriter
from mitoseg.volumes.staging import StagedVolume

log = logging.getLogger(__name__)


def finish_mask(
    steps: Postprocess, predictor: Predictor, stage: StagedVolume, *, image: Volume, engine: Engine
) -> None:
    """Write the mask that post-processing makes of all probabilities; ``image`` has the output's grid."""
    log.info("post-processing")

    def write(tiles: Volume, writer: VolumeWriter) -> None:
        with cleaned(steps, tiles, stage.folder, image=image, engine=engine) as mask:
            write_blocks(mask, BLOCK, writer, engine=engine)

    stage.finish_as(write, np.dtype(np.uint8), {**_about(predictor), "kind": "mask", "postprocess": asdict(steps)})


def finish_instances(
    steps: Postprocess | None,
    labelling: Labelling,
    predictor: Predictor,
    stage: StagedVolume,
    *,
    image: Volume,
    engine: Engine,
) -> None:
    """Write the instances of the mask, block by block."""
    log.info("numbering mitochondria")

    def write(tiles: Volume, writer: VolumeWriter) -> None:
        options: dict[str, Any] = {"image": image, "engine": engine}
        with nullcontext(tiles) if steps is None else cleaned(steps, tiles, stage.folder, **options) as mask:
            instances = label_prediction(mask, decide(mask), labelling, engine=engine)
            write_instances(instances, writer, engine=engine)
        log.info("%d mitochondria, %d of them cut by the border", len(instances), instances.touches_border.sum())

    about = {**_about(predictor), "kind": "instances", "labelling": asdict(labelling)}
    if steps is not None:
        about["postprocess"] = asdict(steps)
    stage.finish_as(write, np.dtype(np.uint32), about)


def _about(predictor: Predictor) -> dict[str, Any]:
    return {"threshold": predictor.prediction.threshold, "scale": 1}
