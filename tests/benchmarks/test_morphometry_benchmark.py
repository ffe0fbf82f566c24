"""The benchmark of measuring: it counts what it made, and writes what it prints."""

import json

import numpy as np


def test_tubes_are_apart_and_numbered(scripts):
    labels_zyx = scripts("morphometry").tubes(10)
    assert np.unique(labels_zyx).tolist() == list(range(11))
    assert np.bincount(labels_zyx.ravel())[1:].min() > 500


def test_numbers(scripts, tmp_path, capsys):
    result = scripts("morphometry").main(["objects=8", "image=false", f"out={tmp_path / 'a.json'}"])
    assert "8 objects in 2 million voxels" in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["ratio"] == result["ratio"]
    assert written["ratio"] > 0
