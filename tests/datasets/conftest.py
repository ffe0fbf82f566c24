import hashlib
import http.server
import re
import threading
from dataclasses import dataclass, field, replace

import pytest

from mitoseg.datasets.download import RemoteFile


@dataclass
class Behaviour:
    """How the loopback server treats the next requests."""

    files: dict = field(default_factory=dict)  # path: body
    statuses: list = field(default_factory=list)  # one for each request, then 200
    cuts: list = field(default_factory=list)  # bytes sent before the connection is cut, one for each request
    ranges: bool = True
    length: bool = True
    shifted: int = 0  # continues so many bytes off
    requests: list = field(default_factory=list)  # (path, Range)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        behaviour = self.server.behaviour
        wanted = self.headers.get("Range")
        behaviour.requests.append((self.path, wanted))
        status = behaviour.statuses.pop(0) if behaviour.statuses else 200
        if status != 200 or self.path not in behaviour.files:
            self.send_error(404 if status == 200 else status)
            return
        body = behaviour.files[self.path]
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and behaviour.ranges else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start += behaviour.shifted if start else 0
        part = body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if behaviour.length:
            self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part[: behaviour.cuts.pop(0)] if behaviour.cuts else part)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def running_server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(running_server):
    """A web server on this machine; ``server.behaviour`` says what it serves, and how badly."""
    running_server.behaviour = Behaviour()
    running_server.url = f"http://127.0.0.1:{running_server.server_port}"
    return running_server


@pytest.fixture
def publish(server, tmp_path, monkeypatch):
    """Serves the files of a recipe, by name, in place of the official ones, with a cache of its own."""
    monkeypatch.setattr("mitoseg.datasets.published.pooch.os_cache", lambda name: tmp_path / "cache" / name)

    def published(recipe, files, **facts):
        server.behaviour.files = {f"/{name}": data for name, data in files.items()}
        remote = [RemoteFile(n, f"{server.url}/{n}", hashlib.sha256(d).hexdigest(), len(d)) for n, d in files.items()]
        monkeypatch.setattr(recipe, "facts", replace(recipe.facts, files=tuple(remote), **facts))
        return server

    return published
