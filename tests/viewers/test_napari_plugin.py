"""The plugin's readers, writers and widget, in Qt without a screen."""

import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from made_volumes import dumbbell
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QPushButton

import mitoseg
from mitoseg.viewers.napari_plugin.computing import Outcome
from mitoseg.viewers.napari_plugin.fields import InstanceTable
from mitoseg.viewers.napari_plugin.jobs import Cancelled
from mitoseg.viewers.napari_plugin.layers import KEY, NOTHING, get_reader, write_image, write_labels
from mitoseg.volumes import open_volume

MANIFEST = Path(mitoseg.__file__).parent / "viewers" / "napari_plugin" / "napari.yaml"
NM = {"scale": (5, 5, 5), "units": ("nm",) * 3}


def cubes():
    labels_zyx = np.zeros((10, 30, 40), np.uint32)
    for i, x in enumerate((2, 14, 27)):
        labels_zyx[2:8, 5:25, x : x + 10] = i + 1
    return labels_zyx


def button(panel, text):
    (found,) = (one for one in panel.findChildren(QPushButton) if one.text() == text)
    return found


def click(panel, text):
    assert button(panel, text).isEnabled()
    button(panel, text).click()


@pytest.fixture
def plugin(application):
    """napari finds this plugin and its own readers, no others; the manifest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # npe2 0.10 uses what pydantic 2.12 calls deprecated
        from npe2 import DynamicPlugin, PluginManager, PluginManifest

        manifest = PluginManifest.from_file(MANIFEST)
        with DynamicPlugin("mitoseg", manifest=manifest, plugin_manager=PluginManager.instance()):
            yield manifest


def test_the_manifest_names_what_there_is(plugin):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plugin.validate_imports()
    assert plugin.name == "mitoseg"
    has = plugin.contributions
    used = {one.command for one in (*has.readers, *has.writers, *has.widgets)}
    assert used == {command.id for command in has.commands}


def test_napari_opens_our_volumes_and_saves_labels_with_their_voxel_size(plugin, viewer, tmp_path, said):
    labels_zyx, path = cubes(), str(tmp_path / "a.h5")
    viewer.add_labels(labels_zyx, name="mine", **NM)
    assert viewer.layers.save(path, plugin="mitoseg") == [path]
    back = open_volume(path)
    assert (back.voxel_size, back.info.metadata["kind"]) == ((5, 5, 5), "instances")
    assert np.array_equal(back.read(), labels_zyx)
    (layer,) = viewer.open(path, plugin="mitoseg")
    assert np.array_equal(np.asarray(layer.data), labels_zyx)
    assert (tuple(layer.scale), [str(unit) for unit in layer.units]) == ((5, 5, 5), ["nanometer"] * 3)
    assert said == []


def test_what_exists_is_replaced_only_if_the_user_says_so(tmp_path, said, monkeypatch):
    path, answers = str(tmp_path / "a.tif"), iter([False, True])
    assert write_labels(path, cubes(), {"name": "a"}) == [path]
    monkeypatch.setattr("mitoseg.viewers.napari_plugin.layers.may_replace", lambda _: next(answers))
    assert write_labels(path, cubes() * 0, {"name": "a"}) == []
    ((severity, text),) = said
    assert severity == "error"
    assert "exists" in text
    assert open_volume(path).read().max() == 3
    assert write_labels(path, cubes() * 0, {"name": "a"}) == [path]
    assert open_volume(path).read().max() == 0


def test_files_that_cannot_be_saved_or_opened_are_one_message(tmp_path, said):
    path = str(tmp_path / "a.tif")
    assert write_image(path, np.zeros((4, 5)), {"name": "a"}) == []
    assert "not a volume" in said.pop()[1]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.tif").write_bytes(b"no")
    assert get_reader(path)(path) == NOTHING
    assert len(said) == 1
    assert get_reader([path, path]) is None


def test_images_to_choose_from(window, viewer):
    first = viewer.add_image(np.zeros((3, 9, 9)), name="first", **NM)
    viewer.add_image(np.zeros((3, 9, 9)), name="p", metadata={KEY: {"kind": "probability"}}, **NM)
    second = viewer.add_image(np.zeros((3, 9, 9)), name="second", scale=(40, 6, 6), units=("nm",) * 3)
    assert [window.image.itemText(i) for i in range(window.image.count())] == ["first", "second"]
    assert window.voxel_size.value == (5, 5, 5)
    window.image.choose(second)
    assert window.voxel_size.value == (40, 6, 6)
    second.name = "other"
    assert window.image.currentText() == "other"
    viewer.layers.remove(second)
    assert window.image.layer is first


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (None, {}, "there is no image layer"),
        ((9, 9), {}, "2 axes, not 3"),
        ((4, 9, 9, 3), {"rgb": True}, "in colour"),
        ((2, 4, 9, 9), {}, "4 axes, not 3"),
    ],
)
def test_layers_that_cannot_be_predicted(window, viewer, said, shape, options, message):
    if shape is not None:
        viewer.add_image(np.zeros(shape, np.uint8), **options)
    click(window.predicting, "Predict")
    ((severity, text),) = said
    assert severity == "error"
    assert message in text
    assert not window.tasks.busy


def test_a_file_that_is_no_checkpoint(window, viewer, said, wait, tmp_path, monkeypatch):
    path = tmp_path / "other.ckpt"
    path.write_bytes(b"something else")
    viewer.add_image(np.zeros((3, 40, 40), np.uint8), **NM)
    panel = window.predicting
    monkeypatch.setattr("qtpy.QtWidgets.QFileDialog.getOpenFileName", lambda *_: (str(path), ""))
    click(panel.model, "…")
    assert (panel.model.box.currentText(), panel.model.path) == ("other.ckpt", str(path))
    click(panel, "Predict")
    wait(lambda: not window.tasks.busy)
    assert [severity for severity, _ in said] == ["error"]
    assert "not a checkpoint" in said[0][1]
    assert window.tasks.status.text() == f"failed: {said[0][1]}" == window.tasks.status.toolTip()
    assert len(viewer.layers) == 1


def test_a_prediction_becomes_two_layers(window, viewer, said, wait, monkeypatch):
    def fake(volume, choice, tell):
        tell(0.5, "predicting")
        about = {"kind": "probability", "threshold": 0.4, "scale": 1}
        probability_zyx = np.where(cubes() > 0, 0.9, 0.1).astype(np.float32)
        assert volume.voxel_size == (5, 5, 5)
        return Outcome(
            probability_zyx, cubes(), about, {"kind": "instances", "threshold": 0.4}, ("look twice",), (5, 5, 5)
        )

    monkeypatch.setattr("mitoseg.viewers.napari_plugin.computing.predict", fake)
    image = viewer.add_image(np.zeros(cubes().shape, np.uint8), name="em", translate=(10, 20, 30), **NM)
    click(window.predicting, "Predict")
    assert not button(window.predicting, "Predict").isEnabled()
    wait(lambda: not window.tasks.busy)
    _, probability, instances = viewer.layers
    assert (probability.name, instances.name) == ("em probability", "em instances")
    assert tuple(probability.contrast_limits) == (0, 1)
    for layer in (probability, instances):
        assert np.array_equal(layer.translate, image.translate)
        assert np.array_equal(layer.scale, image.scale)
        assert layer.units == image.units
    assert window.image.layer is image
    assert window.instances.labels.layer is instances
    assert said == [("warning", "look twice")]
    window.predicting.threshold.setValue(0.95)
    click(window.predicting, "Update instances")
    wait(lambda: not window.tasks.busy)
    assert viewer.layers[-1].data.max() == 0
    assert viewer.layers[-1].metadata[KEY]["threshold"] == pytest.approx(0.95)


@pytest.fixture
def endless(viewer, monkeypatch):
    """A prediction that only ends when it is told to; when it begins, and how it ends."""
    begun, ends = threading.Event(), []

    def predict(volume, choice, tell):
        begun.set()
        try:
            while True:
                tell(0.5, "predicting")
        except BaseException as error:
            ends.append(type(error))
            raise

    monkeypatch.setattr("mitoseg.viewers.napari_plugin.computing.predict", predict)
    viewer.add_image(np.zeros((3, 9, 9), np.uint8), **NM)
    return begun, ends


def test_a_prediction_is_cancelled(endless, window, viewer, said, wait):
    begun, ends = endless
    click(window.predicting, "Predict")
    wait(begun.is_set)
    window.predicting.predict()
    assert "another computation is running" in said.pop()[1]
    click(window.tasks, "Cancel")
    wait(lambda: not window.tasks.busy)
    assert window.tasks.status.text() == "cancelled"
    assert ends == [Cancelled]
    assert len(viewer.layers) == 1
    assert said == []


@pytest.fixture
def measured(window, viewer, wait):
    """A window with a measured layer of three cubes."""
    layer = viewer.add_labels(cubes(), name="mine", translate=(100, 0, 0), **NM)
    click(window.instances, "Measure")
    wait(lambda: not window.tasks.busy)
    assert window.instances.table.table["instance"].tolist() == [1, 2, 3]
    return SimpleNamespace(window=window, panel=window.instances, layer=layer, viewer=viewer)


def test_measuring_and_cutting_ask_for_the_voxel_size(window, viewer, said, wait):
    viewer.add_labels(cubes())
    click(window.instances, "Measure")
    assert "measuring needs the voxel size" in said.pop()[1]
    window.instances.ids.setText("1")
    click(window.instances, "Split at necks")
    assert "splitting needs the voxel size" in said.pop()[1]
    window.voxel_size.setText("5, 5")
    click(window.instances, "Measure")
    assert "not a voxel size" in said.pop()[1]
    window.voxel_size.setText("10 5 5")
    click(window.instances, "Measure")
    wait(lambda: not window.tasks.busy)
    assert window.instances.table.table["volume_nm3"].tolist() == [6 * 20 * 10 * 250] * 3


def test_a_selected_row_is_shown_in_the_viewer(measured):
    measured.panel.table.selectRow(1)
    assert measured.panel.ids.ids == [2]
    assert measured.layer.selected_label == 2
    at = measured.viewer.scene.camera.center
    assert at[1:] == pytest.approx((14.5 * 5, 18.5 * 5), abs=5)
    assert measured.viewer.dims.point[0] == pytest.approx(100 + 4.5 * 5, abs=5)
    assert measured.layer.data[tuple(round(n) for n in measured.layer.world_to_data(measured.viewer.dims.point))] == 2
    measured.panel.alone.setChecked(True)
    assert measured.layer.show_selected_label


def test_clicks_choose(measured):
    callbacks = measured.viewer.mouse_drag_callbacks
    before = list(callbacks)
    measured.panel.pick.setChecked(True)
    (clicked,) = (one for one in callbacks if one not in before)
    for x, chosen in ((5, [1]), (30, [1, 3]), (5, [3]), (0, [3])):
        world = measured.layer.data_to_world((4, 10, x))
        event = SimpleNamespace(button=1, position=world, view_direction=None, dims_displayed=(1, 2))
        clicked(measured.viewer, event)
        assert measured.panel.ids.ids == chosen
    rows = measured.panel.table.selectionModel().selectedRows()
    assert [row.row() for row in rows] == [2]
    measured.panel.pick.setChecked(False)
    assert list(callbacks) == before


def test_merge_delete_and_undo(measured, wait, said):
    panel, layer, before = measured.panel, measured.layer, cubes()
    panel.ids.setText("1, 3")
    click(panel, "Merge")
    wait(lambda: not measured.window.tasks.busy)
    assert np.array_equal(layer.data, np.where(before == 3, 1, before))
    assert panel.table.table["instance"].tolist() == [1, 2]
    assert panel.ids.ids == [1]
    click(panel, "Delete")
    wait(lambda: not measured.window.tasks.busy)
    assert np.array_equal(layer.data, np.where(before == 2, 2, 0))
    assert panel.table.table["instance"].tolist() == [2]
    assert layer.metadata[KEY]["corrected"]
    for rows in ([1, 2], [1, 2, 3]):
        click(panel, "Undo")
        wait(lambda: not measured.window.tasks.busy)
        assert panel.table.table["instance"].tolist() == rows
    assert np.array_equal(layer.data, before)
    assert said == []
    click(panel, "Undo")
    assert "nothing to undo" in said.pop()[1]
    panel.ids.setText("1, x")
    click(panel, "Merge")
    assert "not instance numbers" in said.pop()[1]
    panel.ids.setText("1, 77")
    click(panel, "Merge")
    assert "no instance has the number" in said.pop()[1]
    assert np.array_equal(layer.data, before)


def test_splitting(window, viewer, said, wait):
    panel, size = window.instances, {"scale": (15, 15, 15), "units": ("nm",) * 3}
    layer = viewer.add_labels(dumbbell()[0], translate=(50, 60, 70), **size)
    click(panel, "Split at seeds")
    assert "no seed points" in said.pop()[1]
    click(panel, "Seed points")
    points = viewer.layers[-1]
    assert points.mode == "add"
    points.add([[12, 12, 12], [12, 12, 29]])
    click(panel, "Split at seeds")
    wait(lambda: not window.tasks.busy)
    assert layer.data[12, 12, 12] != layer.data[12, 12, 29]
    assert len(points.data) == 0
    click(panel, "Undo")
    assert np.array_equal(layer.data, dumbbell()[0])
    panel.ids.setText("1")
    click(panel, "Split at necks")
    wait(lambda: not window.tasks.busy)
    assert layer.data[12, 12, 12] != layer.data[12, 12, 29]
    assert sorted(panel.ids.ids) == [1, 2]
    assert said == []
    click(panel, "Seed points")
    assert len(viewer.layers) == 2  # the layer of points that is there


def test_saving_from_the_panel(measured, wait, tmp_path, monkeypatch, said):
    answers = {"Save the table": str(tmp_path / "t.csv"), "Save the labels": str(tmp_path / "l.tif")}
    monkeypatch.setattr(
        "mitoseg.viewers.napari_plugin.widget.ask_path", lambda parent, title, kinds, suffix: answers[title]
    )
    click(measured.panel, "Save table …")
    saved = pd.read_csv(answers["Save the table"])
    assert saved["instance"].tolist() == [1, 2, 3]
    assert list(saved.columns) == list(measured.panel.table.table.columns)
    click(measured.panel, "Save labels …")
    wait(lambda: not measured.window.tasks.busy)
    back = open_volume(answers["Save the labels"])
    assert (back.dtype, back.voxel_size, back.info.metadata["kind"]) == (np.uint32, (5, 5, 5), "instances")
    assert np.array_equal(back.read(), cubes())
    assert said == []


@pytest.mark.parametrize(("answer", "path"), [(True, "a.csv"), (False, None)])
def test_a_name_that_exists_is_asked_for(application, tmp_path, monkeypatch, answer, path):
    from qtpy.QtWidgets import QFileDialog, QMessageBox

    from mitoseg.viewers.napari_plugin.layers import ask_path

    (tmp_path / "a.csv").touch()
    buttons = QMessageBox.StandardButton
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(tmp_path / "a"), ""))
    monkeypatch.setattr(QMessageBox, "question", lambda *_: buttons.Yes if answer else buttons.No)
    assert ask_path(None, "", "", ".csv") == (path and str(tmp_path / path))
    (tmp_path / "a.csv").unlink()
    assert ask_path(None, "", "", ".csv") == str(tmp_path / "a.csv")


def test_lazy_labels_can_be_looked_at_but_not_corrected(window, viewer, said):
    da = pytest.importorskip("dask.array")
    viewer.add_labels(da.from_array(cubes()), **NM)
    window.instances.ids.setText("1, 2")
    click(window.instances, "Merge")
    assert "too large for memory" in said.pop()[1]


def test_a_window_that_is_closed_stops_its_job(endless, application, viewer, wait, monkeypatch):
    from qtpy.QtCore import QEvent

    from mitoseg.viewers.napari_plugin.widget import Segmenter

    begun, ends = endless
    swallowed = []
    monkeypatch.setattr("sys.excepthook", lambda kind, error, trace: swallowed.append(error))
    window = Segmenter(viewer)
    window.predicting.predict()
    wait(begun.is_set)
    window.deleteLater()
    application.sendPostedEvents(window, QEvent.Type.DeferredDelete.value)
    wait(lambda: ends, seconds=20)
    for _ in range(20):
        application.processEvents()
    viewer.layers.clear()
    assert swallowed == []


def test_a_sorted_table_keeps_its_numbers(application):
    table, chosen = InstanceTable(), []
    table.chosen.connect(chosen.append)
    table.replace(pd.DataFrame({"instance": [1, 2, 3], "sphericity": [0.5, np.nan, 0.9]}))
    for order, expected in ((Qt.SortOrder.AscendingOrder, "132"), (Qt.SortOrder.DescendingOrder, "312")):
        table.sortByColumn(1, order)
        assert "".join(table.item(row, 0).text() for row in range(3)) == expected  # what is missing comes last
    table.selectRow(2)
    assert chosen.pop() == [2]
    table.replace(pd.DataFrame({"instance": [1, 3], "sphericity": [0.5, 0.9]}))
    assert chosen == []
    assert table.selectedItems() == []
