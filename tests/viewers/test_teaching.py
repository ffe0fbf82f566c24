"""The plugin's tab that teaches a model, in Qt without a screen, and its array of painted slices."""

import time

import numpy as np
import pytest
import torch
from qtpy.QtWidgets import QAbstractSpinBox, QCheckBox, QComboBox, QLineEdit, QListWidget, QPushButton, QWidget

import mitoseg
from mitoseg.datasets.synthetic import generate_phantom, get_preset
from mitoseg.errors import UserError
from mitoseg.geometry import Box
from mitoseg.networks.checkpoint import FORMAT, load_model
from mitoseg.networks.checkpoint import KEY as RECORD
from mitoseg.networks.unets import UNet
from mitoseg.viewers.napari_plugin.fields import InstanceTable
from mitoseg.viewers.napari_plugin.layers import KEY
from mitoseg.viewers.napari_plugin.painting import Paint, painted_path
from mitoseg.volumes import ArrayVolume, open_volume
from mitoseg.workflows.finetune import Estimate, Finetuned, Progress
from mitoseg.workflows.suggest import Advice, Suggestion

SHAPE = (8, 96, 96)
NM = {"scale": (30, 6, 6), "units": ("nm",) * 3}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    return tmp_path


def click(panel, text):
    (found,) = (one for one in panel.findChildren(QPushButton) if one.text() == text)
    assert found.isEnabled()
    found.click()


def rows(panel):
    return [panel.slices.item(i).text() for i in range(panel.slices.count())]


@pytest.fixture
def panel(home, window, viewer):
    """The tab, shown, with an image that has a file."""
    image_zyx, _, _ = generate_phantom(SHAPE, 3, get_preset("sbem"))
    (home / "em.tif").touch()
    layer = viewer.add_image(image_zyx, name="em", **NM)
    layer._source = type(layer.source)(path=str(home / "em.tif"))
    window.teaching._taken = None
    window.tabs.setCurrentWidget(window.teaching)
    window.show()
    return window.teaching


def test_paint_is_an_array_that_keeps_what_is_painted_alone(tmp_path):
    calls, rng = [], np.random.default_rng(0)
    paint = Paint(tmp_path / "deep" / "p.zarr", (9, 20, 30), lambda: calls.append(1))
    oracle = np.zeros(paint.shape, np.uint8)
    many = tuple(rng.integers(0, n, 40) for n in paint.shape)
    places = [np.s_[3, 2:5, 4:9], np.s_[4:6, 3:7, :], 3, np.s_[7:8, 2:4, 2:4], many, np.s_[8, 2, 2]]
    for place in places:
        value = rng.integers(0, 3, oracle[place].shape, np.uint8)
        oracle[place] = value
        paint[place] = value
        for other in (*places, np.s_[:]):
            assert np.array_equal(paint[other], oracle[other])
    paint[0] = 0
    paint[1, 3:5] = 2
    paint[1] = 0
    oracle[:2] = 0
    paint.review(0)
    paint.save()
    assert len(calls) == len(places) + 4
    again = Paint(paint.path, paint.shape)
    assert np.array_equal(again[:], oracle)
    assert np.array_equal(open_volume(paint.path).read(), oracle)  # what labels= of the command reads
    assert again.slices == np.flatnonzero(oracle.any((1, 2))).tolist()
    assert again.reviewed == {0}
    with pytest.raises(UserError, match="another image"):
        Paint(paint.path, (9, 20, 31))


def test_only_what_is_painted_of_a_large_lazy_image_takes_space(home, viewer, window):
    da = pytest.importorskip("dask.array")

    def read(block):
        raise AssertionError

    lazy = da.zeros((200000, 1000, 1000), np.uint8, chunks=(1, 1000, 1000)).map_blocks(read, meta=np.zeros((0,) * 3))
    viewer.add_image(lazy, name="huge", contrast_limits=(0, 255), visible=False)
    window.teaching.start()
    paint = window.teaching.layer.data
    paint[40000, 100:110, 100:110] = 1
    paint.save()
    assert sum(file.stat().st_size for file in paint.path.rglob("*") if file.is_file()) < 1e5
    assert Paint(paint.path, lazy.shape).slices == [40000]


def test_painting_reviewing_undo_and_finding_it_again(panel, viewer, wait, home, said):
    click(panel, "Reviewed (r)")
    assert "press “Paint”" in said.pop()[1]
    click(panel, "Paint")
    layer = panel.layer
    assert (layer.mode, layer.selected_label, viewer.layers.selection.active) == ("paint", 1, layer)
    layer.paint((3, 20, 20), 1)
    layer.paint((3, 60, 60), 2)
    layer.paint((5, 60, 60), 2)
    layer.undo()
    assert layer.data.slices == [3]
    viewer.dims.set_point(0, 4 * 30)
    ((key, act),) = layer.keymap.items()
    assert str(key) == "R"
    act(layer)
    path = home / "em_painted.zarr"
    wait(path.exists, 20)
    wait(lambda: not layer.data._unsaved, 20)
    assert rows(panel) == ["slice 3: painted", "slice 4: reviewed"]
    panel._go(panel.slices.item(0))
    assert viewer.dims.point[0] == 90
    before = layer.data[:]
    assert set(np.unique(before)) == {0, 1, 2}
    viewer.layers.remove(layer)
    click(panel, "Paint")
    assert panel.layer is not layer
    assert np.array_equal(panel.layer.data[:], before)
    image = panel.main.image.layer
    viewer.layers.clear()
    viewer.add_layer(image)
    assert np.array_equal(panel.layer.data[:], before)  # found without a click
    assert panel.main.instances.labels.count() == 0
    assert said == []


