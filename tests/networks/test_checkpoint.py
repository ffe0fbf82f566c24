"""A checkpoint is data: nothing that it names may run."""

import importlib
import pickle
import random
import shutil
import socket
import time
import urllib.request
import zipfile
from contextlib import nullcontext

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from mitoseg.errors import UserError
from mitoseg.inference.prepare import make_prediction
from mitoseg.networks import PatchCNN, UNet
from mitoseg.networks.checkpoint import (
    FOLDER,
    FORMAT,
    KEY,
    build_network,
    bundled,
    find_weights,
    load_model,
    read_checkpoint,
    read_weights,
    write_weights,
)

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
    {"_target_": "mitoseg.cli.launch.main"},
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


MONAI = "monai.networks.nets."
CHANNELS = {"in_channels": 1, "out_channels": 2}
PLANAR = {"spatial_dims": 2, **CHANNELS}
LEVELS = PLANAR | {"channels": [16, 32], "strides": [2]}
WIDE = PLANAR | {"channels": [64, 8192, 8192], "strides": [2, 2]}
FIRST = {"name": "conv_0", "n_features": 1, "kernel_size": 3}
REPEATED = {"name": "res_1", "n_features": 1, "kernels": [], "repeat": 16_000}
MOMENTS = {"normalization": {"mean": 0.0, "std": 1.0}}
GREEDY = [
    {"_target_": f"{MONAI}HoVerNet", "pretrained_url": "http://127.0.0.1:9/weights"},
    {"_target_": f"{MONAI}EfficientNetBN", "model_name": "efficientnet-b0"},  # pretrained unless told otherwise
    {"_target_": f"{MONAI}FlexibleUNet", **CHANNELS, "in_channels": 3, "backbone": "resnet18", "pretrained": True},
    {"_target_": f"{MONAI}UNet", **WIDE},
    {"_target_": f"{MONAI}UNet", **LEVELS, "num_res_units": 10**8},
    {"_target_": f"{MONAI}UNet", **LEVELS, "num_res_units": 16_000},
    {"_target_": f"{MONAI}UNet", **PLANAR, "channels": [16] * 5000, "strides": [1] * 4999},
    {"_target_": f"{MONAI}SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 24, "window_size": 40},
    {"_target_": f"{MONAI}ViT", "in_channels": 1, "img_size": [4096] * 3, "patch_size": [2] * 3},
    {"_target_": f"{MONAI}UNet", **LEVELS, "name": "../../weights"},
    {"_target_": "mitoseg.networks.UNet", "filters": [10**4] * 3, "strides": [2, 2]},
    {"_target_": f"{MONAI}HighResNet", "layer_params": [FIRST, *[REPEATED] * 99]},
    {"_target_": f"{MONAI}UNet", **LEVELS, "adn_ordering": "D" * 10**6, "dropout": 0.1},
    {
        "_target_": "mitoseg.networks.Ensemble",
        **MOMENTS,
        "members": [{"name": f"{MONAI}UNet", "arguments": WIDE, **MOMENTS}],
    },
]


@pytest.mark.parametrize("config", GREEDY, ids=lambda c: str(c)[10:80])
def test_a_network_takes_no_more_than_its_weights_call_for(config, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda *a, **k: calls.append(a) or socket.create_connection(("", 1))
    )
    importlib.import_module("monai.networks.nets")  # takes memory and time of its own
    before, start = psutil.Process().memory_info().rss, time.monotonic()
    with pytest.raises(UserError):
        load_model(save(tmp_path / "greedy.ckpt", record(network=config)))
    assert psutil.Process().memory_info().rss - before < 3e8
    assert time.monotonic() - start < 20
    assert not calls


@pytest.mark.parametrize("imported", [True, False])
def test_a_library_that_is_imported_while_building_may_make_its_cache(imported, tmp_path, monkeypatch):
    made = "import os; os.mkdir('cache')"
    (tmp_path / "late_library.py").write_text(made)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    class Late(nn.Identity):
        def __init__(self) -> None:
            super().__init__()
            exec("import late_library" if imported else made, {"__name__": "monai"})

    Late.__module__ = "mitoseg.networks"
    monkeypatch.setattr("mitoseg.networks.Late", Late, raising=False)
    with nullcontext() if imported else pytest.raises(UserError, match=r"os\.mkdir"):
        build_network({"_target_": "mitoseg.networks.Late"})
    assert (tmp_path / "cache").exists() == imported


@pytest.mark.parametrize(
    "config",
    [
        {"_target_": f"{MONAI}UNet", **LEVELS},
        {"_target_": f"{MONAI}SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": [1] * 4},
        {"_target_": f"{MONAI}AttentionUnet", **LEVELS},
        {"_target_": f"{MONAI}UNETR", **CHANNELS, "img_size": [16, 32, 32], "hidden_size": 96},
        {"_target_": f"{MONAI}SegResNet", "spatial_dims": 3, "init_filters": 8, "out_channels": 2},
    ],
    ids=lambda c: c["_target_"].rpartition(".")[2],
)
def test_networks_of_monai_load_without_trust(config, tmp_path):
    network = build_network(config, trust=True)
    model = load_model(save(tmp_path / "a.ckpt", record(network=config), network))
    found, wanted = model.network.state_dict(), network.state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (model.threshold, model.voxel_size, model.channels) == (0.4, (5.0, 5.0, 5.0), "adjacent")
    assert not model.network.training


def nested(levels):
    found = {}
    for _ in range(levels):
        found = {"a": found}
    return found


def doubled(levels):
    found = [1]
    for _ in range(levels):
        found = [found, found]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"network": nested(400)},
        {"network": doubled(40)},  # 41 lists, 10**12 items
        {"members": torch.zeros(3)},
        {"threshold": float("nan")},
        {"threshold": 3.0},
        {"normalization": {"mean": float("nan"), "std": 1.0}},
        {"normalization": {"mean": 0.0, "std": 0.0}},
        {"normalization": {"mean": 1e300, "std": 1.0}},
        {"normalization": {"mean": 0.0, "std": 1e-320}},
        {"normalization": {"mean": True, "std": 1.0}},
        {"calibration": {"prior_shift": 0.0, "temperature": 1.0, "bias": 1e308}},
        {"calibration": {"prior_shift": 0.0, "temperature": -1.0, "bias": 0.0}},
        {"voxel_size": [5.0, 5.0]},
        {"voxel_size": [5.0, 5.0, 0.0]},
        {"channels": []},
        {"grey_quantiles": [1.0, float("nan"), 2.0]},
        {"grey_quantiles": [1.0, "x", 2.0]},
        {"grey_quantiles": [1.0, 10**400]},
        {"grey_quantiles": [2.0, 1.0]},
        {"network": PATCH | {"in_channels": float("nan")}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_entry_that_cannot_be_is_refused(changes, tmp_path):
    with pytest.raises(UserError) as caught:
        load_model(save(tmp_path / "a.ckpt", record(**changes)))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["nowhere_at_all.Net", "mitoseg.networks.Net"])
