"""Prediction that is killed at some moment and run again: it goes on, and the result is the same to the last byte."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from kill_driver import Driver
from made_checkpoints import OneConvolution, save_checkpoint

from mitoseg.volumes import open_volume

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


NAMES = ["out.tif", "out.h5", "out.zarr", "out.ome.zarr", "out.mrc"]
CONVERTED = [name for name in NAMES if name != "out.zarr"]
SHAPE, TILE = (5, 20, 24), (2, 16, 16)
COUNT = 3 * 2 * 2
IN_FLIGHT = 3
"""Tiles that may be computed twice: one that is computed, one that is written, one that waits between them."""

STAGING = "mitoseg.volumes.staging"
MOMENTS = {
    "before the first tile": {"at": f"{STAGING}.StagedVolume.write", "when": "before"},
    "a tile is written but not listed": {"at": f"{STAGING}.StagedVolume._add", "call": 4, "when": "before"},
    "a tile is listed": {"at": f"{STAGING}.StagedVolume._add", "call": 4},
    "the last tile is listed": {"at": f"{STAGING}.StagedVolume._add", "call": COUNT},
    "before the rename": {"at": f"{STAGING}.move_into_place", "when": "before"},
    "after the rename": {"at": f"{STAGING}.move_into_place"},
    "in the clean-up": {"at": f"{STAGING}.remove", "call": 3},
}
CONVERTING = {
    "before converting": {"at": "mitoseg.volumes.opening.VolumeWriter.write", "when": "before"},
    "a tile is converted": {"at": "mitoseg.volumes.opening.VolumeWriter.write"},
    "all are converted": {"at": f"{STAGING}.StagedVolume._convert"},
}
ANYWHERE = [(name, moment) for name in NAMES for moment in MOMENTS]
ANYWHERE += [(name, moment) for name in CONVERTED for moment in CONVERTING]
SOME = [pytest.param(name, marks=[] if name in ("out.zarr", "out.h5") else pytest.mark.slow) for name in NAMES]
QUICK = [case for case in ANYWHERE if case[0] == "out.tif" or case[1] in ("a tile is listed", "after the rename")]


@pytest.fixture(scope="module")
def driver():
    with Driver() as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder with a checkpoint and a volume."""
    folder = tmp_path_factory.mktemp("source")
    save_checkpoint(folder / "a.ckpt", OneConvolution(), arguments={"in_channels": 1})
    image = np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)
    tifffile.imwrite(folder / "in.tif", image, photometric="minisblack")
    return folder


def command(source, name, *words):
    given = [f"checkpoint={source}/a.ckpt", f"input={source}/in.tif", f"output=out/{name}", f"tile={list(TILE)}"]
    fixed = ["trust=true", "progress=false", "expect=false", "accelerator=cpu", "precision=fp32", "compile=false"]
    return ["predict", *given, *fixed, *words]


