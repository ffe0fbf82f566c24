import hashlib
import stat
import zipfile
from dataclasses import replace

import pytest

from mitoseg.datasets import download
from mitoseg.datasets.download import RemoteFile, changed_files, checksums, fetch, fingerprint, unpack
from mitoseg.errors import UserError

STEP = 1 << 16  # what the downloader reads at once
BODY = bytes(range(256)) * 4000
PATH = "/data/%20folder/a.tif"  # the odd blank is part of the address
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def remote(server):
    server.behaviour.files = {PATH: BODY}
    return RemoteFile("a.tif", server.url + PATH, sha256=SHA256)


def get(remote, folder, retries=2):
    return fetch(remote, folder, retries=retries, wait_s=0)


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".download.lock")


def test_a_file_arrives_once(server, remote, tmp_path):
    path = get(remote, tmp_path / "new" / "cache")
    assert path.read_bytes() == BODY
    assert get(remote, path.parent) == path
    assert server.behaviour.requests == [(PATH, None)]
    path.write_bytes(b"half")
    assert get(replace(remote, sha256=None, size=len(BODY)), path.parent).read_bytes() == BODY
    assert leftovers(path.parent) == ["a.tif"]


def test_a_cut_connection_is_continued(server, remote, tmp_path):
    server.behaviour.cuts = [4 * STEP + 99, STEP]
    assert get(remote, tmp_path, retries=0).read_bytes() == BODY  # each try gets further, so none counts as failed
    starts = [int((wanted or "bytes=0-")[6:-1]) for _, wanted in server.behaviour.requests]
    assert starts == [0, 4 * STEP, 5 * STEP]


def test_what_arrived_survives_a_failure_and_is_continued_by_the_next_run(server, remote, tmp_path):
    server.behaviour.cuts = [4 * STEP]
    server.behaviour.statuses = [200, 503, 503, 503]
    with pytest.raises(UserError, match=r"the download failed \(HTTP 503"):
        get(remote, tmp_path)
    assert leftovers(tmp_path) == ["a.tif.part"]
    server.behaviour.requests.clear()
    assert get(remote, tmp_path).read_bytes() == BODY
    assert server.behaviour.requests == [(PATH, f"bytes={4 * STEP}-")]
    assert leftovers(tmp_path) == ["a.tif"]


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(server, remote, tmp_path):
    server.behaviour.ranges = False
    server.behaviour.cuts = [4 * STEP] * 20
    with pytest.raises(UserError, match="the connection was cut"):
        get(remote, tmp_path)
    assert len(server.behaviour.requests) == 4  # the first brought bytes, two more tries did not, nor did the last


@pytest.mark.parametrize(
    ("part", "behaviour", "ranges"),
    [
        (b"", {"length": False}, [None]),
        (b"", {"ranges": False, "cuts": [4 * STEP]}, [None, f"bytes={4 * STEP}-"]),
        (BODY[:1000], {"shifted": 7}, ["bytes=1000-", None]),  # a server that continues elsewhere
        (BODY, {}, [f"bytes={len(BODY)}-"]),
        (b"x" * len(BODY), {}, [f"bytes={len(BODY)}-", None]),
        (b"x" * 1000, {}, ["bytes=1000-", None]),  # the sum fails once, then everything is read anew
        (BODY + b"too long", {}, [f"bytes={len(BODY) + 8}-", None]),
    ],
)
def test_whatever_part_was_there_and_however_the_server_behaves(server, remote, tmp_path, part, behaviour, ranges):
    if part:
        (tmp_path / "a.tif.part").write_bytes(part)
    for name, value in behaviour.items():
        setattr(server.behaviour, name, value)
    assert get(remote, tmp_path).read_bytes() == BODY
    assert [wanted for _, wanted in server.behaviour.requests] == ranges


@pytest.mark.parametrize(
    ("body", "size", "difference"),
    [
        (BODY[:-1] + b"!", None, r"sha256 \w{12}\.\.\. instead of \w{12}\.\.\."),
        (BODY[:-1], len(BODY), f"{len(BODY) - 1} bytes instead of {len(BODY)}"),
        (BODY + b"!", len(BODY), f"{len(BODY) + 1} bytes instead of {len(BODY)}"),
    ],
)
def test_another_file_is_removed_and_told(server, remote, tmp_path, body, size, difference):
    server.behaviour.files[PATH] = body
    with pytest.raises(UserError, match=f"has {difference} and was removed: 'http://"):
        get(replace(remote, sha256=SHA256 if size is None else None, size=size), tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (410, 1), (500, 3), (429, 3)])