def test_a_prediction_is_a_start(panel, viewer, said):
    click(panel, "Paint")
    click(panel, "Copy prediction")
    assert "predict first" in said.pop()[1]
    found_zyx = np.zeros(SHAPE, np.float32)
    found_zyx[2, 10:20, 10:20] = 0.7
    about = {KEY: {"kind": "probability", "threshold": 0.6}}
    viewer.add_image(found_zyx, metadata=about, **NM)
    viewer.dims.set_point(0, 60)
    panel.layer.data[2, 12, 12] = 2
    click(panel, "Copy prediction")
    assert ((panel.layer.data[2] == 1).sum(), panel.layer.data[2, 12, 12]) == (99, 2)
    panel.layer.undo()
    assert panel.layer.data[2].sum() == 2
    viewer.add_labels((found_zyx > 0).astype(np.uint8) * 7, **NM)
    click(panel, "Copy prediction")
    assert (panel.layer.data[2] == 1).sum() == 99


def painted(panel):
    """Paint two slices of the phantom."""
    mask_zyx = generate_phantom(SHAPE, 3, get_preset("sbem"))[1]
    click(panel, "Paint")
    panel.layer.data[1] = np.where(mask_zyx[1], 1, 2)
    panel.layer.data[6] = mask_zyx[6]
    panel.layer.data.review(6)


def fake_tuning(panel, monkeypatch, act=lambda folder: None):
    """Fine-tuning that learns nothing; what it was given."""
    given = {}

    def tune(options, folder, report, regions):
        given.update(options=options, regions=regions)
        (folder / "checkpoints").mkdir(parents=True)
        while "preview" not in given:
            report(Progress("training", 0.5, 61.0, lambda volume, box: np.full(box.shape, 0.5, np.float32)))
            if panel._shown is not None:
                given["preview"] = panel._shown[1]
            time.sleep(0.01)
        act(given)
        report(Progress("scoring, part 1 of 2", 0.9, 1.0))
        (folder / "checkpoints" / "best.ckpt").touch()
        image, one = regions[0].image, Estimate(0.5, 0.4, 0.6)
        boxes = (Box((4, 0, 0), (5, 96, 96)), Box((2, 30, 40), (3, 50, 60)))
        advice = Advice([Suggestion(image, box, 0.03, 0.1) for box in boxes], 0.02)
        checkpoint = folder / "checkpoints" / "best.ckpt"
        return Finetuned(checkpoint, "start", one, one, one, Estimate(0.0, -0.1, 0.1), 2, 3, advice)

    monkeypatch.setattr("mitoseg.workflows.finetune.finetune", tune)
    return given


def test_training_shows_previews_a_score_and_what_to_paint_next(panel, viewer, wait, home, said, monkeypatch):
    click(panel, "Train")
    assert "press “Paint”" in said.pop()[1]
    click(panel, "Next")
    assert "nothing is suggested yet" in said.pop()[1]
    painted(panel)
    given = fake_tuning(panel, monkeypatch)
    viewer.dims.set_point(0, 150)
    panel.name.setText("mine")
    click(panel, "Train")
    wait(lambda: "preview" in given)
    assert panel.main.tasks.status.text() == "training, 0:01:01 left …"
    wait(lambda: not panel.main.tasks.busy)
    assert said == []
    assert [(region.box.start[0], int((region.label_zyx == 1).sum()) > 0) for region in given["regions"]] == [
        (1, True),
        (6, True),
    ]
    assert {0, 1} == set(np.unique(given["regions"][1].label_zyx))  # the rest of a reviewed slice is background
    assert given["regions"][0].image.voxel_size == (30, 6, 6)
    preview = given["preview"]
    assert (preview.data.shape, preview.data_to_world((0, 0, 0))) == ((1, 96, 96), (150, 0, 0))
    assert viewer.layers.selection.active is panel.layer
    assert "gain of tuning      0.000 (-0.100 to 0.100)" in panel.score.text()
    assert "no gain above the noise: the start model is kept" in panel.score.text()
    assert panel.score.toolTip() == panel.score.text()
    for choice in (panel.model, panel.main.predicting.model):
        choice.box.setCurrentText("mine")
        assert choice.path == str(home / "mine" / "checkpoints" / "best.ckpt")
    assert panel.name.text() != "mine"
    click(panel, "Next")
    assert viewer.dims.point[0] == 120
    assert panel.reason.text().startswith("Slice 4: models that learnt different parts")
    assert "2.0 points of JAC" in panel.reason.text()
    click(panel, "Next")
    assert viewer.dims.point[0] == 60
    assert tuple(panel.main.camera.center)[1:] == (39.5 * 6, 49.5 * 6)
    panel.name.setText("mine")
    click(panel, "Train")
    assert "the output exists" in said.pop()[1]
    panel.name.setText("../mine")
    click(panel, "Train")
    assert "no name" in said.pop()[1]


