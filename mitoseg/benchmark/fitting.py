"""One estimator of a benchmark: fitted, tuned, and asked for the masks of the regions that are scored.

neila/model/                 there once the estimator is fitted and tuned
    estimator                what it has saved
    training.json            what that cost
neila/predictions/test_0.tif
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mitoseg.benchmark.estimator import Estimator, make_estimator, read_regions
from mitoseg.benchmark.measure import Cost, stage
from mitoseg.benchmark.methods import Method
from mitoseg.benchmark.records import MODEL, prediction_path
from mitoseg.datasets import Region, Splits
from mitoseg.errors import UserError
from mitoseg.provenance import peak_memory
from mitoseg.storage import atomic_output, read_json, write_json
from mitoseg.volumes import create_volume

log = logging.getLogger(__name__)

SAVED, TRAINING = "estimator", "training.json"
OWN_NOTE = "trained here; every choice on the validation slabs"
GIVEN_NOTE = "given, not trained here; whether it has seen these voxels is not known"


def run_estimator(
    method: Method, splits: Splits, regions: Sequence[Region], folder: Path, *, part: str, show: bool = True
) -> dict[str, Any]:
    """Fit and tune, unless that is done, and write the masks.

    Args:
        method: With an estimator.
        splits: To learn from.
        regions: To predict.
        folder: The method's.
        part: Of the data that the regions are, for file names.
        show: Progress on the terminal.

    Returns:
        Costs and a note on the protocol.
    """
    record: dict[str, Any] = {"protocol": GIVEN_NOTE}
    estimator = make_estimator(method.name, method.estimator or {}, splits.voxel_size)
    if method.checkpoint is not None:
        estimator = load_estimator(estimator, Path(method.checkpoint))
    elif (folder / MODEL).is_dir():
        log.info("%s: fitted before", method.name)
        estimator = load_estimator(estimator, folder / MODEL / SAVED)
        record = read_json(folder / MODEL / TRAINING)
    else:
        record = fit(estimator, splits, folder / MODEL, show=show)
    total = Cost()
    for i, region in enumerate(regions):
        with stage(f"predicting {part}_{i}", show=show) as cost:
            write_mask(prediction_path(folder, part, i), estimator, region)
        total += cost
    before = record.get("peak_memory", {}).get("process", 0)
    memory = {"process": max(before, peak_memory()), "device": None}
    return {**record, **total.record("prediction"), "peak_memory": memory}


def fit(estimator: Estimator, splits: Splits, folder: Path, *, show: bool = True) -> dict[str, Any]:
    """Fit on the training regions, tune on the validation slabs, and save both with their cost.

    Args:
        estimator: Learns.
        splits: What from.
        folder: Appears when all is done.
        show: Progress on the terminal.
    """
    with stage("fitting", show=show) as fitting:
        estimator.fit(*read_regions(splits.train))
    with stage("tuning", show=show) as tuning:
        estimator.tune(*read_regions(splits.validation))
    record = {
        **(fitting + tuning).record("training"),
        **tuning.record("tuning"),
        "peak_memory": {"process": peak_memory(), "device": None},
        "protocol": OWN_NOTE,
    }
    with atomic_output(folder, overwrite=True) as temporary:
        temporary.mkdir()
        estimator.save(temporary / SAVED)
        write_json(temporary / TRAINING, record)
    return record


def check_saved(path: Path) -> None:
    """Refuse a fitted estimator that is not there.

    Raises:
        UserError: It is not.
    """
    if not path.exists():
        raise UserError("no such fitted estimator", str(path), "name what save wrote, RUN/METHOD/model/estimator")


def load_estimator(estimator: Estimator, path: Path) -> Estimator:
    """The estimator of the same class that was saved.

    Raises:
        UserError: There is none.
    """
    check_saved(path)
    return type(estimator).load(path)


def write_mask(path: Path, estimator: Estimator, region: Region) -> None:
    """Predict one region, from its file to the file of its mask.

    Raises:
        UserError: The estimator gives no mask of this shape.
    """
    mask_zyx = np.asarray(estimator.predict(region.read_image()))
    if mask_zyx.shape != region.box.shape or mask_zyx.dtype.kind not in "bu" or mask_zyx.max(initial=0) > 1:
        kind = type(estimator).__name__
        raise UserError(f"{kind}.predict gave no mask of 0 and 1", (mask_zyx.shape, str(mask_zyx.dtype)))
    path.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"voxel_size": region.image.voxel_size, "metadata": {"kind": "mask"}, "overwrite": True}
    with create_volume(str(path), region.box.shape, np.uint8, **options) as writer:
        writer.write(region.box.shift([-start for start in region.box.start]), mask_zyx.astype(np.uint8))