def content(path):
    """Every file below a path with its bytes."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def expected(driver, source, tmp_path_factory):
    """What a run without a kill writes, by name."""
    folder = tmp_path_factory.mktemp("expected")
    for name in NAMES:
        ran = driver.run(folder, *command(source, name))
        assert (ran["code"], ran["computed"]) == (0, COUNT), ran["err"]
    assert sorted(p.name for p in (folder / "out").iterdir()) == sorted(NAMES)
    assert len(np.unique(open_volume(folder / "out" / NAMES[0]).read())) > 100
    return {name: content(folder / "out" / name) for name in NAMES}


def check_result(folder, name, expected):
    """The output is that of a run without a kill, and nothing lies beside it."""
    assert content(folder / "out" / name) == expected[name]
    assert [p.name for p in (folder / "out").iterdir()] == [name]


def check_goes_on(driver, folder, words, name, expected, before, count=COUNT):
    """Run the killed command once more."""
    ran = driver.run(folder, *words)
    assert ran["code"] == 0, ran["err"]
    assert "Traceback" not in ran["err"]
    assert before["computed"] + ran["computed"] <= count + IN_FLIGHT
    check_result(folder, name, expected)


def check_killed(driver, source, folder, case, expected, *more, old=None):
    """Kill the command at a moment, when an ``old`` output is still there, and run it once more."""
    name, moment = case
    words = command(source, name, *more)
    killed = driver.run(folder, *words, **(MOMENTS | CONVERTING)[moment])
    assert killed["code"] == -signal.SIGKILL, killed["err"]
    assert old is None or content(folder / "out" / name) == old
    check_goes_on(driver, folder, words, name, expected, killed)


@pytest.mark.parametrize("case", QUICK, ids=" ".join)
def test_killed_and_run_again(driver, source, tmp_path, expected, case):
    check_killed(driver, source, tmp_path, case, expected)


def put_old_output(folder, name, expected):
    """An output with other voxels."""
    for path, data in expected[name].items():
        target = folder / "out" / name / path if path != "." else folder / "out" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data if path.endswith(".json") else data[:-1] + bytes([data[-1] ^ 1]))
    return content(folder / "out" / name)


@pytest.mark.parametrize("case", [("out.tif", "a tile is listed"), ("out.zarr", "before the rename")], ids=" ".join)
def test_killed_with_an_old_output(driver, source, tmp_path, expected, case):
    old = put_old_output(tmp_path, case[0], expected)
    check_killed(driver, source, tmp_path, case, expected, "overwrite=true", old=old)


def test_killed_between_the_two_renames_of_a_folder(driver, source, tmp_path, expected):
    """The old folder has stepped aside, the new one has not got its name: nothing is lost."""
    old = put_old_output(tmp_path, "out.zarr", expected)
    words = command(source, "out.zarr", "overwrite=true")
    killed = driver.run(tmp_path, *words, at="mitoseg.storage.os.replace", match="tiles.zarr.old")
    assert killed["code"] == -signal.SIGKILL, killed["err"]
    assert not (tmp_path / "out" / "out.zarr").exists()
    assert content(tmp_path / "out" / ".out.zarr.unfinished" / "tiles.zarr.old") == old
    ran = driver.run(tmp_path, *words)
    assert (ran["code"], ran["computed"]) == (0, 0), ran["err"]
    check_result(tmp_path, "out.zarr", expected)


@pytest.mark.parametrize("name", SOME)
def test_ctrl_c_keeps_the_tiles_and_says_so(driver, source, tmp_path, expected, name):
    words = command(source, name)
    stopped = driver.run(tmp_path, *words, at=f"{STAGING}.StagedVolume.write", call=5, name="SIGINT")
    assert stopped["code"] == 130
    kept = re.search(r"(\d+) of 12 tiles are kept: the same command continues from there", stopped["err"])
    assert int(kept[1]) >= 5
    assert stopped["err"].endswith("interrupted\n")
    assert "Traceback" not in stopped["err"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == [f".{name}.unfinished"]
    check_goes_on(driver, tmp_path, words, name, expected, stopped)


@pytest.mark.parametrize("name", [case for case in SOME if case.values[0] in CONVERTED])
def test_ctrl_c_while_converting(driver, source, tmp_path, expected, name):
    words = command(source, name)
    stopped = driver.run(tmp_path, *words, **CONVERTING["a tile is converted"], name="SIGINT")
    assert stopped["code"] == 130
    assert "Traceback" not in stopped["err"]
    ran = driver.run(tmp_path, *words)
    assert (ran["code"], ran["computed"]) == (0, 0), ran["err"]
    check_result(tmp_path, name, expected)


def test_nothing_is_kept_before_the_first_tile(driver, source, tmp_path):
    stopped = driver.run(
        tmp_path, *command(source, "out.tif"), at=f"{STAGING}.StagedVolume.write", when="before", name="SIGINT"
    )
    assert stopped["code"] == 130
    assert stopped["err"].endswith("interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in ANYWHERE if case not in QUICK], ids=" ".join)
def test_killed_at_every_moment_in_every_format(driver, source, tmp_path, expected, case):
    check_killed(driver, source, tmp_path, case, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", ANYWHERE, ids=" ".join)
def test_killed_at_every_moment_with_an_old_output(driver, source, tmp_path, expected, case):
    put_old_output(tmp_path, case[0], expected)
    check_killed(driver, source, tmp_path, case, expected, "overwrite=true")


CHANGES = [(name, "new") for name in NAMES] + [(name, "with an old output") for name in ("out.tif", "out.zarr")]


@pytest.mark.slow
@pytest.mark.parametrize("case", CHANGES, ids=" ".join)
def test_killed_before_every_single_change_on_the_disk(driver, source, tmp_path, case):
    """Before every file that is opened for writing, renamed or removed, and every folder that is made."""
    name, new = case
    words = [*command(source, name, *(["overwrite=true"] if new != "new" else [])), "tile=[3,20,12]"]
    assert driver.run(tmp_path, *words)["computed"] == 4
    expected = {name: content(tmp_path / "out" / name)}
    for number in range(1, 1000):
        shutil.rmtree(tmp_path / "out")
        before = put_old_output(tmp_path, name, expected) if new != "new" else None
        killed = driver.run(tmp_path, *words, change=number)
        if killed["code"] == 0:
            break
        assert killed["code"] == -signal.SIGKILL, killed["err"]
        output = tmp_path / "out" / name
        found = content(output) if output.exists() else None
        stage = tmp_path / "out" / f".{name}.unfinished"
        between = stage / "tiles.zarr.old"  # of a folder that steps aside
        assert found in (before, expected[name]) or content(between) == before
        if found == expected[name] and not (stage / "plan.json").exists():
            continue  # nothing was left to do but to remove an empty folder
        check_goes_on(driver, tmp_path, words, name, expected, killed, count=4)
    assert number > 40
    check_result(tmp_path, name, expected)


@pytest.mark.slow
def test_a_real_process_killed_from_outside(source, tmp_path):
    """The command as users start it, killed when some tiles are done, again and again."""
    root = Path(__file__).parents[2]
    image = np.random.default_rng(0).integers(0, 255, (30, 200, 200), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", image, photometric="minisblack")
    save_checkpoint(tmp_path / "a.ckpt")
    given = ["checkpoint=a.ckpt", "input=in.tif", "progress=false", "tile=[1,200,200]", "accelerator=cpu"]
    words = [sys.executable, str(root / "predict.py"), *given]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*words, "output=whole.h5"], cwd=tmp_path, env=environment, check=True)
    done = tmp_path / ".out.h5.unfinished" / "done.txt"
    for least in (3, 12):
        with subprocess.Popen([*words, "output=out.h5"], cwd=tmp_path, env=environment) as process:
            deadline = time.monotonic() + 120
            while not (done.is_file() and done.read_text().count("\n") >= least):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.kill()
        assert not (tmp_path / "out.h5").exists()
    subprocess.run([*words, "output=out.h5"], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