def test_a_trusted_network_that_is_not_there(name):
    with pytest.raises(UserError, match=r"cannot be imported \(.*'(nowhere_at_all|Net)'.*--config-dir"):
        build_network({"_target_": name}, trust=True)


def test_a_calibration_of_other_keys_is_refused(tmp_path):
    model = load_model(save(tmp_path / "a.ckpt", record(calibration={"temperature": 1.0, "slope": 1.0})))
    with pytest.raises(UserError, match="calibration cannot be used"):
        make_prediction(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_refused(dtype, tmp_path):
    checkpoint = torch.load(save(tmp_path / "a.ckpt", record()), weights_only=True)
    checkpoint["state_dict"] = {name: weight.to(dtype) for name, weight in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(UserError, match="invalid values"):
        load_model(tmp_path / "b.ckpt")


ONE = torch.zeros(2**20)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"a": torch.zeros(1).expand(10**6, 10**6)}, "more than weights"),
        ({"a": torch.empty(10**6, 10**6, device="meta")}, "more than weights"),
        ({str(i): ONE for i in range(10**4)}, "larger than its weights"),
        ({str(i): ONE[i : i + 10**6] for i in range(10**4)}, "larger than its weights"),
    ],
    ids=["expanded", "meta", "one", "overlapping"],
)
def test_weights_that_claim_more_than_the_file_holds(weights, told, tmp_path):
    weights = {f"network.{name}": weight for name, weight in weights.items()}
    greedy = {"_target_": f"{MONAI}UNet", **WIDE}
    torch.save({"state_dict": weights, KEY: record(network=greedy)}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=told):
        load_model(tmp_path / "a.ckpt")


def test_a_compressed_archive_is_refused(tmp_path):
    save(tmp_path / "a.ckpt", record())
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as old,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path / "b.ckpt")


def contents(path):
    checkpoint = read_checkpoint(path)
    return checkpoint[KEY], checkpoint["state_dict"]


def same(a, b):
    return a[0] == b[0] and a[1].keys() == b[1].keys() and all(torch.equal(a[1][name], b[1][name]) for name in a[1])


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_flipped_bit_is_refused_or_changes_nothing(suffix, tmp_path):
    """In headers, the pickle or JSON, the weights, the directory at the end, and anywhere."""
    path, draw = tmp_path / f"a.{suffix}", random.Random(0)
    network = PatchCNN(1)
    if suffix == "ckpt":
        save(path, record(network=PATCH | {"in_channels": 1}), network)
    else:
        write_weights(path, network.state_dict(), record())
    whole, wanted = path.read_bytes(), contents(path)
    size = len(whole)
    places = [
        draw.randrange(*part) for part in ((0, 100), (100, 4000), (0, size), (size - 2000, size)) for _ in range(40)
    ]
    refused = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            assert same(contents(path), wanted), place
        except UserError:
            refused += 1
    assert refused > 60


