"""Memory: what a tile needs, and a device that has less than it said; precision; stages that overlap."""

import threading
import time

import numpy as np
import pytest
import torch
from small_networks import Memory, SmallBlock, SmallUNet, grey, shaken

from mitoseg.control_groups import memory_available
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.inference import METHODS, Prediction, Predictor, precision, predict_volume
from mitoseg.inference.precision import choose_compile, choose_precision, computing
from mitoseg.inference.predictor import VOXEL_BYTES, run_overlapped
from mitoseg.inference.sizing import LiveBytes, budget_bytes, parse_bytes, used_bytes
from mitoseg.metrics import Calibration
from mitoseg.networks import ContextCNN, PatchCNN, UNet
from mitoseg.volumes import ArrayVolume, Normalization
from mitoseg.volumes.normalize import MatchedVolume
from mitoseg.volumes.resampling import resampled


def prediction(network, channels="single", **more):
    return Prediction(network, Normalization(120.0, 60.0), channels, Calibration(), 0.5, save="log_odds", **more)


CHANNELS = {"single": 1, "adjacent": 3, "every_second9": 9}


class Read(ArrayVolume):
    """Remembers which boxes were read."""

    def __init__(self, image_zyx, read, voxel_size=None):
        super().__init__(image_zyx, voxel_size)
        self.read_boxes = read

    def read(self, box=None):
        self.read_boxes.append(self.check_box(box))
        return super().read(box)


class Stingy(SmallBlock):
    """A network on a device whose memory ends at so many pixels."""

    most = 12 * 12

    def forward(self, image):
        if image.shape[0] * image[0, 0].numel() > self.most:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(image)


def test_too_little_memory_on_the_device_halves_the_tile():
    image = grey((3, 40, 40))
    plenty, stingy = shaken(SmallBlock()), shaken(Stingy())
    expected, result = Memory(image.shape), Memory(image.shape)
    for network, writer in ((plenty, expected), (stingy, result)):
        predict_volume(prediction(network, method="strided"), ArrayVolume(image), writer, tile=(3, 40, 40))
    np.testing.assert_array_equal(result.array, expected.array)
    assert (result.written == 1).all()
    stingy.most = 0
    with pytest.raises(UserError, match="too small"):
        predict_volume(prediction(stingy, method="strided"), ArrayVolume(image), result, tile=(1, 8, 8))


def test_live_bytes_counts_what_lives_at_once():
    with LiveBytes() as live:
        first = torch.empty(1000, device="meta")
        second = first + 1
        del first
        second.view(10, 100)
        third = torch.empty(500, device="meta", dtype=torch.float64)
        del second, third
    assert live.peak == 8000
    assert live.now == 0


@pytest.mark.parametrize("method", ["dense", "strided"])
def test_the_rehearsal_counts_the_papers_network(method):
    """At least the first layer's output lives; with the copies of convolutions and the overhead, 3 to 5 times that."""
    predictor = Predictor(prediction(PatchCNN(3).eval(), "adjacent", method=method), ArrayVolume(grey((3, 256, 320))))
    needed = predictor.network_bytes((1, 256, 320))
    first_layer = (256 + 60) * (320 + 60) * 32 * 4
    assert first_layer < needed < 5 * first_layer
    small = predictor.network_bytes((1, 64, 80))
    assert small < needed / 4


@pytest.mark.parametrize(
    ("network", "method"),
    [(SmallUNet(), "auto"), (SmallUNet(3), "auto"), *((SmallBlock(n), m) for n in (2, 3) for m in METHODS[:3])],
)
def test_the_rehearsal_runs_the_network_once_for_each_shape(network, method, monkeypatch):
    """And counts what it would if it ran it for every tile; here an answer is a part of what the network keeps."""

    def rehearsals():
        tile = (8, 16, 16) if isinstance(network, SmallUNet) else None
        predictor = Predictor(
            prediction(shaken(network), method=method, tile=tile, tta="axes"),
            ArrayVolume(grey((16, 32, 32)), (5.0, 5.0, 5.0)),
        )
        views = predictor._directions.values()
        return [predictor._rehearse(tile, view) for view in views for tile in ((8, 16, 16), (16, 32, 32))]

    runs, forward = [], type(network).forward
    monkeypatch.setattr(
        type(network), "forward", lambda self, image: (runs.append(0), forward(self, image)[..., :])[1]
    )
    remembered, count = rehearsals(), len(runs)
    monkeypatch.setattr(LiveBytes, "remembering", lambda self, function: function)
    assert remembered == rehearsals()
    assert count * (3 if method in ("auto", "window") else 1) <= len(runs) - count


