"""``predict`` as a user types it: formats, methods, what is saved, and going on with what was begun."""

import json
import os
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr
from hydra import compose, initialize_config_dir
from made_checkpoints import OneConvolution, Padded, interrupt_at, predict, prepare, save_checkpoint, tif
from scipy.special import expit

from mitoseg.cli.launch import default_config_dir
from mitoseg.networks.checkpoint import load_model
from mitoseg.storage import move_into_place
from mitoseg.volumes import open_volume
from mitoseg.workflows.options import typed
from mitoseg.workflows.predict import NEUTRAL, identity

GREY = np.random.default_rng(0).integers(0, 255, (6, 40, 48), np.uint8)
TILED = "tile=[2,16,16]"
COUNT = 3 * 3 * 3


@pytest.fixture
def work(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch, GREY)


@pytest.fixture
def run(work, monkeypatch):
    """Run the command; its exit code."""

    def call(*words):
        given = {"checkpoint": "a.ckpt", "input": "in.tif", "output": "out.tif", "trust": "true"}
        given |= dict(word.split("=", 1) for word in words)
        return predict(monkeypatch, "hydra.run.dir=run", *(f"{key}={value}" for key, value in given.items()))

    return call


@pytest.fixture
def stopped(run, monkeypatch):
    """Run the command, with a Ctrl-C when it computes one of its tiles."""

    def call(*words, at=6):
        with monkeypatch.context() as patch:
            interrupt_at(patch, at)
            assert run(*words) == 130

    return call


def expected():
    """The probability by the network's definition: one convolution over the reflected slice."""
    network = load_model("a.ckpt", trust=True).network
    image = torch.from_numpy(np.pad((GREY - np.float32(120)) / 60, ((0, 0), (1, 1), (1, 1)), "reflect"))
    with torch.no_grad():
        scores = network(image[:, None]).numpy()
    return expit(scores[:, 1] - scores[:, 0])


def test_the_score_to_expect_is_told_and_recorded(work, run, capsys):
    assert run("expect=true") == 0
    assert "expected foreground JAC" in capsys.readouterr().out
    found = json.loads(Path("run/provenance.json").read_text())["chosen"]["expected"]
    assert 0 < found["jaccard"] < 1
    assert found["fields"][0]["stop"][1:] == [40, 48]


def test_a_volume_too_small_to_be_judged_is_predicted(work, run, capsys):
    """With larger pixels it would be smaller than the network's window."""
    save_checkpoint("a.ckpt")
    tif("in.tif", GREY[:, :33, :33])
    assert run("expect=true") == 0
    assert "the foreground JAC to expect is not known: the slice is smaller" in capsys.readouterr().err
    assert "expected" not in json.loads(Path("run/provenance.json").read_text())["chosen"]


@pytest.mark.parametrize(
    "name", ["out.tif", "out.h5", "out.h5:/maps/mito", "out.zarr", "out.mrc", "new/ä b, [1].zarr"]
)
def test_every_format_holds_the_right_probabilities(work, run, name):
    assert run(f"output={name}", TILED) == 0
    result = open_volume(name)
    np.testing.assert_allclose(result.read(), expected(), atol=1e-6)
    assert result.voxel_size == (5.0, 5.0, 5.0)
    assert result.info.metadata == {"kind": "probability", "threshold": 0.5, "scale": 1, "checkpoint": "a.ckpt"}
    assert {p.name for p in work.iterdir()} == {"a.ckpt", "in.tif", "run", name.split(":")[0].split("/")[0]}


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (["save=mask"], lambda p: (p >= 0.5).astype(np.uint8)),
        (["save=mask", "threshold=0.8"], lambda p: (p >= 0.8).astype(np.uint8)),
        (["dtype=uint8"], lambda p: np.rint(p * 255).astype(np.uint8)),
    ],
)
def test_what_is_saved(run, words, kind):
    assert run(*words, TILED) == 0
    result = open_volume("out.tif").read()
    wanted = kind(expected())
    assert result.dtype == np.uint8
    assert (result != wanted).mean() < 0.001  # a probability may lie on the step
    assert result.std() > 0


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("network", "method"), [(OneConvolution, "dense"), (Padded, "blend")])
def test_the_result_does_not_depend_on_the_tiles(run, network, method, ndim):
    """Nor on whether a method is named."""
    save_checkpoint("a.ckpt", network(1, ndim), arguments={"in_channels": 1, "ndim": ndim})
    tile = "tile=[4,16,16]" if method == "blend" else "tile=[6,40,48]"
    assert run("output=a.zarr", tile, "memory=100GB") == 0
    assert run("output=b.zarr", "tile=[4,16,16]", f"method={method}") == 0
    a, b = open_volume("a.zarr").read(), open_volume("b.zarr").read()
    np.testing.assert_array_equal(a, b)
    assert a.std() > 0.1


