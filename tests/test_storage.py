import errno
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from mitoseg import storage
from mitoseg.errors import UserError
from mitoseg.storage import atomic_output, check_output, held, write_json, write_text


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def break_off(path, error, **options):
    """Write half of an output, then raise."""
    with atomic_output(path, **options) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_appears_whole(tmp_path):
    with atomic_output(tmp_path / "a.tif") as temporary:
        assert (temporary.suffix, temporary.parent) == (".tif", tmp_path)
        temporary.write_bytes(b"half")
        assert not (tmp_path / "a.tif").exists()
    assert names(tmp_path) == ["a.tif"]
    with atomic_output(tmp_path / ("a" * 200 + ".tif")) as temporary:  # a name that the temporary one cannot hold
        temporary.write_text("x")


def test_a_folder_appears_whole_and_replaces_another_or_stays(tmp_path, monkeypatch):
    for name in ("old", "new"):
        with atomic_output(tmp_path / "a.zarr", overwrite=True) as temporary:
            temporary.mkdir()
            (temporary / name).touch()
        assert names(tmp_path) == ["a.zarr"]
        assert names(tmp_path / "a.zarr") == [name]
    replace = os.replace

    def refuse(source, target):
        if Path(source).name.endswith(".partial.zarr"):
            raise PermissionError(errno.EACCES, "held")
        replace(source, target)

    monkeypatch.setattr(storage.os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written"), atomic_output(tmp_path / "a.zarr", overwrite=True) as t:
        t.mkdir()
    assert names(tmp_path) == ["a.zarr"]
    assert names(tmp_path / "a.zarr") == ["new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_any_exception_leaves_nothing_keeps_the_old_output_and_passes_on(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    for path in (tmp_path / "new" / "deep" / "a.tif", tmp_path / "a.txt"):
        with pytest.raises(error):
            break_off(path, error(), overwrite=True)
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk is full"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "disk is full"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "cannot be written"),
        (RuntimeError("(file write failed: errno = 28, error message = 'No space left on device')"), "disk is full"),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), "disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 128 vs 0"), "disk is full"),
    ],
)
def test_what_the_system_refuses_is_one_line(tmp_path, error, says):
    with pytest.raises(UserError, match=says) as caught:
        break_off(tmp_path / "a.tif", error)
    assert "a.tif" in str(caught.value)
    assert "partial" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_other_errors_are_not_mistaken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="errno = 5"), atomic_output(tmp_path / "a.h5"):
        raise RuntimeError("errno = 5")
    with pytest.raises(FileNotFoundError), atomic_output(tmp_path / "a.h5"):
        pass  # nothing was written: the caller's mistake
    if Path("/dev/full").exists():
        with pytest.raises(UserError, match="disk is full"), atomic_output(tmp_path / "a.txt"):
            Path("/dev/full").write_text("x")
    assert names(tmp_path) == []


def test_check_output_refuses_what_exists(tmp_path):
    (tmp_path / "a.tif").write_text("")
    with pytest.raises(UserError, match=r"exists: '.*a\.tif'; .*overwrite=true"):
        check_output(tmp_path / "a.tif", overwrite=False)
    check_output(tmp_path / "a.tif", overwrite=True)
    check_output(tmp_path / "no" / "such" / "folder" / "b.tif", overwrite=False)
    assert names(tmp_path) == ["a.tif"]
    if os.name != "nt":
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match="exists"):
            check_output(tmp_path / "link", overwrite=False)


def test_an_output_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(UserError, match="appeared"), atomic_output(tmp_path / "a.txt"):
        (tmp_path / "a.txt").write_text("another's")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "another's"


