"""The bundled model that suits a volume, and the foreground JAC to expect of a prediction, both without labels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mitoseg.errors import UserError
from mitoseg.inference import Predictor
from mitoseg.inference.confidence import DOUBTFUL, SPREAD, Field, examine, expected_jaccard
from mitoseg.networks.checkpoint import DEFAULT, bundled, find_weights, load_model
from mitoseg.progress import waiting
from mitoseg.volumes import Volume
from mitoseg.workflows.session import prepare, quiet

log = logging.getLogger(__name__)

REMEDY = "look at the result, and fine-tune the model on a few annotated slices if it is wrong: docs/FINETUNING.md"


def choose_model(
    sources: Sequence[Volume], *, accelerator: str = "auto", normalize: str = "checkpoint", resample: object = "auto"
) -> str:
    """The name of the bundled model with the highest expected foreground JAC, pooled over volumes.

    Raises:
        UserError: ``accelerator``, ``normalize`` or ``resample`` is not a choice.
    """
    if not sources:
        return DEFAULT
    expected: dict[str, float] = {}
    given: dict[str, Any] = {"normalize": normalize, "resample": resample, "accelerator": accelerator}
    with waiting("trying the bundled models on a few fields"), quiet("mitoseg.inference"):
        for name in bundled():
            model, fields = load_model(find_weights(name)), list[Field]()
            for source in sources:
                fields += judge(prepare(model, source, **given).predictor)
            expected[name] = expected_jaccard(fields) or 0.0
    best = max(expected, key=lambda name: expected[name])
    told = ", ".join(f"{name} {jaccard:.2f}" for name, jaccard in expected.items())
    log.info("predicting with the bundled model %s; foreground JAC to expect without labels: %s", best, told)
    return best


def judge(predictor: Predictor) -> list[Field]:
    """Fields of a predictor's volume with what to expect there; none if the network takes larger volumes."""
    try:
        return list(examine(predictor))
    except UserError as error:  # a field with larger pixels may be smaller than the window of a network that fits
        log.info("the foreground JAC to expect is not known: %s", error)
        return []


def expected_score(fields: Sequence[Field]) -> tuple[str, dict[str, Any]]:
    """The foreground JAC to expect: a line for the user, and a record; empty where no field was judged."""
    if not fields:
        return "", {}
    jaccard = expected_jaccard(fields)
    each = [{"start": f.box.start, "stop": f.box.stop, "jaccard": expected_jaccard([f])} for f in fields]
    record = {"jaccard": jaccard, "doubtful": DOUBTFUL, "fields": each}
    if jaccard is None:
        return f"no mitochondria found in {len(fields)} fields of the volume: {REMEDY}", record
    low, high = max(0.0, jaccard - SPREAD), min(1.0, jaccard + SPREAD)
    line = f"expected foreground JAC {low:.2f} to {high:.2f} (from {len(fields)} fields, without labels)"
    if jaccard < DOUBTFUL:
        log.warning("the model does not seem to know this tissue; %s", line)
        line += f": {REMEDY}"
    return line, record