def test_the_record_says_what_was_chosen(run):
    assert run(TILED, "tta=flips") == 0
    chosen = json.loads(Path("run/provenance.json").read_text())["chosen"]
    assert chosen == {"precision": "fp32", "device": "cpu", "tile": [2, 16, 16], "compile": False, "method": "dense"}


def test_going_on_computes_the_missing_tiles_only(run, stopped, computed, capsys):
    assert run("output=whole.tif", TILED) == 0
    stopped(TILED)
    listed = Path(".out.tif.unfinished/done.txt").read_text().splitlines()
    assert len(listed) == 5
    assert "5 of 27 tiles are kept: the same command continues from there" in capsys.readouterr().err
    assert not Path("out.tif").exists()
    computed.clear()
    assert run(TILED) == 0
    assert "continuing: 5 of 27 tiles are done" in capsys.readouterr().err
    assert len(computed) == COUNT - 5
    assert not {str(box) for box in computed} & set(listed)
    assert Path("out.tif").read_bytes() == Path("whole.tif").read_bytes()
    assert not Path(".out.tif.unfinished").exists()


def test_tiles_and_compilation_stay_as_they_were_decided(run, stopped, computed, monkeypatch):
    """However much memory there is the next time, tiles that are done must fit the others."""
    monkeypatch.setattr("mitoseg.workflows.predict.budget_bytes", lambda *_, **__: 300_000)
    stopped(at=2)
    plan = json.loads(Path(".out.tif.unfinished/plan.json").read_text())["decisions"]
    assert plan["tile"] != [6, 40, 48]
    monkeypatch.setattr("mitoseg.workflows.predict.budget_bytes", lambda *_, **__: 1e12)
    first = len(computed)
    assert run("memory=100GB") == 0
    assert computed[first].shape[1:] != (40, 48) or computed[first].shape[0] < 6
    assert json.loads(Path("run/provenance.json").read_text())["chosen"]["tile"] == plan["tile"]
    np.testing.assert_allclose(open_volume("out.tif").read(), expected(), atol=1e-6)


CHANGES = [
    *("method=strided", "save=mask", "dtype=uint8", "threshold=0.3", "tta=flips", "overlap=0.25", "window_stride=2"),
    *("axes=zyx", "tile=[2,16,48]", "voxel_size=[9,9,9]", "precision=bf16", "input=other.tif", "compile=true"),
]


@pytest.mark.parametrize("word", CHANGES)
def test_another_command_does_not_go_on(run, stopped, capsys, computed, word):
    tif("other.tif", GREY)
    stopped(TILED)
    before = Path(".out.tif.unfinished/done.txt").read_text()
    computed.clear()
    capsys.readouterr()
    assert run(*([TILED, word] if not word.startswith("tile") else [word])) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "an unfinished output of another command is there (" in errors[0]
    assert f"{word.split('=')[0]} was" in errors[0]
    assert "run that command again to finish it, or give overwrite=true" in errors[0]
    assert computed == []
    assert Path(".out.tif.unfinished/done.txt").read_text() == before
    assert run(TILED) == 0


@pytest.mark.parametrize("word", ["memory=2GB", "overwrite=true", "progress=false", "missing_slices=ignore"])
def test_what_does_not_change_the_result_may_change(run, stopped, computed, word):
    stopped(TILED)
    computed.clear()
    assert run(TILED, word) == 0
    assert len(computed) == COUNT - 5


BELONGS = {
    *("input", "save", "dtype", "threshold", "method", "tta", "consensus", "tile", "overlap", "window_stride"),
    *("compile", "normalize", "padding", "resample", "axes", "voxel_size", "postprocess", "labelling"),
}
"""Options of predict that change voxels; the others are `mitoseg.workflows.predict.NEUTRAL`."""


