"""The benchmark of size: its volumes, its line, and one small run."""

import json

import numpy as np
import pytest
from written import write

from mitoseg.volumes import ArrayVolume, open_volume


def test_the_image_is_the_source_continued_by_reflection(scripts, tmp_path):
    scale = scripts("scale")
    source = np.random.default_rng(0).integers(0, 255, (5, 30, 40), np.uint8)
    shape = scale.make_image(ArrayVolume(source), 0.1, 64, tmp_path / "a.zarr")
    assert shape == (24, 64, 64)
    made = open_volume(tmp_path / "a.zarr").read()
    np.testing.assert_array_equal(made, np.pad(source, ((0, 19), (0, 34), (0, 24)), "reflect"))


def test_objects_end_where_the_mask_is_folded(scripts, tmp_path):
    """Or a mitochondrion at a face, its mirror image, and so on, were one object as long as the volume."""
    volumes = scripts("scale_volumes")
    source = np.random.default_rng(0).random((5, 30, 40)) < 0.8
    assert volumes.make_mask(ArrayVolume(source), 0.1, 64, tmp_path / "a.zarr") == (24, 64, 64)
    expected = np.pad(source, ((0, 19), (0, 34), (0, 24)), "reflect")
    expected[4::4], expected[:, 29::29], expected[:, :, 39::39] = False, False, False
    made = open_volume(tmp_path / "a.zarr")
    np.testing.assert_array_equal(made.read(), expected)
    assert made.info.metadata["kind"] == "mask"


def test_a_stored_prediction_is_a_mask_by_its_threshold(scripts, tmp_path):
    probability = np.random.default_rng(0).random((2, 3, 4), np.float32)
    path = write(tmp_path / "p.tif", probability, kind="probability", threshold=0.3)
    found = scripts("scale_volumes").find_mask(path)
    np.testing.assert_array_equal(found.read(), probability >= np.float32(0.3))


def test_deviation_from_a_line(scripts):
    for seconds, expected in (([2.0, 4.0, 6.0], 0.0), ([1.0, 1.0, 1.0], 0.0), ([1.0, 2.0, 2.0], 4 / 21)):
        assert scripts("scale").deviation([1, 2, 3], seconds) == pytest.approx(expected)


@pytest.mark.slow
def test_a_small_run(scripts, tmp_path, capsys):
    words = ["megabytes=[0.02,0.04]", "side=64", "threads=1", f"out={tmp_path / 'a.json'}", "memory=4GB"]
    scripts("scale").main([*words, "steps=[predict,label,measure]"])
    told = capsys.readouterr().out
    assert all(f"{step} 0.04 MB:" in told for step in ("predict", "label", "measure"))
    assert "of a line, peaks within" in told
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [row["shape"] for row in rows] == 3 * [[5, 64, 64]] + 3 * [[10, 64, 64]]
    assert all(row["peak"] > 1e8 for row in rows)
