"""Which volumes a run's folder names, and from runs and paths to volumes over the same voxels."""

from pathlib import Path

import numpy as np
import pytest
from made_volumes import SIZE, make_run, places, save

from mitoseg.errors import UserError
from mitoseg.viewers.shown import Source, kind_of, open_shown, volumes_of_run
from mitoseg.volumes import ArrayVolume

NONE = {}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("image.tif", places((4, 5, 6)))
    save("probability.tif", np.full((4, 5, 6), 0.25, np.float32), kind="probability", threshold=0.4)
    save("other.tif", places((4, 5, 7)))
    return tmp_path


def test_a_run_and_what_comes_before_it(here):
    run = make_run(here / "run", input="image.tif", output="probability.tif")
    shown = open_shown(run, NONE)
    assert list(shown.volumes) == ["image", "probability"]
    assert shown.voxel_size == SIZE
    assert shown.shape == (4, 5, 6)
    save("mine.tif", places((4, 5, 6)) + 1)
    assert open_shown(run, {"image": "mine.tif", "mask": None}).volumes["image"].read()[0, 0, 0] == 1


def test_a_crop_of_the_image_is_shown_below_its_prediction(here):
    files = [{"role": "test.image", "path": "image.tif"}, {"role": "test.label", "path": "gone.tif"}]
    run = make_run(here / "run", data={"files": files, "regions": {"test": ["image.tif [1:3,0:5,2:6]"]}})
    (here / "run" / "predictions").mkdir()
    save(here / "run" / "predictions" / "test_0.tif", np.zeros((2, 5, 4), np.float32), kind="probability")
    shown = open_shown(run, NONE)
    assert list(shown.volumes) == ["image", "probability"]
    np.testing.assert_array_equal(shown.volumes["image"].read(), places((4, 5, 6))[1:3, :, 2:6])


def test_axes_and_voxel_size_of_the_run_are_those_of_its_input(here):
    save("turned.tif", places((4, 5, 6)).transpose(2, 1, 0).copy(), voxel_size=None)
    run = make_run(here / "run", input="turned.tif", output="probability.tif")
    (here / "run" / ".hydra").mkdir()
    (here / "run" / ".hydra" / "config.yaml").write_text("axes: xyz\nvoxel_size: [7, 6, 5]\n")
    shown = open_shown(run, NONE)
    np.testing.assert_array_equal(shown.volumes["image"].read(), places((4, 5, 6)))
    assert shown.volumes["probability"].shape == (4, 5, 6)
    assert shown.voxel_size == (7, 6, 5)


def test_a_volume_in_place_of_a_run_and_a_voxel_size_that_is_given(here, caplog):
    assert list(open_shown("probability.tif", {"image": "image.tif"}).volumes) == ["image", "probability"]
    shown = open_shown("image.tif", NONE, voxel_size=[1, 2, 3])
    assert (list(shown.volumes), shown.voxel_size) == (["image"], (1, 2, 3))
    assert "state other sizes" in caplog.text


def test_what_is_gone_is_left_out(here, caplog):
    run = make_run(here / "run", input="gone.tif", output="probability.tif")
    assert list(open_shown(run, NONE).volumes) == ["probability"]
    assert "gone.tif" in caplog.text
    with pytest.raises(UserError, match="nothing to show"):
        open_shown(make_run(here / "both", input="gone.tif", output="gone_too.tif"), NONE)


@pytest.mark.parametrize(
    ("run", "given", "line"),
    [
        ("image.tif", {"mask": "other.tif"}, r"differ in shape .*'image': \(4, 5, 6\), 'mask': \(4, 5, 7\)"),
        ("nowhere", {}, "no such run or volume: 'nowhere'"),
        ("empty", {}, "neither a run nor a volume"),
        ("bare.tif", {}, "no file has a voxel size: 'bare.tif'; give voxel_size"),
        (None, {"image": "gone.tif"}, "no such file"),
    ],
)
def test_mistakes_get_one_line(here, run, given, line):
    (here / "empty").mkdir()
    save("bare.tif", places((4, 5, 6)), voxel_size=None)
    with pytest.raises(UserError, match=line):
        open_shown(run, given)


