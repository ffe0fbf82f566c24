"""Which volumes a run's folder names."""

from pathlib import Path

import pytest
from made_volumes import make_run

from mitoseg.errors import UserError
from mitoseg.viewers.shown import Source, is_run, volumes_of_run


def paths(found):
    return {name: source.path for name, source in found.items()}


def test_predict(tmp_path):
    run = make_run(tmp_path / "run", input="a.tif", output="out/b.zarr", checkpoint=None, started=tmp_path)
    assert is_run(run)
    assert paths(volumes_of_run(run)) == {"image": str(tmp_path / "a.tif"), "result": str(tmp_path / "out" / "b.zarr")}


def test_evaluate_and_measure(tmp_path):
    run = make_run(tmp_path / "e", prediction="/p.tif", truth="/t.tif", image="/i.tif", label_rule="x")
    assert paths(volumes_of_run(run)) == {"result": "/p.tif", "truth": "/t.tif", "image": "/i.tif"}
    options = {"save_instances": "/n.tif", "probability": None}
    run = make_run(tmp_path / "m", input="/p.tif", image="/i.tif", output="t.csv", options=options)
    assert paths(volumes_of_run(run)) == {"result": "/p.tif", "instances": "/n.tif", "image": "/i.tif"}


@pytest.mark.parametrize("split", ["test", "validation"])
def test_training_shows_the_voxels_of_its_prediction(tmp_path, split):
    files = [
        {"role": "train.image", "path": "/d/train/image.tif"},
        {"role": "train.label", "path": "/d/train/label.tif"},
        {"role": "test.image", "path": "/d/test/image.tif"},
        {"role": "test.label", "path": "/d/test/label.tif"},
    ]
    regions = {"train": [], "test": ["image.tif [0:4,0:5,1:6]"], "validation": ["image.tif [2:4,0:5,0:6]"]}
    run = make_run(tmp_path / "run", data={"files": files, "regions": regions})
    (tmp_path / "run" / "predictions").mkdir()
    (tmp_path / "run" / "predictions" / f"{split}_0.tif").touch()
    folder, box = ("test", "[0:4,0:5,1:6]") if split == "test" else ("train", "[2:4,0:5,0:6]")
    found = volumes_of_run(run)
    assert found["image"] == Source(f"/d/{folder}/image.tif", box)
    assert found["truth"] == Source(f"/d/{folder}/label.tif", box)
    assert found["result"].path.endswith(f"{split}_0.tif")


def test_a_dataset_is_one_result_and_no_folder_of_many(tmp_path):
    run = make_run(tmp_path / "run", input="/a.h5:/raw", output="/b.h5:/mask")
    assert paths(volumes_of_run(run)) == {"image": "/a.h5:/raw", "result": "/b.h5:/mask"}


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


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: 2020-99-99", b"[" * 5000, b"a: !!python/object:os.system x"])
def test_damaged_records_of_a_run_are_as_good_as_none(tmp_path, content):
    folder = Path(make_run(tmp_path / "run", input="a.tif", output="b.tif"))
    (folder / ".hydra").mkdir(exist_ok=True)
    for name in ("config.yaml", "hydra.yaml"):
        (folder / ".hydra" / name).write_bytes(content)
    assert set(volumes_of_run(folder)) == {"image", "result"}
    (folder / "provenance.json").write_bytes(b"[" * 10**6)
    with pytest.raises(UserError, match="names no volumes"):
        volumes_of_run(folder)
