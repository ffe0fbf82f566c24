"""``measure`` as a user types it: from masks, probabilities and instances; what it writes; what goes wrong."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import tifffile
from made_checkpoints import write_volume
from tiny_training import command

from mitoseg.volumes import open_volume

SIZE = (20.0, 10.0, 10.0)
RADII = (60.0, 80.0, 100.0)


def balls():
    """Three whole balls, and a piece of one at the border."""
    z, y, x = np.indices((24, 40, 120)) * np.array(SIZE)[:, None, None, None]
    instance_zyx = np.zeros(z.shape, np.uint32)
    for i, r in enumerate(RADII, 1):
        instance_zyx[(z - 240) ** 2 + (y - 200) ** 2 + (x - 300 * i) ** 2 <= r * r] = i
    instance_zyx[(z - 240) ** 2 + (y - 200) ** 2 + x**2 <= 90.0**2] = 4
    return instance_zyx


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder, instance_zyx = tmp_path_factory.mktemp("measure"), balls()
    rng = np.random.default_rng(0)
    mask_zyx = (instance_zyx > 0).astype(np.uint8)
    mask_zyx[2, 2, 100] = 1  # a speck
    volumes = {
        "instances": (instance_zyx, "instances"),
        "mask": (mask_zyx, "mask"),
        "probability": (0.1 + 0.8 * (instance_zyx > 0).astype(np.float32), "probability"),
        "image": ((100 + 20 * (instance_zyx > 0) + rng.normal(0, 3, instance_zyx.shape)).astype(np.uint8), None),
        "other": (np.zeros((3, 4, 5), np.uint8), "mask"),
    }
    for name, (array, kind) in volumes.items():
        metadata = {} if kind is None else {"kind": kind, "threshold": 0.5}
        write_volume(folder / f"{name}.tif", array, SIZE, **metadata)
    return folder


@pytest.fixture
def measure(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    return lambda *words: command(
        monkeypatch, "measure", f"hydra.run.dir={tmp_path / 'run'}", "progress=false", *words
    )


def test_a_table_of_instances(measure, tmp_path, place):
    assert measure("input=instances.tif", "image=image.tif", f"output={tmp_path / 'new folder' / 'a.parquet'}") == 0
    table = pd.read_parquet(tmp_path / "new folder" / "a.parquet")
    assert table["instance"].tolist() == [1, 2, 3, 4]
    radius = np.cbrt(table["volume_nm3"].to_numpy()[:3] * 3 / 4 / np.pi)
    np.testing.assert_allclose(radius, RADII, rtol=0.03)
    np.testing.assert_allclose(table["sphericity"][:3], 1, atol=0.05)
    assert table["touches_border"].tolist() == [False, False, False, True]
    assert table["grey_mean"].between(118, 121).all()
    assert "probability_mean" not in table
    summary = pd.read_csv(tmp_path / "new folder" / "a_summary.csv").iloc[0]
    assert (summary["count"], summary["count_whole"]) == (4, 3)
    assert summary["volume_fraction"] == pytest.approx((balls() > 0).mean())
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert provenance["chosen"]["voxel_size"] == list(SIZE)


def test_masks_and_probabilities_are_numbered_first(measure, tmp_path, place, capsys):
    for name in ("mask", "probability"):
        words = [f"input={name}.tif", f"output={tmp_path / name}.csv", "min_volume=1e5"]
        assert measure(*words, f"save_instances={tmp_path / name}.zarr") == 0
    assert "4 mitochondria, 3 of them whole" in capsys.readouterr().out
    mask, probability = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("mask", "probability"))
    assert probability["probability_mean"].tolist() == pytest.approx([0.9] * 4)
    pd.testing.assert_frame_equal(mask, probability[mask.columns])
    numbered = open_volume(str(tmp_path / "mask.zarr"))
    ids, voxels = np.unique(numbered.read(), return_counts=True)
    assert dict(zip(ids.tolist(), voxels.tolist(), strict=True)).keys() == {0, *mask["instance"].tolist()}
    assert voxels[1:].tolist() == mask["voxels"].tolist()
    assert (numbered.voxel_size, numbered.info.metadata["kind"]) == (SIZE, "instances")


def test_two_processes_write_the_same_table(measure, tmp_path):
    for workers in (1, 2):
        words = ["input=probability.tif", "image=image.tif", f"workers={workers}", "min_volume=1e5"]
        assert measure(*words, f"output={tmp_path / str(workers)}.csv") == 0
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_shapes_and_report(measure, tmp_path, place):
    pytest.importorskip("trimesh")
    pytest.importorskip("kimimaro")
    words = [f"{key}={tmp_path / key}" for key in ("meshes", "skeletons")]
    scene = tmp_path / "scene.png"
    words += [f"output={tmp_path / 'a.csv'}", f"scene={scene}", "min_volume=1e5", "report=true"]
    assert measure("input=mask.tif", *words) == 0
    assert {p.name for p in (tmp_path / "meshes").iterdir()} >= {"1.ply", "4.ply", "instances.glb", "meshes.json"}
    assert len(list((tmp_path / "skeletons").glob("*.swc"))) == 4
    assert json.loads((tmp_path / "meshes" / "meshes.json").read_text())["source"] == "mask.tif"
    assert scene.stat().st_size > 10_000
    assert "<html" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_conditions_are_compared(measure, tmp_path, place, capsys):
    for i, name in enumerate("abcd"):
        assert measure("input=instances.tif", f"voxel_size=[20,10,{10 + i}]", f"output={tmp_path / name}.csv") == 0
    files = [str(tmp_path / f"{name}.csv") for name in "abcd"]
    words = f"compare={{control:['{files[0]}','{files[1]}'],disease:['{files[2]}','{files[3]}']}}"
    assert measure(words, f"output={tmp_path / 'compared'}", "columns=[volume_nm3]") == 0
    tests = pd.read_csv(tmp_path / "compared" / "tests.csv").iloc[0]
    assert tests["hedges_g"] > 0
    assert tests["p_volumes_least"] == pytest.approx(1 / 3)
    assert (tmp_path / "compared" / "comparison.png").is_file()


MASK = "input=mask.tif output=a.csv"
OTHERS = "error: the folder contains other files"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("output=a.csv", "error: input has no value"),
        ("input=mask.tif", "error: output has no value"),
        ("input=mask.tif output=a.txt", "error: cannot write a table of that kind: 'a.txt'"),
        ("input=none.tif output=a.csv", "error: no such file"),
        (f"{MASK} image=other.tif", "differ in shape"),
        (f"{MASK} voxel_size=[1,2]", "error: "),
        (f"{MASK} padding=atuo", "choose padding=auto or none"),
        (f"{MASK} save_instances=b.mrc", "error: an MRC holds no uint32: 'b.mrc'"),
        ("input=[mask.tif,mask.tif] output=a.csv", "error: a table is for one volume"),
        (f"{MASK} meshes=b mesh_formats=null", "error: mesh_formats has no value"),
        (f"{MASK} +labelling.other=1", "error: Labelling has no option 'other'"),
        (f"{MASK} scene=a.jpg", "error: the scene is drawn as .png: 'a.jpg'"),
        (f"{MASK} meshes=.", "error: the output exists"),
        (f"{MASK} report=perhaps", "the option takes other values: report=perhaps; give true or"),
        (f"{MASK} reach=far", "the option takes other values: reach=far; give numbers"),
        (f"{MASK} voxel_size={{a:1}}", "error: the option takes other values: voxel_size={a:1}"),
        (f"{MASK} labelling.connectivity=7", "error: labelling.connectivity is no"),
        (f"{MASK} memory=lots", "error: not an amount of memory: 'lots'; write for instance"),
        (f"{MASK} memory=0", "error: not an amount of memory: 0"),
        (f"{MASK} memory=1MB", "error: too little memory for 1 process: '1MB'; give memory="),
        (f"{MASK} engine=foo", "error: engine has no 'foo'; choose one of dask,"),
        (f"{MASK} seed=-1", "error: seed is too small"),
        (f"{MASK} cut_objects=foo", "error: unknown cut_objects"),
        (f"{MASK} correction=foo", "error: unknown correction"),
        (f"{MASK} mesh_formats=[foo] meshes=b", "error: unknown formats of meshes"),
        (f"{MASK} mesh_reduction=0.5 meshes=b", "error: reduction is out of range"),
        (f"{MASK} meshes=a.csv", "error: two outputs have the same name: 'a.csv'"),
        (f"{MASK} save_instances=mask.tif overwrite=true", "the output is the input itself"),
        (f"{MASK} meshes=other.tif overwrite=true", OTHERS),
        (f"{MASK} skeletons=. overwrite=true", OTHERS),
        ("compare={a:[none.csv],b:[other.csv]} output=. overwrite=true", OTHERS),
        ("compare={control:[a.csv]} output=b", "error: compare does not name two conditions"),
        ("compare={a:[none.csv],b:[none.csv]} output=b", "none.csv"),
        ("compare={a:[none.csv],b:[]} output=b", "error: compare names no files for b"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(measure, place, capsys, words, line):
    before = sorted(place.iterdir())
    assert measure(*words.split()) == 1
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said
    assert sorted(place.iterdir()) == before


def test_a_share_of_the_memory_for_each_worker(measure, place, tmp_path, capsys):
    """What is said to be enough is; and more than there is can be no limit."""
    words = ["input=mask.tif", f"output={tmp_path / 'a.csv'}", "workers=2"]
    assert measure(*words, "memory=200MB") == 1
    said = re.search(
        r"too little memory for 2 processes: '200MB'; give (memory=([\d.]+)GB) or more", capsys.readouterr().err
    )
    assert float(said[2]) > 0.5
    assert measure(*words, said[1]) == 0
    assert measure(words[0], f"output={tmp_path / 'b.csv'}", "memory=900TB") == 0
    assert "memory=900TB is more than this machine has" in capsys.readouterr().err
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_classes_without_0(measure, tmp_path, place, capsys):
    """Background 1 and mitochondria 2, as ilastik's Simple Segmentation has them."""
    mask = tifffile.imread(place / "mask.tif")
    tifffile.imwrite(tmp_path / "classes.tif", mask + np.uint8(1), photometric="minisblack")
    words = [f"input={tmp_path / 'classes.tif'}", "voxel_size=[20,10,10]", f"output={tmp_path / 'a.csv'}"]
    for kind in ("null", "mask"):
        assert measure(*words, f"kind={kind}") == 1
        assert "error: " in (said := " ".join(capsys.readouterr().err.split()))
        assert "Traceback" not in said
        assert ("foreground=2" if kind == "mask" else "values of mitochondria") in said
        assert not (tmp_path / "a.csv").exists()
    assert measure(*words, "foreground=2") == 0
    assert measure("input=mask.tif", f"output={tmp_path / 'b.csv'}") == 0
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()