def test_a_damaged_last_checkpoint_offers_the_best(tmp_path):
    whole = save(tmp_path / "best.ckpt", record()).read_bytes()
    shutil.copy(tmp_path / "best.ckpt", tmp_path / "last.ckpt")
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]  # a fixed byte may be there already
    for damaged in (flipped, whole[:1000], b""):
        (tmp_path / "last.ckpt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"use the best one instead: .*best.ckpt"):
            load_model(tmp_path / "last.ckpt")


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


@pytest.mark.parametrize(
    "content",
    [
        b"not a checkpoint",
        b"",
        pickle.dumps({"a": 1}),
        {"state_dict": {}},
        torch.zeros(3),
        record(format=FORMAT + 1),
        {k: v for k, v in record().items() if k != "normalization"},
        record(network=PATCH | {"in_channels": 1}),
        None,
    ],
    ids=["text", "empty", "pickle", "other", "tensor", "newer", "incomplete", "misfit", "missing"],
)
def test_a_checkpoint_that_is_not_ours(content, tmp_path):
    path = tmp_path / "some.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict) and "format" in content:
        save(path, content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_an_older_format_is_brought_up_to_date(tmp_path):
    """Format 1 knew neither the prediction method nor what lower precision costs."""
    model = load_model(save(tmp_path / "old.ckpt", record(format=1)))
    assert [model.record[k] for k in ("format", "method", "precision", "version")] == [FORMAT, "auto", {}, None]


@pytest.mark.parametrize(
    ("found", "remedy"), [(FORMAT + 1, "upgrade mitoseg"), (0, "train again"), ("x", "train again")]
)
def test_a_format_that_cannot_be_read_says_what_to_do(found, remedy, tmp_path):
    with pytest.raises(UserError, match=remedy):
        load_model(save(tmp_path / "odd.ckpt", record(format=found)))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), st.text(alphabet="sometething else\n.(l}]", max_size=30).map(str.encode)))
def test_any_bytes_are_refused_in_one_line(tmp_path, data):
    path = tmp_path / "any.ckpt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"not a checkpoint|not written by mitoseg"):
        load_model(path)


def test_a_model_comes_back_from_safetensors(tmp_path):
    config = {"spatial_dims": 2, "filters": [4, 8, 8], "strides": [2, 2]}
    torch.manual_seed(0)
    net, entry = UNet(**config), record(network={"_target_": "mitoseg.networks.UNet", **config})
    net(torch.randn(4, 1, 32, 32))  # moves the running statistics of BatchNorm
    write_weights(tmp_path / "a.safetensors", net.state_dict(), entry)
    model = load_model(tmp_path / "a.safetensors")
    assert (model.threshold, model.channels, model.voxel_size) == (0.4, "adjacent", (5.0, 5.0, 5.0))
    assert model.record["calibration"] == entry["calibration"]
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.network(image), net.eval()(image), atol=1e-2, rtol=1e-2)
    for name, weight in net.state_dict().items():
        found = model.network.state_dict()[name]
        assert found.dtype == weight.dtype
        assert torch.equal(found, weight if weight.ndim < 2 else weight.half().float())
    kernels = sum(w.numel() for w in net.parameters() if w.ndim > 1)
    assert (tmp_path / "a.safetensors").stat().st_size < 2 * kernels + 30_000


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"no weights", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64),
        *(None, {"mitoseg": "[1]"}, {"mitoseg": "null"}, {"mitoseg": "{"}, {"other": "{}"}),
    ],
)
def test_other_files_are_told(content, tmp_path):
    path = tmp_path / "a.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file({"a": torch.zeros(2)}, path, metadata=content)
    with pytest.raises(UserError, match=r"not a file of weights|not written by mitoseg"):
        read_checkpoint(path)


def test_a_record_that_names_code_is_refused(tmp_path):
    write_weights(tmp_path / "a.safetensors", {}, record(network={"_target_": "os.system", "command": "echo"}))
    with pytest.raises(UserError, match="outside mitoseg"):
        load_model(tmp_path / "a.safetensors")


def test_names_and_paths(tmp_path):
    assert find_weights(tmp_path / "x.ckpt") == tmp_path / "x.ckpt"
    for name in bundled():
        assert find_weights(name) == FOLDER / name / "model.safetensors"
        assert read_weights(find_weights(name))[1]["format"] == FORMAT