@pytest.mark.parametrize(
    ("network", "channels", "most", "tile"),
    [
        (PatchCNN(3), "adjacent", 4e9, (1, 2048, 2048)),
        (PatchCNN(3), "adjacent", 1e9, (1, 1024, 1024)),
        (ContextCNN(3), "adjacent", 4e9, (1, 2048, 2048)),
        (UNet(2, in_channels=3, filters=[8, 16, 32], strides=[2, 2]), "adjacent", 4e9, (1, 4096, 4096)),
    ],
)
def test_wide_slices_are_cut_as_ever_and_at_once(network, channels, most, tile):
    predictor = Predictor(prediction(network.eval(), channels), ArrayVolume(np.zeros((3, 4096, 4096), np.uint8)))
    start = time.process_time()
    assert predictor.choose_tile(most) == tile
    assert predictor.operations(tile) > 1e9
    assert time.process_time() - start < 10  # one second on a quiet machine; was a hundred


@pytest.mark.parametrize("network", [SmallBlock(), SmallBlock(3), SmallUNet(), SmallUNet(3)])
def test_less_memory_makes_smaller_tiles_and_the_same_result(network):
    image = grey((40, 64, 96))
    tile = (8, 16, 16) if isinstance(network, SmallUNet) else None
    predictor = Predictor(prediction(shaken(network), tile=tile), ArrayVolume(image))
    plenty = predictor.choose_tile(1e12)
    cost = predictor.network_bytes(plenty) + predictor.buffer_bytes(plenty)
    little = predictor.choose_tile(cost / 3)
    assert np.prod(little) < np.prod(plenty)
    results = [Memory(image.shape) for _ in range(2)]
    for tile, writer in zip((plenty, little), results, strict=True):
        predict_volume(predictor, ArrayVolume(image), writer, tile=tile)
    np.testing.assert_allclose(results[0].array, results[1].array, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("channels", "neighbours"), [("single", 0), ("adjacent", 2), ("every_second9", 16)])
def test_neighbouring_slices_are_counted(channels, neighbours):
    """A tile of one slice in the middle reads as many slices as its channels reach over."""
    read = []
    predictor = Predictor(prediction(PatchCNN(CHANNELS[channels]).eval(), channels), Read(grey((40, 64, 96)), read))
    tile = predictor._middle((1, 64, 96))
    predictor.read(tile)
    assert read[0].shape[0] == 1 + neighbours
    kept, output = 40 * 64 * 96, VOXEL_BYTES * 64 * 96
    assert predictor.buffer_bytes((1, 64, 96)) >= kept + output + 4 * read[0].size


@pytest.mark.parametrize("match", [False, True])
def test_what_a_tile_is_resampled_from_is_counted(match):
    """Its voxels are smaller here, so that many more are read than the network sees."""
    read = []
    source = Read(grey((40, 96, 96)), read, (2.5, 2.5, 2.5))
    seen = resampled(source, (5, 5, 5))
    seen = MatchedVolume(seen, np.linspace(0, 255, 257)) if match else seen
    predictor = Predictor(prediction(shaken(SmallBlock(3))), seen)
    plain = Predictor(prediction(shaken(SmallBlock(3))), ArrayVolume(np.zeros(seen.shape, np.float32)))
    tile = (8, 16, 16)
    read.clear()
    predictor.read(predictor._middle(tile))
    more = predictor.buffer_bytes(tile) - plain.buffer_bytes(tile)
    assert read[0].size >= 7 * 8 * 16 * 16
    assert more >= read[0].size


def test_no_memory_at_all_is_told_with_the_remedy():
    predictor = Predictor(prediction(shaken(SmallBlock())), ArrayVolume(grey((4, 640, 640))))
    with pytest.raises(UserError, match=r"too little memory.*give memory=.*GB or more"):
        predictor.choose_tile(1000)


