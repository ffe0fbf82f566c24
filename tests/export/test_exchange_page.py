"""The Python that docs/EXCHANGE.md prints runs, and gives what mitoseg gives."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from exported_models import block_model, grey_volume, predicted, unet_model

from mitoseg.export import export_onnx

PAGE = Path(__file__).parents[2] / "docs" / "EXCHANGE.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("form", ["dense", "tile"])
def test_ten_lines_of_onnxruntime(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = block_model() if form == "dense" else unet_model(channels="adjacent5")
    image = grey_volume((5, 64, 72))
    tifffile.imwrite("stack.tif", image)
    right = predicted(model, image, **({} if form == "dense" else {"tile": [1, 64, 72]}))[2]
    model = replace(model, threshold=float(np.median(right)))
    export_onnx(model, "model.onnx", form=form)
    assert len(BLOCKS[0].strip().splitlines()) - BLOCKS[0].count("import ") <= 10
    exec(BLOCKS[0], {})
    mask, sure = tifffile.imread("mask.tif"), np.abs(right - model.threshold) > 1e-4
    assert sure.mean() > 0.9
    assert 0.3 < mask.mean() < 0.7
    np.testing.assert_array_equal(mask[sure], (right >= model.threshold)[sure])