def test_every_option_that_changes_a_voxel_makes_another_command(work):
    with initialize_config_dir(str(default_config_dir()), version_base="1.3"):
        options = typed(compose("predict", ["input=in.tif", "output=out.tif"]))
    options.next_option = 1
    assert set(vars(options)) == {*BELONGS, *NEUTRAL, "next_option"}
    assert not BELONGS & set(NEUTRAL)
    session, volume = SimpleNamespace(precision="fp32", device="cpu", sha256=""), open_volume("in.tif")
    before = identity(options, session, volume)
    for key in vars(options):
        other = copy(options)
        setattr(other, key, "in.tif" if key == "input" else "another")
        changed = identity(other, session, volume)
        differ = {name for name in before if before[name] != changed[name]}
        assert differ == (set() if key in {*NEUTRAL, "input"} else {key}), key
    other = copy(options)
    other.postprocess = {**options.postprocess, "next_step": 1}
    assert identity(other, session, volume) != before


FINISHED = {
    "mask": ["save=mask"],
    "clean": ["save=mask", "postprocess=clean", "postprocess.min_volume=2000"],
    "cleaner": ["save=mask", "postprocess=clean", "postprocess.min_volume=9000", "postprocess.smooth=3"],
    "instances": ["save=instances"],
    "few": ["save=instances", "labelling.min_volume=30000"],
    "clean instances": ["save=instances", "postprocess=clean"],
    "probability": ["save=probability"],
}
KEPT = {("clean", "cleaner"), ("mask", "instances"), ("instances", "few"), ("probability", "clean instances")}
PAIRS = [*sorted(KEPT), ("clean", "mask"), ("mask", "clean"), ("few", "probability")]


MOMENTS = ("a tile", "the last tile", "converted", "renamed")
ALL = [(a, b, moment, name) for a, b in PAIRS for moment in MOMENTS for name in ("out.tif", "out.zarr")]
QUICK = [
    ("clean", "cleaner", "a tile", "out.tif"),
    ("clean", "mask", "the last tile", "out.tif"),
    ("mask", "clean", "renamed", "out.zarr"),
    ("instances", "few", "converted", "out.tif"),
]


