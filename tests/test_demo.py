"""What the first command promises: the demo as it is typed, its bar, and the same bar for a grey threshold."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from skimage.morphology import disk, opening

from mitoseg.volumes import open_volume

ROOT = Path(__file__).parents[1]


def best_grey_jaccard(image_zyx, truth_zyx):
    """The best threshold on grey, from below or above, with an opening, all chosen on the very volume."""
    best = 0.0
    for grey in np.quantile(image_zyx, np.linspace(0.02, 0.5, 25)):
        dark = image_zyx <= grey
        for radius in (0, 2, 4):
            mask = np.stack([opening(m, disk(radius)) for m in dark]) if radius else dark
            best = max(best, np.count_nonzero(mask & truth_zyx) / np.count_nonzero(mask | truth_zyx))
    return best


@pytest.mark.slow
def test_the_demo_finds_mitochondria_that_a_threshold_does_not(tmp_path):
    """Foreground JAC at least 0.70, and 0.30 above the best threshold, which is under 0.35."""
    words = [f"data.root={tmp_path / 'phantom'}", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.rstrip().endswith("run")
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    held_out = next((tmp_path / "phantom").glob("*_seed1_*/image.tif")).parent
    image, truth = (open_volume(str(held_out / name)).read() for name in ("image.tif", "label.tif"))
    threshold = best_grey_jaccard(image[::4], truth[::4] > 0)
    assert threshold < 0.35
    assert scores["jaccard_foreground"] >= max(0.70, threshold + 0.30)
    assert list((tmp_path / "run" / "figures").rglob("*.png"))