@pytest.mark.parametrize("name", ["file/a.tif", "closed/a.tif", "a" * 300 + ".tif"])
def test_a_place_where_nothing_can_be_written(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o500)
    if "closed" in name and os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("root may write everywhere, and Windows has no such permissions")
    with pytest.raises(UserError, match=r"cannot be written( \(not a folder\))?|Not a directory"):
        check_output(tmp_path / name, overwrite=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_parent_that_refuses(tmp_path, monkeypatch, number):
    def refuse(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match="cannot be written"), atomic_output(tmp_path / "a.tif"):
        pytest.fail("must not get here")


def test_json_is_plain(tmp_path):
    data = {"nan": float("nan"), "inf": np.float32("inf"), "count": np.int64(2**40), "shape": (1, 2), "none": None}
    data |= {"array": np.array([[1.5, np.nan]]), "path": Path("a") / "b", "text": "µm", 3: {True}}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "µm" in text
    expected = {"nan": None, "inf": None, "count": 2**40, "shape": [1, 2], "none": None, "array": [[1.5, None]]}
    assert json.loads(text) == expected | {"path": os.path.join("a", "b"), "text": "µm", "3": [True]}
    with pytest.raises(TypeError, match="object"):
        write_json(tmp_path / "a.json", {"x": object()})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["a.json"]


def test_text_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "a.txt", "a\nb\r\nµ")
    assert (tmp_path / "a.txt").read_bytes() == "a\nb\r\nµ".encode()
    with pytest.raises(UserError, match="exists"):
        write_text(tmp_path / "a.txt", "", overwrite=False)


def killed_while_writing(path, *, folder=False, after="writing"):
    """What a process leaves that is killed while it writes an output, or between two renames."""
    pid = os.fork()
    if pid == 0:
        replace = os.replace
        storage.os.replace = lambda *names: (replace(*names), os._exit(9)) if after == "rename" else replace(*names)
        with atomic_output(path, overwrite=True) as temporary:
            temporary.mkdir() if folder else temporary.write_text("new")
            if after == "writing":
                os._exit(9)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@needs_fork
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "ä" * 70 + ".tif", ".a.b.txt"])
def test_what_a_killed_process_left_goes_with_the_next_output_of_that_name(tmp_path, name, folder):
    for _ in range(2):
        killed_while_writing(tmp_path / name, folder=folder)
    assert len(names(tmp_path)) == 1  # the second one swept what the first had left
    with storage.scratch_folder(tmp_path / name) as scratch:
        assert names(tmp_path) == [scratch.name]
    assert names(tmp_path) == []


@needs_fork
def test_the_old_folder_comes_back_after_a_kill_between_the_renames(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    killed_while_writing(tmp_path / "a", folder=True, after="rename")
    assert "a" not in names(tmp_path)
    with pytest.raises(UserError, match="exists"):
        check_output(tmp_path / "a", overwrite=False)
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_under_a_lock_s_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".lock").symlink_to(victim)
    with pytest.raises(UserError, match="cannot be written"), held(tmp_path / ".lock", "busy"):
        pass
    assert victim.read_text() == "precious"


@needs_fork
def test_what_others_write_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / ".a.3f9c2a1b.partial.txt").touch()  # of no process that is named
    killed_while_writing(tmp_path / "a.b.txt")
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_machine", lambda: "00000000")
        killed_while_writing(tmp_path / "a.txt")
    with atomic_output(tmp_path / "a.txt") as temporary:
        temporary.mkdir()
        before = names(tmp_path)
        assert len(before) == 4
        storage.sweep(tmp_path / "a.txt")
        assert names(tmp_path) == before
        temporary.rmdir()
        temporary.touch()
    old = next(path for path in tmp_path.iterdir() if "00000000" in path.name)
    os.utime(old, (0, time.time() - 8 * 24 * 3600))
    storage.sweep(tmp_path / "a.txt")
    assert set(before) - set(names(tmp_path)) == {old.name, temporary.name}


def test_an_unfinished_folder_that_is_a_link_or_another_s_is_refused(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    storage.check_own_folder(tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is a link"):
        storage.check_own_folder(tmp_path / "link")
    with pytest.raises(OSError, match="symbolic"), open(tmp_path / "link", "w", opener=storage.open_own):
        pass
    state = list((tmp_path / "mine").stat())
    state[4] += 1
    monkeypatch.setattr(storage.os, "fstat", lambda _: os.stat_result(state))
    with pytest.raises(UserError, match="another user"):
        storage.check_own_folder(tmp_path / "mine")
