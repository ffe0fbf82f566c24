"""The benchmark of prediction: that it runs, that its ratios are those of its seconds, and what it counts."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from written import write


@pytest.fixture
def words(tmp_path):
    """A command line whose slices are small, in one thread: two wait for each other where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    image_zyx = np.random.default_rng(0).integers(0, 256, (4, 80, 96), dtype=np.uint8)
    path = write(tmp_path / "image.tif", image_zyx, (5.0, 5.0, 5.0))
    yield [f"data={path}", "slices=5", "slice=72,96", "quick=true", "devices=cpu", f"out={tmp_path / 'out.json'}"]
    torch.set_num_threads(before)


def test_all_parts_but_the_command(scripts, words, tmp_path, capsys):
    report = scripts("inference").main([*words, "parts=window,dense,strided", "settings=fp32_eager"])
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert written["slice"] == [72, 96]
    assert str(tmp_path) not in json.dumps(written)
    for network in ("patch_cnn", "context_cnn"):
        assert written["fastest_setting"][network] == "fp32_eager"
        numbers, operations = written["per_setting"][network]["fp32_eager"], written["operations"][network]
        seconds = numbers["seconds_per_slice"]
        gain = seconds["window"] / seconds["dense"]
        assert written["dense_over_window"][network] == pytest.approx(gain)
        share = gain * operations["dense_without_halo"] / operations["window"]
        assert written["dense_over_window_of_arithmetic"][network] == pytest.approx(share)
        assert written["strided_over_dense"][network] == pytest.approx(seconds["dense"] / seconds["strided"])
        share = operations["dense"] / seconds["dense"] / numbers["ceiling_flops"]
        assert written["dense_fraction_of_ceiling"][network] == pytest.approx(share)
        assert written["dense_over_window_fp32"][network] > 0
        assert numbers["megapixels_per_second"]["dense"] == pytest.approx(72 * 96 / 1e6 / seconds["dense"])
    assert report["predict_fraction_of_network"] == {}
    assert "not measured" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_and_compiled_code(scripts, words):
    report = scripts("inference").main([*words, "networks=patch_cnn", "settings=fp32_compiled", "parts=dense,predict"])
    found = report["predict"]["patch_cnn"]
    assert found["chosen"]["method"] == "dense"
    assert found["setting"] in {"bf16_eager", "fp32_eager"}, "a small volume is not worth compiling"
    share = 5 * found["dense_seconds_per_slice"] / found["seconds"]
    assert report["predict_fraction_of_network"]["patch_cnn"] == pytest.approx(share)
    assert report["fastest_setting"] == {"patch_cnn": "fp32_compiled"}


def test_turns_work_and_limits(scripts):
    timing, made = scripts("timing"), []
    sides = {name: timing.Side(lambda name=name: made.append(name)) for name in "ab"}
    turns = timing.take_turns(sides, torch.device("cpu"), timing.Sample(seconds=0, turns=3))
    assert "".join(made) == "aaabbb" + "ababab"
    assert all(len(found) == 3 and found.best <= found.median for found in turns.values())
    layer, image = nn.Conv2d(3, 4, 5, bias=False, device="meta"), torch.empty(1, 3, 12, 14, device="meta")
    work = timing.count_work(lambda: layer(image[:, :, 2:]))
    assert work["operations"] == 2 * 75 * 4 * 6 * 10
    assert work["bytes"] == 4 * (3 * 10 * 14 + 4 * 75 + 4 * 6 * 10)
    found = {"operations": 1e15, "bytes_of_layers": 4e12, "bytes_per_second": 2e12, "link_seconds": 0.5}
    assert list(scripts("inference_command").limits(found, 5e14).values()) == [2.0, 2.0, 0.5]


def test_a_u_net_beside_monai(scripts, real_data, tmp_path):
    words = ["slices=1", "side=256", "seconds=0.01", "turns=1", "precision=fp32", f"out={tmp_path / 'out.json'}"]
    report = scripts("unet_prediction").main(words)
    written, seconds = json.loads((tmp_path / "out.json").read_text(encoding="utf-8")), report["seconds"]
    assert written["speed_over_monai"] == pytest.approx(seconds["monai"] / seconds["mitoseg"])
    assert written["jaccard_foreground"]["same tiles"] == pytest.approx(
        written["jaccard_foreground"]["monai"], abs=0.01
    )
