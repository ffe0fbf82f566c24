import hashlib
import http.server
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from mitoseg.datasets.download import RemoteFile


def behaviour():
    """How the loopback server treats the next requests, which it notes as (path, Range)."""
    lists = {"statuses": [], "cuts": [], "requests": []}  # a status, and bytes before the connection is cut, for each
    return SimpleNamespace(files={}, ranges=True, length=True, shifted=0, **lists)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told, wanted = self.server.behaviour, self.headers.get("Range")
        told.requests.append((self.path, wanted))
        status = told.statuses.pop(0) if told.statuses else 200
        if status != 200 or self.path not in told.files:
            self.send_error(404 if status == 200 else status)
            return
        body = told.files[self.path]
        start = int(wanted.removeprefix("bytes=")[:-1]) if wanted and told.ranges else 0
        beyond = bool(start) and start >= len(body)
        start += told.shifted if start else 0
        self.send_response(416 if beyond else 206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {'*' if beyond else f'{start}-{len(body) - 1}'}/{len(body)}")
        if told.length:
            self.send_header("Content-Length", str(len(body[start:])))
        self.end_headers()
        self.wfile.write(body[start:][: told.cuts.pop(0)] if told.cuts else body[start:])

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
    running_server.behaviour = behaviour()
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
