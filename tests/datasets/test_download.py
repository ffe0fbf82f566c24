import hashlib
from dataclasses import replace

import pytest

from mitoseg.datasets.download import RemoteFile, fetch
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
    return fetch(remote, folder, progress=False, retries=retries, wait_s=0)


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".download.lock")


def test_a_file_arrives_once(server, remote, tmp_path):
    path = get(remote, tmp_path / "new" / "cache")
    assert path.read_bytes() == BODY
    assert get(remote, path.parent) == path
    assert server.behaviour.requests == [(PATH, None)]
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


def test_a_server_that_ignores_ranges_is_read_from_the_start(server, remote, tmp_path):
    server.behaviour.ranges = False
    server.behaviour.cuts = [4 * STEP]
    assert get(remote, tmp_path).read_bytes() == BODY
    assert server.behaviour.requests[1][1] == f"bytes={4 * STEP}-"


def test_a_server_that_ignores_ranges_and_always_cuts_is_given_up(server, remote, tmp_path):
    server.behaviour.ranges = False
    server.behaviour.cuts = [4 * STEP] * 20
    with pytest.raises(UserError, match="the connection was cut"):
        get(remote, tmp_path)
    assert len(server.behaviour.requests) == 4  # the first brought bytes, two more tries did not, nor did the last


def test_a_server_that_continues_elsewhere_is_not_believed(server, remote, tmp_path):
    (tmp_path / "a.tif.part").write_bytes(BODY[:1000])
    server.behaviour.shifted = 7
    assert get(remote, tmp_path).read_bytes() == BODY
    assert [wanted for _, wanted in server.behaviour.requests] == ["bytes=1000-", None]


def test_a_part_that_is_complete_is_taken(server, remote, tmp_path):
    (tmp_path / "a.tif.part").write_bytes(BODY)
    assert get(remote, tmp_path).read_bytes() == BODY


def test_a_part_of_another_file_is_thrown_away(server, remote, tmp_path):
    (tmp_path / "a.tif.part").write_bytes(b"x" * 1000)
    assert get(remote, tmp_path).read_bytes() == BODY  # the sum fails once, then everything is read anew
    (tmp_path / "a.tif").unlink()
    (tmp_path / "a.tif.part").write_bytes(BODY + b"too long")
    assert get(remote, tmp_path).read_bytes() == BODY


def test_no_content_length(server, remote, tmp_path):
    server.behaviour.length = False
    assert get(remote, tmp_path).read_bytes() == BODY


def test_a_wrong_sum_removes_the_file_and_says_so(server, remote, tmp_path):
    server.behaviour.files[PATH] = BODY[:-1] + b"!"
    with pytest.raises(
        UserError, match=r"has sha256 \w{12}\.\.\. instead of \w{12}\.\.\. and was removed: 'http://.*'"
    ):
        get(remote, tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("body", [BODY[:-1], BODY + b"!"])
def test_a_wrong_size_removes_the_file_and_says_so(server, remote, tmp_path, body):
    server.behaviour.files[PATH] = body
    with pytest.raises(UserError, match=f"has {len(body)} bytes instead of {len(BODY)} and was removed"):
        get(replace(remote, sha256=None, size=len(BODY)), tmp_path)
    assert leftovers(tmp_path) == []


def test_a_file_of_the_wrong_size_in_the_cache_is_replaced(server, remote, tmp_path):
    (tmp_path / "a.tif").write_bytes(b"half")
    assert get(replace(remote, sha256=None, size=len(BODY)), tmp_path).read_bytes() == BODY


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
