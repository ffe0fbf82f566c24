"""Every form answers what prediction writes: inside, at the border, and at sizes that were not traced."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from exported_models import block_model, ensemble_model, grey_volume, predicted, unet_model

from mitoseg.errors import UserError
from mitoseg.export.forms import FORMS, choose_form, make_form
from mitoseg.export.onnx_file import export_onnx, open_session, write_onnx
from mitoseg.export.weights import metadata
from mitoseg.geometry import Box, anchor
from mitoseg.networks import PatchCNN
from mitoseg.volumes import channel_slices, open_volume

CLOSE = {"atol": 2e-5, "rtol": 0}  # the weights are drawn large: log-odds are some tens


def exported(model, folder, form):
    """Trace a form; what runs it. Exporting compares as well, here prediction alone is the judge."""
    made = make_form(model, form)
    write_onnx(made, folder / "m.onnx", metadata(model, made, {}))
    session = open_session(folder / "m.onnx")
    return lambda grey: session.run(None, {"image": np.ascontiguousarray(grey, np.float32)})[0]


def slices_of(image_zyx, channels):
    """(z, C, y, x): each slice with its neighbours."""
    depth = len(image_zyx)
    return np.stack([image_zyx[channel_slices(z, depth, channels)] for z in range(depth)])


@pytest.mark.parametrize("kind", ["PatchCNN", "ContextCNN"])
@pytest.mark.parametrize("shape", [(2, 67, 75), (1, 73, 68)], ids=str)
def test_dense_is_every_pixel(kind, shape, tmp_path):
    model, image = block_model(kind), grey_volume(shape)
    found = exported(model, tmp_path, "dense")(slices_of(image, model.channels))
    assert found.shape == (shape[0], 1, *shape[1:])
    np.testing.assert_allclose(found[:, 0], predicted(model, image, "dense"), **CLOSE)


def test_dense_takes_an_image_smaller_than_what_is_reflected(tmp_path):
    model, image = block_model(channels="single"), grey_volume((1, 32, 35))
    found = exported(model, tmp_path, "dense")(image[None])
    np.testing.assert_allclose(found[:, 0], predicted(model, image, "dense"), **CLOSE)


@pytest.mark.parametrize("kind", ["PatchCNN", "ContextCNN"])
def test_strided_is_every_eighth_pixel(kind, tmp_path):
    model, image = block_model(kind), grey_volume((2, 90, 71))
    found = exported(model, tmp_path, "strided")(slices_of(image, model.channels))
    assert found.shape == (2, 1, 12, 9)
    np.testing.assert_allclose(found[:, 0], predicted(model, image, "strided")[:, ::8, ::8], **CLOSE)


@pytest.mark.parametrize("kind", ["PatchCNN", "ContextCNN"])
def test_a_block_is_the_window_of_its_anchor(kind, tmp_path):
    model = block_model(kind, "single")
    window = model.network.window
    image = grey_volume((1, window + 4, window + 2))
    first = anchor(window)
    box = Box((0, first, first), (1, first + 5, first + 3))
    answer = predicted(model, image, "window", box, window_stride=1)
    places = [(0, 0), (4, 1), (2, 2)]
    blocks = np.stack([image[:, y : y + window, x : x + window] for y, x in places])
    found = exported(model, tmp_path, "block")(blocks)
    right = [answer[0, y, x] for y, x in places]
    np.testing.assert_allclose(found[:, 1], right, **CLOSE)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 64, 48), (1, 24, 80)], ids=str)
def test_a_tile_is_a_tile(shape, tmp_path):
    model, image = unet_model(channels="adjacent5"), grey_volume(shape)
    found = exported(model, tmp_path, "tile")(slices_of(image, model.channels))
    np.testing.assert_allclose(found[:, 0], predicted(model, image, tile=[1, *shape[1:]]), **CLOSE)


def test_a_tile_of_a_volume(tmp_path):
    model, image = unet_model(3), grey_volume((16, 24, 40))
    found = exported(model, tmp_path, "auto")(image[None, None])
    np.testing.assert_allclose(found[0, 0], predicted(model, image, tile=list(image.shape)), **CLOSE)


def test_a_volume_has_its_channels_inside(tmp_path):
    model, image = unet_model(channels="every_second9"), grey_volume((19, 32, 48))
    found = exported(model, tmp_path, "volume")(np.stack([image, image[::-1]])[:, None])
    assert found.shape == (2, 1, 19, 32, 48)
    for one, volume in zip(found[:, 0], (image, image[::-1].copy()), strict=True):
        np.testing.assert_allclose(one, predicted(model, volume, tile=[1, 32, 48]), **CLOSE)


def test_a_volume_of_a_block_network(tmp_path):
    model, image = block_model(), grey_volume((4, 50, 67))
    found = exported(model, tmp_path, "volume")(image[None, None])
    np.testing.assert_allclose(found[0, 0], predicted(model, image), **CLOSE)


def test_an_ensemble_is_the_mean_of_its_members(tmp_path):
    model, image = ensemble_model(), grey_volume((2, 45, 52))
    found = exported(model, tmp_path, "dense")(image[:, None])
    np.testing.assert_allclose(found[:, 0], predicted(model, image, "dense"), **CLOSE)


def test_pieces_with_their_halo_cut_are_the_whole():
    for model, form in ((block_model(), "volume"), (block_model("ContextCNN"), "dense")):
        sizes = make_form(model, form).sizes
        assert all(n - 2 * h >= 1 for n, h in zip(sizes.piece, sizes.halo, strict=True))
    assert make_form(block_model(), "volume").sizes.halo == (1, 36, 36)
    image = grey_volume((5, 110, 100))
    whole = predicted(block_model(), image)
    piece = predicted(block_model(), image[1:5, 10:100, 5:95].copy())
    np.testing.assert_allclose(piece[1:-1, 36:-36, 36:-36], whole[2:4, 46:64, 41:59], **CLOSE)


@pytest.mark.parametrize("form", ["block", "strided", "dense", "volume"])
def test_real_images(form, real_data, tmp_path):
    model = block_model()
    image = open_volume(str(real_data / "epfl_ca1" / "training.tif")).read(Box((40, 300, 500), (42, 390, 577)))
    run = exported(model, tmp_path, form)
    if form == "volume":
        np.testing.assert_allclose(run(image[None, None])[0, 0], predicted(model, image), **CLOSE)
    elif form == "block":
        found = run(slices_of(image, model.channels)[..., 7:39, 11:43])
        right = predicted(model, image, "window", Box((0, 7 + 16, 11 + 16), (2, 7 + 17, 11 + 17)))
        np.testing.assert_allclose(found[:, 1], right[:, 0, 0], **CLOSE)
    else:
        step = 8 if form == "strided" else 1
        found = run(slices_of(image, model.channels))[:, 0]
        np.testing.assert_allclose(found, predicted(model, image, form)[:, ::step, ::step], **CLOSE)


@pytest.mark.parametrize(
    ("model", "form", "line"),
    [
        (unet_model(), "dense", "form dense is for block networks"),
        (unet_model(), "block", "use form=tile"),
        (block_model(), "tile", "use form=dense"),
        (block_model(), "whole", "no such form: 'whole'; choose one of auto, block"),
        (block_model(), None, "no such form"),
    ],
)
def test_a_form_that_a_network_has_not(model, form, line):
    with pytest.raises(UserError, match=line):
        make_form(model, form)


def test_auto_is_what_prediction_does():
    assert choose_form("auto", PatchCNN(1)) == ("dense", "dense")
    assert choose_form("auto", unet_model().network) == ("tile", "tile")
    assert choose_form("volume", PatchCNN(1)) == ("volume", "dense")
    assert set(FORMS) == {"auto", "block", "strided", "dense", "tile", "volume"}


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
