"""The last step of ``predict``: from the tiles of a network to what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mitoseg.cli.cleaning import cleaned
from mitoseg.engines import Engine
from mitoseg.evaluation.decision import decide
from mitoseg.evaluation.instances import label_prediction
from mitoseg.inference import Predictor
from mitoseg.segmentation import Labelling, Postprocess, write_instances
from mitoseg.segmentation.block_writing import write_blocks
from mitoseg.segmentation.cleaning import BLOCK
from mitoseg.volumes import Volume, VolumeWriter
from mitoseg.volumes.padding import blanked
from mitoseg.volumes.staging import StagedVolume

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finisher:
    """Makes of all tiles what was asked for.

    Attributes:
        predictor: That made the tiles.
        stage: That holds them.
        image: The EM image on the output's grid.
        engine: Started.
        show: Whether progress bars are drawn.
    """

    predictor: Predictor
    stage: StagedVolume
    image: Volume
    engine: Engine
    show: bool

    def write_mask(self, steps: Postprocess) -> None:
        """Write the mask that post-processing makes of the probabilities."""

        def write(tiles_zyx: Volume, writer: VolumeWriter) -> None:
            with self._mask(steps, tiles_zyx) as mask:
                write_blocks(mask, BLOCK, writer, engine=self.engine)

        about = {**self._about, "kind": "mask", "postprocess": asdict(steps)}
        self.stage.finish_as(write, np.dtype(np.uint8), about)

    def write_instances(self, steps: Postprocess | None, labelling: Labelling) -> None:
        """Write the instances of the mask."""

        def write(tiles_zyx: Volume, writer: VolumeWriter) -> None:
            with self._mask(steps, tiles_zyx) as mask:
                log.info("numbering mitochondria")
                instances = label_prediction(mask, decide(mask), labelling, engine=self.engine)
                write_instances(instances, writer, engine=self.engine)
            log.info("%d mitochondria, %d of them cut by the border", len(instances), instances.touches_border.sum())

        about = {**self._about, "kind": "instances", "labelling": asdict(labelling)}
        if steps is not None:
            about["postprocess"] = asdict(steps)
        self.stage.finish_as(write, np.dtype(np.uint32), about)

    @contextmanager
    def _mask(self, steps: Postprocess | None, tiles_zyx: Volume) -> Iterator[Volume]:
        """What the network gave, or the mask that post-processing makes of it, in tissue alone."""
        if steps is None:
            yield tiles_zyx
            return
        options = {"image": self.image, "engine": self.engine, "show": self.show}
        with cleaned(steps, tiles_zyx, self.stage.folder, **options) as mask:  # type: ignore[arg-type]
            yield blanked(mask, self.image.padding)

    @property
    def _about(self) -> dict[str, Any]:
        return {"threshold": self.predictor.prediction.threshold, "scale": 1, **self.stage.found}
