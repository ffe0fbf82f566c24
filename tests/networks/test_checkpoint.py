"""A checkpoint is data: nothing that it names may run."""

import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mitoseg.errors import UserError
from mitoseg.networks import PatchCNN
from mitoseg.networks.checkpoint import FORMAT, KEY, build_network, load_model

PATCH = {"_target_": "mitoseg.networks.PatchCNN", "in_channels": 3, "classes": 2}


def record(**changes):
    return {
        "format": FORMAT,
        "network": PATCH,
        "normalization": {"mean": 120.0, "std": 30.0},
        "channels": "adjacent",
        "voxel_size": [5.0, 5.0, 5.0],
        "calibration": {"prior_shift": -2.0, "temperature": 1.1, "bias": 0.1},
        "threshold": 0.4,
    } | changes


def save(path, entry, network=None):
    weights = {f"network.{k}": v for k, v in (network or PatchCNN()).state_dict().items()}
    torch.save({"state_dict": weights, KEY: entry}, path)
    return path


def test_round_trip(tmp_path):
    network = PatchCNN()
    model = load_model(save(tmp_path / "a.ckpt", record(), network))
    assert model.threshold == 0.4
    assert model.voxel_size == (5.0, 5.0, 5.0)
    assert model.channels == "adjacent"
    assert not model.network.training
    for mine, theirs in zip(network.parameters(), model.network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_monai_networks_are_allowed():
    config = {"_target_": "monai.networks.nets.BasicUNet", "spatial_dims": 2, "in_channels": 3, "out_channels": 2}
    assert isinstance(build_network(config), torch.nn.Module)


HOSTILE = [
    {"_target_": "os.system", "command": "touch pwned"},
    {"_target_": "builtins.eval", "source": "open('pwned', 'w')"},
    {"_target_": "builtins.exec"},
    {"_target_": "subprocess.Popen", "args": ["touch", "pwned"]},
    {"_target_": "torch.nn.Sequential"},
    {"_target_": "mitoseg.networks.checkpoint.importlib.import_module", "name": "antigravity"},
    {"_target_": "mitoseg.networks.checkpoint.torch.load", "f": "pwned"},
    {"_target_": "mitoseg.networks.checkpoint.load_model", "path": "pwned"},
    {"_target_": "mitoseg.networks.checkpoint.nn.Sequential"},
    {"_target_": "mitoseg.networks.checkpoint.Path", "_args_": ["pwned"]},
    {"_target_": "mitoseg.networks.patch_cnn.nn.Module"},
    {"_target_": "mitoseg.networks_evil.Net"},
    {"_target_": "mitoseg.cli.main.main"},
    {"_target_": "hydra.utils.call", "config": {"_target_": "os.getcwd"}},
    {"_target_": "hydra.utils.get_object", "path": "os.system"},
    {"_target_": None},
    {},
    PATCH | {"in_channels": {"_target_": "os.system", "command": "touch pwned"}},
    PATCH | {"in_channels": [{"_target_": "builtins.eval"}]},
    PATCH | {"in_channels": "${oc.env:HOME}"},
    PATCH | {"in_channels": ["${oc.env:HOME}"]},
    PATCH | {"_args_": [3]},
    PATCH | {"_partial_": True},
    PATCH | {"_recursive_": False},
    PATCH | {"_convert_": "all"},
]


@pytest.mark.parametrize("config", HOSTILE, ids=lambda c: str(c)[:60])
def test_hostile_config_runs_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path / "hostile.ckpt", record(network=config))
    with pytest.raises(UserError):
        load_model(path)
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.ckpt"]


def test_trust_allows_other_modules_but_not_other_things():
    linear = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}
    assert isinstance(build_network(linear, trust=True), torch.nn.Linear)
    with pytest.raises(UserError, match="not a torch module"):
        build_network({"_target_": "os.system", "command": "true"}, trust=True)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_hostile_pickle_does_not_run(tmp_path):
    path = tmp_path / "bomb.ckpt"
    torch.save({"state_dict": {}, KEY: Bomb(tmp_path / "pwned")}, path)
    with pytest.raises(UserError, match="safe to load"):
        load_model(path)
    assert not (tmp_path / "pwned").exists()


def garbage(path):
    path.write_bytes(b"not a checkpoint")


def empty(path):
    path.touch()


def plain_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def someone_elses(path):
    torch.save({"state_dict": {}}, path)


def a_tensor(path):
    torch.save(torch.zeros(3), path)


def newer(path):
    save(path, record(format=FORMAT + 1))


def incomplete(path):
    entry = record()
    del entry["normalization"]
    save(path, entry)


def other_weights(path):
    save(path, record(), PatchCNN(1))


@pytest.mark.parametrize(
    "make", [garbage, empty, plain_pickle, someone_elses, a_tensor, newer, incomplete, other_weights]
)
def test_a_checkpoint_that_is_not_ours(make, tmp_path):
    path = tmp_path / "some.ckpt"
    make(path)
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_an_older_format_is_brought_up_to_date(tmp_path):
    """Format 1 knew neither the prediction method nor what lower precision costs."""
    old = {k: v for k, v in record(format=1).items() if k not in {"method", "precision", "version"}}
    save(tmp_path / "old.ckpt", old)
    model = load_model(tmp_path / "old.ckpt")
    assert [model.record[k] for k in ("format", "method", "precision", "version")] == [FORMAT, "auto", {}, None]


@pytest.mark.parametrize(
    ("found", "remedy"), [(FORMAT + 1, "upgrade mitoseg"), (0, "train again"), ("x", "train again")]
)
def test_a_format_that_cannot_be_read_says_what_to_do(found, remedy, tmp_path):
    save(tmp_path / "odd.ckpt", record(format=found))
    with pytest.raises(UserError, match=remedy):
        load_model(tmp_path / "odd.ckpt")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_model(tmp_path / "none.ckpt")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), st.text(alphabet="sometething else\n.(l}]", max_size=30).map(str.encode)))
def test_any_bytes_are_refused_in_one_line(tmp_path, data):
    path = tmp_path / "any.ckpt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"not a checkpoint|not written by mitoseg"):
        load_model(path)
