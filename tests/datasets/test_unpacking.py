import io
import stat
import tarfile
import zipfile

import pytest

from mitoseg.datasets import download as download_module
from mitoseg.datasets.download import unpack
from mitoseg.errors import UserError

FILES = {"Set/In/mask0000.png": b"one", "Set/Out/0.png": b"two" * 5000, "read.me": b""}


def make_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def make_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("make", "name"), [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_round_trip_without_clutter(tmp_path, make, name):
    clutter = {"__MACOSX/Set/._0.png": b"x", "Set/In/.DS_Store": b"x", "Set/In/._mask0000.png": b"x"}
    unpack(make(tmp_path / name, FILES | clutter), tmp_path / "out" / "set")
    assert contents(tmp_path / "out" / "set") == FILES
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["set"]


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "C:evil.txt", "..\\evil.txt", "\\evil.txt"]
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, make, name):
    archive = make(tmp_path / "archive", {"fine.txt": b"fine", name: b"evil"})
    with pytest.raises(UserError, match=r"leaves the folder.*official source"):
        unpack(archive, tmp_path / "out" / "set")
    assert not list(tmp_path.rglob("*.txt"))
    assert list((tmp_path / "out").iterdir()) == []


def test_links_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("inside")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc")
        file.writestr("inside/passwd", "evil")
    with pytest.raises(UserError, match="holds a link or device, 'inside'"):
        unpack(tmp_path / "a.zip", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("inside")
    info.type, info.linkname = kind, "/etc"
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.addfile(info)
    with pytest.raises(UserError, match="holds a link or device"):
        unpack(tmp_path / "a.tar", tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_bombs_are_refused(tmp_path, make):
    archive = make(tmp_path / "archive", {"a": bytes(600_000), "b": bytes(600_000)})
    assert archive.stat().st_size < 10_000
    with pytest.raises(UserError, match="unpacks to more than 1000000 bytes"):
        unpack(archive, tmp_path / "out" / "set", limit_bytes=1_000_000)
    assert list((tmp_path / "out").iterdir()) == []
    unpack(archive, tmp_path / "out" / "set", limit_bytes=1_200_000)


def test_a_zip_that_lies_about_its_size_stays_within_the_limit(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(3_000_000)})
    data = archive.read_bytes().replace((3_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(data)
    with pytest.raises(UserError):
        unpack(archive, tmp_path / "set", limit_bytes=1_000_000)
    assert not (tmp_path / "set").exists()


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "LIMIT_FILES", 2)
    with pytest.raises(UserError, match="more than 2 files"):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "set")


def damaged(data):
    middle = data.index(b"Set/Out/0.png") + 20
    return data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 8]) + data[middle + 8 :]


@pytest.mark.parametrize("harm", [lambda data: b"no archive", lambda data: data[: len(data) // 2], damaged])
def test_damaged_archives(tmp_path, harm):
    archive = make_zip(tmp_path / "a.zip", FILES)
    archive.write_bytes(harm(archive.read_bytes()))
    with pytest.raises(UserError, match=r"archive.*run again") as caught:
        unpack(archive, tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_a_cut_tar(tmp_path):
    archive = make_tar(tmp_path / "a.tar.gz", FILES | {"big": bytes(range(256)) * 4000})
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot unpack"):
        unpack(archive, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_a_folder_that_another_process_unpacked_first_stays(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "theirs").write_bytes(b"whole")
    unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "set")
    assert contents(tmp_path / "set") == {"theirs": b"whole"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot unpack into the folder.*data\.root="):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "file" / "set")