def test_http_errors(server, remote, tmp_path, status, requests):
    server.behaviour.statuses = [status] * 20
    with pytest.raises(UserError, match=f"HTTP {status}.*data.root=") as caught:
        get(remote, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(server.behaviour.requests) == requests
    assert leftovers(tmp_path) == []


def test_no_server(remote, tmp_path):
    with pytest.raises(UserError, match=r"the download failed \(no connection\)") as caught:
        get(replace(remote, url="http://127.0.0.1:9/a.tif"), tmp_path, retries=0)
    assert len(str(caught.value)) < 250


def test_a_folder_that_cannot_be_written(remote, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot store the download"):
        get(remote, tmp_path / "file" / "cache")
    with pytest.raises(UserError, match=r"cannot unpack into the folder.*data\.root="):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "file" / "set")


FILES = {"Set/In/mask0000.png": b"one", "Set/Out/0.png": b"two" * 5000, "read.me": b""}


def make_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_round_trip_without_clutter(tmp_path):
    clutter = {"__MACOSX/Set/._0.png": b"x", "Set/In/.DS_Store": b"x", "Set/In/._mask0000.png": b"x"}
    unpack(make_zip(tmp_path / "a.zip", FILES | clutter), tmp_path / "out" / "set")
    assert contents(tmp_path / "out" / "set") == FILES
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["set"]


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "C:/evil.txt", "C:evil.txt", "..\\evil.txt", "\\evil.txt"]
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, name):
    archive = make_zip(tmp_path / "archive", {"fine.txt": b"fine", name: b"evil"})
    with pytest.raises(UserError, match=r"leaves the folder.*official source"):
        unpack(archive, tmp_path / "out" / "set")
    assert not list(tmp_path.rglob("*.txt"))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(tmp_path, kind):
    link = zipfile.ZipInfo("inside")
    link.create_system, link.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "archive", "w") as file:
        file.writestr(link, "/etc")
        file.writestr("inside/passwd", "evil")
    with pytest.raises(UserError, match="holds a link or device, 'inside'"):
        unpack(tmp_path / "archive", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_bombs_are_refused(tmp_path, monkeypatch):
    archive = make_zip(tmp_path / "archive", {"a": bytes(600_000), "b": bytes(600_000)})
    assert archive.stat().st_size < 10_000
    with pytest.raises(UserError, match="unpacks to more than 1000000 bytes"):
        unpack(archive, tmp_path / "out" / "set", limit_bytes=1_000_000)
    assert list((tmp_path / "out").iterdir()) == []
    unpack(archive, tmp_path / "out" / "set", limit_bytes=1_200_000)
    monkeypatch.setattr(download, "LIMIT_FILES", 1)
    with pytest.raises(UserError, match="more than 1 files"):
        unpack(archive, tmp_path / "set")


def test_a_zip_that_lies_about_its_size_stays_within_the_limit(tmp_path):
    archive = make_zip(tmp_path / "a.zip", {"a": bytes(3_000_000)})
    data = archive.read_bytes().replace((3_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    archive.write_bytes(data)
    with pytest.raises(UserError):
        unpack(archive, tmp_path / "set", limit_bytes=1_000_000)
    assert not (tmp_path / "set").exists()


def damaged(data):
    middle = data.index(b"Set/Out/0.png") + 20
    return data[:middle] + bytes(b ^ 255 for b in data[middle : middle + 8]) + data[middle + 8 :]


@pytest.mark.parametrize("harm", [lambda data: b"no archive", lambda data: data[: len(data) // 2], damaged])
def test_damaged_archives(tmp_path, harm):
    archive = make_zip(tmp_path / "archive", FILES | {"big": bytes(range(256)) * 4000})
    archive.write_bytes(harm(archive.read_bytes()))
    with pytest.raises(UserError, match=r"archive.*run again") as caught:
        unpack(archive, tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_another_process_unpacked_first_stays(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "theirs").write_bytes(b"whole")
    unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "set")
    assert contents(tmp_path / "set") == {"theirs": b"whole"}


def test_a_file_and_a_dataset_in_it(tmp_path, monkeypatch):
    path = tmp_path / "a.h5"
    path.write_bytes(b"abc")
    for text in (str(path), f"{path}:/raw/x"):
        assert fingerprint(text) == {"path": text, "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}
    monkeypatch.setattr(download, "HASH_LIMIT_BYTES", 2)
    assert fingerprint(str(path))["sha256"] is None


def test_a_folder_by_names_and_contents(tmp_path):
    folder = tmp_path / "slices"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.png").write_bytes(b"b")
    (folder / "deep" / "a.png").write_bytes(b"aa")
    lines = f"b.png {hashlib.sha256(b'b').hexdigest()}\ndeep/a.png {hashlib.sha256(b'aa').hexdigest()}\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert fingerprint(str(folder)) == {"path": str(folder), "bytes": 3, "sha256": expected}
    (folder / "b.png").rename(folder / "c.png")
    assert fingerprint(str(folder))["sha256"] != expected


def test_what_a_run_has_learnt_from_is_compared(tmp_path):
    paths = [tmp_path / name for name in ("a.tif", "b.tif", "c.tif")]
    for path in paths:
        path.write_bytes(b"abc")
    roles = ["train.image", "train.image", "test.image"]
    about = {"files": [{"role": r, **fingerprint(str(p))} for r, p in zip(roles, paths, strict=True)]}
    known = hashlib.sha256(b"abc").hexdigest()
    assert checksums(about) == {f"{role} {i}": known for i, role in enumerate(roles, 1)}
    assert checksums(about, "train") == {"train.image 1": known, "train.image 2": known}
    assert changed_files(about) == changed_files({}) == []
    paths[1].write_bytes(b"abd")
    paths[2].unlink()
    assert changed_files(about) == [str(paths[1])]
    unknown = {"files": [{**file, "sha256": None} for file in about["files"][:1]]}
    before = checksums(unknown)
    paths[0].write_bytes(b"abcd")
    assert before != checksums(unknown)