def test_operations_are_those_of_the_layers():
    network = shaken(SmallBlock())
    predictor = Predictor(prediction(network, method="strided"), ArrayVolume(grey((2, 8, 8))))
    read = predictor.views[0].method.reads(Box.of_shape((1, 8, 8))).shape
    first = 2 * 9 * 4 * (read[1] - 2) * (read[2] - 2)
    second = 2 * 9 * 4 * 2 * ((read[1] - 2) // 2 - 2) * ((read[2] - 2) // 2 - 2)
    assert predictor.operations((1, 8, 8)) == 2 * (first + second)


def test_memory_is_read_as_people_write_it():
    assert [parse_bytes(t) for t in ("4GB", "4 gb", "512MiB", 1e6, "2T")] == [4e9, 4e9, 2**29, 1e6, 2e12]
    assert parse_bytes("1.5 GiB") == 1.5 * 2**30
    for bad in ("much", "-4GB", "0", "4 apples", ""):
        with pytest.raises(UserError, match="not an amount of memory"):
            parse_bytes(bad)


def test_the_budget_is_a_share_of_what_is_free_or_what_is_given():
    assert 0 < budget_bytes(None) <= memory_available()
    assert budget_bytes("100GB", workers=4, besides=4 * 10**9) == pytest.approx(24e9 - used_bytes(), rel=0.01)
    assert budget_bytes(None, workers=10) < 0.6 * budget_bytes(None, workers=5)
    assert budget_bytes("100GB") == pytest.approx(100e9 - used_bytes(), rel=0.01)


def test_items_go_through_in_order():
    seen = []
    run_overlapped(range(7), lambda i: i * 10, lambda i, s: s + i, lambda i, r: seen.append((i, r)))
    run_overlapped([], lambda i: i, lambda i, s: s, lambda i, r: None)
    assert seen == [(i, 11 * i) for i in range(7)]


def test_the_stages_work_at_the_same_time():
    """Each stage waits until the other two are at work too: one after the other they would never meet."""
    meeting = threading.Barrier(3, timeout=10)

    def stage(item, met):
        if item == met:
            meeting.wait()
        return item

    run_overlapped(range(5), lambda i: stage(i, 3), lambda i, s: stage(i, 2), lambda i, r: stage(i, 1) and None)


def test_few_items_are_in_memory():
    now, most, lock = [0], [0], threading.Lock()

    def read(item):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        return item

    def write(item, result):
        time.sleep(0.005)
        with lock:
            now[0] -= 1

    run_overlapped(range(40), read, lambda i, s: s, write)
    assert most[0] <= 4


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_error_ends_the_run(stage):
    written = []

    def failing(name):
        def work(item, *_):
            if name == stage and item == 3:
                raise ValueError(f"{name} failed")
            if name == "write":
                written.append(item)
            return item

        return work

    with pytest.raises(ValueError, match=f"{stage} failed"):
        run_overlapped(range(9), failing("read"), failing("compute"), failing("write"))
    assert written == [0, 1, 2]


CPU = torch.device("cpu")


def record(drop):
    return {"precision": {"bf16": {"jaccard_drop": drop}}}


@pytest.mark.parametrize(
    ("native", "found", "chosen"),
    [(True, 0.0002, "bf16"), (True, -0.01, "bf16"), (True, 0.002, "fp32"), (True, None, "fp32"), (False, 0.0, "fp32")],
)
def test_auto_needs_a_small_loss_and_native_arithmetic(monkeypatch, native, found, chosen):
    monkeypatch.setattr(precision, "has_bf16", lambda device: native)
    assert choose_precision("auto", CPU, record(found)) == chosen
    assert choose_precision("auto", CPU, {}) == "fp32"


def test_what_the_user_says_is_done():
    assert choose_precision("bf16", CPU, {}) == "bf16"
    assert choose_precision("fp32", CPU, record(0.0)) == "fp32"
    assert choose_precision("auto", torch.device("mps"), record(0.0)) == "fp32"
    with pytest.raises(UserError, match="no such precision"):
        choose_precision("fp16", CPU, {})
    with pytest.raises(UserError, match="no bfloat16"):
        choose_precision("bf16", torch.device("mps"), {})


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_the_precision_is_computed_with(name, dtype):
    with computing(name, CPU):
        assert torch.nn.Conv2d(1, 1, 3)(torch.zeros(1, 1, 5, 5)).dtype == dtype


def test_compiling_must_pay_and_be_possible(monkeypatch):
    monkeypatch.setattr(precision, "can_compile", lambda device: True)
    assert choose_compile("auto", CPU, 1e15)
    assert not choose_compile("auto", CPU, 1e10)
    assert choose_compile("true", CPU, 0)
    assert not choose_compile(False, CPU, 1e15)
    with pytest.raises(UserError, match="neither true nor false"):
        choose_compile("maybe", CPU, 0)
    monkeypatch.setattr(precision, "can_compile", lambda device: False)
    assert not choose_compile("auto", CPU, 1e15)
    with pytest.raises(UserError, match="cannot compile here"):
        choose_compile(True, CPU, 0)