@pytest.mark.parametrize("case", [*QUICK, *(pytest.param(c, marks=pytest.mark.slow) for c in ALL if c not in QUICK)])
def test_what_is_made_of_the_tiles_may_change_after_an_interrupt(run, stopped, computed, capsys, monkeypatch, case):
    """Whenever it came: the new result is that of an undisturbed run, or one line names what helps."""
    *change, moment, name = case
    before, after = (FINISHED[key] for key in change)
    output, words = f"output={name}", [f"output={name}", TILED, *after]
    assert run(TILED, *after, f"output=whole{name[3:]}") == 0
    if "tile" in moment:
        stopped(TILED, *before, output, at={"a tile": 6, "the last tile": COUNT}[moment])
    else:

        def move(*names, **options):
            if moment == "renamed":
                move_into_place(*names, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("mitoseg.volumes.staging.move_into_place", move)
            assert run(TILED, *before, output) == 130
    computed.clear()
    capsys.readouterr()
    kept = tuple(change) in KEPT and moment != "renamed"
    code = run(*words)
    assert code == (0 if kept else 1)
    assert not kept or len(computed) == {"a tile": COUNT - 5, "the last tile": 1, "converted": 0}[moment]
    if code:
        told = capsys.readouterr().err.splitlines()[-1]
        assert "overwrite=true" in told
        assert "the output exists" in told or "an unfinished output of another command" in told
        assert run(*words, "overwrite=true") == 0
    result, whole = open_volume(name), open_volume(f"whole{name[3:]}")
    np.testing.assert_array_equal(result.read(), whole.read())
    assert result.info.metadata == whole.info.metadata
    assert not Path(f".{name}.unfinished").exists()


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("words", [["save=instances"], ["save=mask", "postprocess=clean"], ["report=true"]])
def test_an_output_that_has_its_name_is_not_computed_again(run, computed, monkeypatch, words):
    """A kill comes when nothing is left but to draw the report and to tidy up."""
    broken = "mitoseg.workflows.evaluate.report_predicted" if "report=true" in words else "rich.console.Console.print"
    with monkeypatch.context() as patch:
        patch.setattr(broken, interrupt)
        assert run(*words) == 130
    made = Path("out.tif").stat().st_mtime_ns
    computed.clear()
    assert run(*words) == 0
    assert (computed, Path("out.tif").stat().st_mtime_ns) == ([], made)
    assert Path("run/report.html").is_file() == ("report=true" in words)
    assert not Path(".out.tif.unfinished").exists()


def test_an_output_that_was_replaced_meanwhile_is_not_taken_for_finished(run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("rich.console.Console.print", interrupt)
        assert run() == 130
    tif("out.tif", GREY)
    assert run() == 1
    assert "the output exists" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="links as on Unix")
def test_a_link_where_the_stage_would_be_is_not_followed(run, work, capsys):
    (work / "precious").mkdir()
    (work / "precious" / "file").touch()
    Path(".out.tif.unfinished").symlink_to("precious")
    assert run() == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "the folder of the unfinished output is a link" in told
    assert [p.name for p in Path("precious").iterdir()] == ["file"]
    Path(".out.tif.unfinished").unlink()
    assert run() == 0


@pytest.mark.parametrize("what", ["input", "checkpoint"])
def test_a_changed_file_begins_anew_with_a_warning(run, stopped, computed, capsys, what):
    stopped(TILED)
    if what == "input":
        tif("in.tif", GREY[::-1])
        os.utime("in.tif", (1, 1))
    else:
        network = OneConvolution()
        save_checkpoint("a.ckpt", network, arguments={"in_channels": 1}, threshold=0.6)
    computed.clear()
    assert run(TILED) == 0
    told = {"input": "input_files", "checkpoint": "checkpoint_sha256"}[what]
    assert f"an unfinished output is discarded: {told} changed since" in capsys.readouterr().err
    assert len(computed) == COUNT


def test_another_command_with_overwrite_begins_anew_and_an_old_output_stays_until_its_end(run, stopped, computed):
    words = [TILED, "save=mask", "overwrite=true"]
    assert run() == 0
    before = Path("out.tif").read_bytes()
    stopped(*words)
    assert Path("out.tif").read_bytes() == before
    stopped(TILED, "overwrite=true")
    computed.clear()
    assert run(*words) == 0
    assert len(computed) == COUNT
    assert open_volume("out.tif").info.metadata["kind"] == "mask"


def test_a_damaged_tile_is_told_and_computed_anew(run, stopped, computed, capsys):
    stopped(TILED, "output=out.h5", at=COUNT)
    chunk = next(p for p in Path(".out.h5.unfinished/tiles.zarr/c").rglob("*") if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    assert run(TILED, "output=out.h5") == 1
    assert "error: 1 finished tiles were damaged on the disk, among them" in capsys.readouterr().err
    computed.clear()
    assert run(TILED, "output=out.h5") == 0
    assert len(computed) == 1
    np.testing.assert_allclose(open_volume("out.h5").read(), expected(), atol=1e-6)


def test_missing_chunks_may_be_filled(run):
    array = zarr.create_array(store="in.zarr", shape=GREY.shape, chunks=(2, 40, 48), dtype="u1", fill_value=9)
    array[:] = GREY
    Path("in.zarr/c/1/0/0").unlink()
    assert run("input=in.zarr") == 1
    assert run("input=in.zarr", "missing_chunks=fill") == 0
    filled = GREY.copy()
    filled[2:4] = 9
    tif("filled.tif", filled)
    assert run("input=filled.tif", "output=b.tif") == 0
    np.testing.assert_array_equal(open_volume("out.tif").read(), open_volume("b.tif").read())


def test_the_files_voxel_size_comes_before_the_checkpoints(run, capsys):
    assert run() == 0
    assert "in.tif has no voxel size: taking the checkpoint's" in capsys.readouterr().err
    assert run("voxel_size=[30,4,4]", "output=b.h5") == 0
    assert open_volume("b.h5").voxel_size == (30.0, 4.0, 4.0)
    assert "no voxel size" not in capsys.readouterr().err