def test_nm_need_a_voxel_size(measure, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "plain.tif", balls().astype(np.uint8))
    words = [f"input={tmp_path / 'plain.tif'}", f"output={tmp_path / 'a.csv'}", "kind=instances"]
    assert measure(*words) == 1
    assert "measuring needs the voxel size" in capsys.readouterr().err
    assert measure(*words, "voxel_size=[20,10,10]") == 0
    assert measure(*words, "voxel_size=[20,10,10]") == 1
    assert "the output exists" in capsys.readouterr().err


def test_a_threshold_that_no_file_states_is_told(measure, tmp_path, capsys):
    tifffile.imwrite(tmp_path / "p.tif", (balls() > 0).astype(np.float32), photometric="minisblack")
    assert measure(f"input={tmp_path / 'p.tif'}", f"output={tmp_path / 'a.csv'}", "voxel_size=[20,10,10]") == 0
    assert "p.tif states no threshold: taking 0.5; give threshold=" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("added", [0.0, 0.5])
def test_instances_stored_as_floats(place, measure, tmp_path, capsys, added):
    tifffile.imwrite(tmp_path / "f.tif", balls().astype(np.float32) + np.float32(added), photometric="minisblack")
    given = [f"input={tmp_path / 'f.tif'}", "kind=instances", "voxel_size=[20,10,10]"]
    code = measure(*given, f"output={tmp_path / 'f.csv'}")
    if added:
        assert code == 1
        assert "instances are whole numbers from 0 up" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "f.csv").exists()
        return
    assert not code
    assert not measure(f"input={place / 'instances.tif'}", f"output={tmp_path / 'i.csv'}")
    assert (tmp_path / "f.csv").read_text() == (tmp_path / "i.csv").read_text()
