"""What a package says to its reader."""

from __future__ import annotations

from mitoseg.export.forms import Form
from mitoseg.export.onnx_file import described
from mitoseg.networks.checkpoint import Model
from mitoseg.volumes import CHANNEL_OFFSETS

_TEXT = """# {name}

Give it a stack of electron micrographs (z, y, x) as it is; you get the probability of mitochondrion for every voxel.

## What goes in, what comes out

- input `image`: {taken}; one channel, grey values as they are stored, float32. Do not normalise: that is in the
  weights (mean {mean:.1f}, standard deviation {std:.1f}). Bring a volume with other grey values to these.
- output `probability`: {given}; calibrated, from 0 to 1. Mitochondria are voxels at {threshold:.3f} and above.
- voxel size of the training volume (z, y, x): {voxels}. Resample others to it.
- slices seen for each slice: {slices}; where one is missing, the slice itself.
- Pieces of a stack must overlap: cut {halo} voxels (z, y, x) on each side; programs that know bioimage.io do so. The
  first and last slices of a stack, padded by reflection then, may differ a little from what mitoseg writes there.

## Use

    bioimageio test package.zip
    bioimageio predict package.zip

Or in ilastik and deepImageJ: choose the zip as a local model.

## Validation

Label a few slices, predict them, and compare: `mitoseg evaluate prediction=OUT truth=LABELS` prints the Jaccard index
of mitochondria, of background and their mean. The scores below are those of the training run.

"""


def document(name: str, model: Model, form: Form, card: str) -> str:
    """Markdown: what goes in and comes out, how it is used and judged, then the model's card.

    Args:
        name: Title.
        model: The network and what it needs.
        form: The form of the weights.
        card: Of `mitoseg.export.model_card`; its headings go one level down.
    """
    taken, given = described(form)
    head = _TEXT.format(
        name=name,
        taken=taken,
        given=given,
        mean=model.normalization["mean"],
        std=model.normalization["std"],
        threshold=model.threshold,
        voxels="not recorded" if model.voxel_size is None else " x ".join(f"{v:g}" for v in model.voxel_size) + " nm",
        slices=", ".join(f"{n:+d}" if n else "0" for n in CHANNEL_OFFSETS[model.channels]),
        halo=" x ".join(map(str, form.sizes.halo)),
    )
    lower = [f"#{line}" if line.startswith("#") else line for line in card.splitlines()]
    return head + "\n".join(lower) + "\n"