def test_a_training_that_is_cancelled_leaves_nothing(panel, viewer, wait, home, monkeypatch):
    painted(panel)
    panel.save()
    before = sorted(home.rglob("*"))
    fake_tuning(panel, monkeypatch, lambda given: panel.main.tasks._stop.set())
    click(panel, "Train")
    wait(lambda: not panel.main.tasks.busy)
    assert panel.main.tasks.status.text() == "cancelled"
    assert sorted(home.rglob("*")) == before


def test_nothing_but_mitochondria_is_one_message(panel, wait, said, home):
    click(panel, "Paint")
    panel.layer.paint((3, 20, 20), 1)
    click(panel, "Train")
    wait(lambda: not panel.main.tasks.busy)
    assert "no background is painted" in said.pop()[1]
    assert "no background is painted" in panel.main.tasks.status.toolTip()
    assert not (home / panel.name.text()).exists()


def test_the_place_of_the_paint(viewer, home):
    image = viewer.add_image(np.zeros((2, 3, 4)), name="a/b: c")
    assert painted_path(image) == home / "home" / "mitoseg" / "a_b_ c_painted.zarr"
    cases = {"x.tif": "x", "x.ome.zarr/0": "x 0", "x.h5:/raw": "x raw", "x.n5:/vol/raw": "x raw"}
    for file, name in cases.items():
        image._source = type(image.source)(path=str(home / file))
        assert painted_path(image) == home / f"{name}_painted.zarr"


def test_every_control_helps(window):
    kinds = QPushButton | QCheckBox | QComboBox | QAbstractSpinBox | InstanceTable | QListWidget | QLineEdit
    controls = [one for one in window.findChildren(QWidget) if isinstance(one, kinds)]
    assert len(controls) > 30
    for one in controls:
        if not isinstance(one.parent(), QAbstractSpinBox):  # Qt's own field inside
            assert len(one.toolTip()) > 15, (one, one.parent())


def test_a_long_notice_is_whole_in_its_tooltip(window):
    window.tasks.status.setText(long := "word " * 200)
    assert (window.tasks.status.toolTip(), window.tasks.status.wordWrap()) == (long, True)


@pytest.mark.slow
def test_a_model_is_taught_for_real(panel, viewer, wait, home, said, monkeypatch):
    arguments = {"in_channels": 3, "filters": [4, 8, 8], "strides": [2, 2]}
    torch.manual_seed(0)
    weights = {f"network.{name}": value for name, value in UNet(**arguments).state_dict().items()}
    record = {
        "format": FORMAT,
        "version": mitoseg.__version__,
        "network": {"_target_": "mitoseg.networks.unets.UNet", **arguments},
        "normalization": {"mean": 128.0, "std": 40.0},
        "channels": "adjacent",
        "voxel_size": [5.0, 5.0, 5.0],
        "calibration": {"prior_shift": 0.0, "temperature": 1.0, "bias": 0.0},
        "threshold": 0.5,
        "method": "auto",
        "precision": {},
        "grey_quantiles": None,
    }
    torch.save({"state_dict": weights, RECORD: record}, home / "start.ckpt")
    monkeypatch.setattr("mitoseg.workflows.finetune.STEPS", 4)
    panel.model.box.setCurrentIndex(panel.model.add(home / "start.ckpt"))
    painted(panel)
    panel.name.setText("mine")
    click(panel, "Train")
    wait(lambda: not panel.main.tasks.busy, 600)
    assert said == []
    assert any(one.name == "em while learning" for one in viewer.layers)
    checkpoint = home / "mine" / "checkpoints" / "best.ckpt"
    assert "tuned model" in panel.score.text()
    assert load_model(checkpoint).threshold > 0
    image_zyx = np.asarray(panel.main.image.layer.data)
    found = mitoseg.load(checkpoint).predict(ArrayVolume(image_zyx, (30, 6, 6), "em"))
    assert found.shape == SHAPE
    assert not [path for path in home.iterdir() if path.name.startswith(".")]
    assert [path for path in (home / "mine" / "next").iterdir()]
    click(panel, "Next")
    assert "disagree" in panel.reason.text()


def test_layers_are_found_through_the_proxy_that_napari_gives_to_plugins(viewer):
    from napari.utils._proxies import PublicOnlyProxy

    from mitoseg.viewers.napari_plugin.widget import Segmenter

    made = Segmenter(PublicOnlyProxy(viewer))
    image, labels = viewer.add_image(np.zeros(SHAPE)), viewer.add_labels(np.zeros(SHAPE, np.uint8))
    made.image.choose(image)
    made.instances.labels.choose(labels)
    assert made.image.layer is image
    assert made.instances.layer is labels
    made.deleteLater()
