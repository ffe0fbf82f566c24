"""The benchmark of training: that it runs, that its sides make the same blocks, and that its ratios are its own."""

import json

import pytest
import torch


@pytest.mark.filterwarnings("ignore")
def test_the_loop_and_the_delivery(scripts, tmp_path, capsys):
    before, out = torch.get_num_threads(), tmp_path / "out.json"  # what is timed is too small for two threads
    words = ["quick=true", "device=cpu", "threads=1", "batch=20", "networks=patch_cnn", "settings=fp32"]
    report = scripts("training").main(
        [*words, "recipes=paper", f"out={out}"]
    )  # in one thread: it is too small for two
    torch.set_num_threads(before)
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["threads"] == 1
    name = "patch_cnn paper fp32"
    found = written["training"][name]
    speed, turns = found["blocks_per_second"], found["turns_seconds"]
    assert speed["loop"] == pytest.approx(20 / min(turns["loop"]))
    assert {len(t) for t in turns.values()} == {2}
    assert written["loop_fraction_of_ceiling"][name] == pytest.approx(speed["loop"] / speed["bare"])
    assert written["train_over_conventional"][name] == pytest.approx(speed["loop"] / speed["conventional_train"])
    delivery = report["delivery"]["patch_cnn"]
    best = max(value for key, value in delivery["blocks_per_second"].items() if key != "ours")
    assert written["over_conventional"]["patch_cnn"] == pytest.approx(delivery["blocks_per_second"]["ours"] / best)
    assert all(difference < 1e-4 for difference in delivery["difference"].values())
    assert str(tmp_path) not in json.dumps(written["delivery"]) + json.dumps(written["training"])
    assert "these numbers say nothing" in capsys.readouterr().out


@pytest.mark.parametrize("more", [["data.label_rule=purity", "data.positions=grid"], ["network=context_cnn"]])
@pytest.mark.parametrize("augment", ["dihedral", "any_angle"])
def test_conventional_blocks_are_ours(scripts, tmp_path, augment, more):
    options = scripts("training").Options(quick=True)
    words = [*scripts("training").data_words(options, tmp_path), f"data.augment={augment}", *more]
    data = scripts("training_sides").make_data(scripts("training_sides").read_config([*words, "data.batch_size=20"]))
    for way in scripts("training_conventional").WAYS:
        assert scripts("training_conventional").largest_difference(data, way) < 1e-4


@pytest.mark.slow
def test_threads_beside_other_work(scripts, tmp_path, capsys):
    scripts("threads").main(["seconds=0.01", "turns=1", f"out={tmp_path / 'out.json'}"])
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["steps_per_second"]
    assert all(
        beside[side]["tiny"] > 0 for beside in found.values() for side in ("one", "default", "brief", "passive")
    )
    assert "a busy loop on each core" in capsys.readouterr().out