@pytest.mark.parametrize(
    ("values", "metadata", "kind"),
    [
        (np.zeros((2, 3, 4), np.float32), {}, "probability"),
        (np.zeros((2, 3, 4), bool), {}, "mask"),
        (np.eye(4, dtype=np.uint8)[None] * 255, {}, "mask"),
        (np.zeros((2, 3, 4), np.uint16), {}, "instances"),
        (np.zeros((2, 3, 4), np.uint8), {"kind": "probability"}, "probability"),
        (np.zeros((2, 3, 4), np.float32), {"kind": "uncertainty"}, "uncertainty"),
    ],
)
def test_kinds(values, metadata, kind):
    assert kind_of(ArrayVolume(values, metadata=metadata)) == kind
    with pytest.raises(UserError, match="may be probabilities or instances"):
        kind_of(ArrayVolume(np.arange(24, dtype=np.uint8).reshape(2, 3, 4)))


EVALUATE = {"prediction": "/p.tif", "truth": "/t.tif", "image": "/i.tif"}
SAVED = {"save_instances": "/n.tif", "probability": None}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"input": "a.tif", "output": "out/b.zarr"}, {"image": "HERE/a.tif", "result": "HERE/out/b.zarr"}),
        ({"input": "/a.h5:/raw", "output": "/b.h5:/mask"}, {"image": "/a.h5:/raw", "result": "/b.h5:/mask"}),
        (EVALUATE, {"result": "/p.tif", "truth": "/t.tif", "image": "/i.tif"}),
        (
            {"input": "/p.tif", "image": "/i.tif", "output": "t.csv", "options": SAVED},
            {"result": "/p.tif", "instances": "/n.tif", "image": "/i.tif"},
        ),
    ],
    ids=["predict", "datasets", "evaluate", "measure"],
)
def test_what_a_run_names(tmp_path, record, expected):
    found = volumes_of_run(make_run(tmp_path / "run", started=tmp_path, **record))
    wanted = {name: str(Path(path.replace("HERE", str(tmp_path)))) for name, path in expected.items()}
    assert {name: source.path for name, source in found.items()} == wanted


@pytest.mark.parametrize("split", ["test", "validation"])
def test_training_shows_the_voxels_of_its_prediction(tmp_path, split):
    kinds = [(part, kind) for part in ("train", "test") for kind in ("image", "label")]
    files = [{"role": f"{part}.{kind}", "path": f"/d/{part}/{kind}.tif"} for part, kind in kinds]
    regions = {"train": [], "test": ["image.tif [0:4,0:5,1:6]"], "validation": ["image.tif [2:4,0:5,0:6]"]}
    run = make_run(tmp_path / "run", data={"files": files, "regions": regions})
    (tmp_path / "run" / "predictions").mkdir()
    (tmp_path / "run" / "predictions" / f"{split}_0.tif").touch()
    folder, box = ("test", "[0:4,0:5,1:6]") if split == "test" else ("train", "[2:4,0:5,0:6]")
    found = volumes_of_run(run)
    assert found["image"] == Source(f"/d/{folder}/image.tif", box)
    assert found["truth"] == Source(f"/d/{folder}/label.tif", box)
    assert found["result"].path.endswith(f"{split}_0.tif")


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"input": ["a.tif", "b.tif"], "output": "out"}, "several volumes"),
        ({"input": "folder", "output": "results"}, "several volumes"),
        ({"seed": 1}, "names no volumes"),
        ({"data": {"name": "phantom"}}, "names no volumes"),
    ],
)
def test_runs_without_one_result_get_a_line(tmp_path, record, line):
    with pytest.raises(UserError, match=line):
        volumes_of_run(make_run(tmp_path / "run", **record))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: 2020-99-99", b"[" * 1500, b"a: !!python/object:os.system x"])
def test_damaged_records_of_a_run_are_as_good_as_none(tmp_path, content):
    folder = Path(make_run(tmp_path / "run", input="a.tif", output="b.tif"))
    (folder / ".hydra").mkdir(exist_ok=True)
    for name in ("config.yaml", "hydra.yaml"):
        (folder / ".hydra" / name).write_bytes(content)
    assert set(volumes_of_run(folder)) == {"image", "result"}
    (folder / "provenance.json").write_bytes(b"[" * 10**6)
    with pytest.raises(UserError, match="names no volumes"):
        volumes_of_run(folder)
