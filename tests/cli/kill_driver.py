"""Runs `mitoseg` again and again in children of one process, and has them killed where a test says.

Importing torch takes seconds, a fork nothing. The driver itself never computes, so that a child starts like a new
process. It reads one JSON line for each run and answers with one; see `Driver` for how a test talks to it.
"""

import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}


class Driver:
    """A context manager around the driver's process."""

    def __enter__(self):
        path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(self, folder, *words, at=None, match="", call=1, when="after", change=None, name="SIGKILL"):
        """Run one command in a folder; changes below its folder ``out`` are counted.

        The child gets the signal ``name`` before or after call number ``call`` of the function ``at`` (dotted) that
        has ``match`` in an argument; or it is killed before change number ``change`` of a file or folder. The answer
        has ``code`` (negative: the signal that ended it), ``err`` (what it said) and ``computed`` (tiles).
        """
        job = {"folder": str(folder), "words": [str(word) for word in words], "change": change, "name": name}
        self._process.stdin.write(json.dumps({**job, "at": at, "match": match, "call": call, "when": when}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def replace(path, wrapper):
    """Put a wrapper round a function or method that a dotted name names."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        break
    for part in parts[length:-1]:
        owner = getattr(owner, part)
    setattr(owner, parts[-1], wrapper(getattr(owner, parts[-1])))


def signalling(job):
    """A wrapper that sends this process a signal at one call."""
    calls = []

    def wrapper(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            matches = any(job["match"] in str(value) for value in (*args, *kwargs.values()))
            calls.append(matches)
            now = matches and sum(calls) == job["call"]
            if now and job["when"] == "before":
                os.kill(os.getpid(), signal.Signals[job["name"]])
            result = function(*args, **kwargs)
            if now and job["when"] == "after":
                os.kill(os.getpid(), signal.Signals[job["name"]])
            return result

        return call

    return wrapper


def kill_before_change(number, below):
    """Kill this process before the n-th change of a file or folder; what is removed by handle counts as well."""
    seen = []

    def hook(event, args):
        if event == "open":
            counts = isinstance(args[0], str) and bool(args[2] & WRITING) and inside(args[0], below)
        elif event in CHANGES:
            by_handle = event in {"os.remove", "os.rmdir"} and args[-1] != -1
            counts = by_handle or any(inside(part, below) for part in args if isinstance(part, str | os.PathLike))
        else:
            return
        if counts:
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def inside(path, below):
    """Whether a path lies below a folder."""
    return os.path.abspath(os.fspath(path)).startswith(below + os.sep)


def counting(log):
    """A wrapper that leaves a byte in a file for each call, whatever becomes of this process."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)

    def wrapper(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            os.write(handle, b".")
            return function(*args, **kwargs)

        return call

    return wrapper


def child(job, log, err):
    """One command, in a process of its own; never returns."""
    os.dup2(os.open(err, os.O_WRONLY), 2)
    os.dup2(2, 1)
    os.chdir(job["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    replace("mitoseg.inference.predictor.Predictor.compute", counting(log))
    if job["at"]:
        replace(job["at"], signalling(job))
    if job["change"]:
        kill_before_change(job["change"], os.path.join(os.path.realpath(job["folder"]), "out"))
    from mitoseg.cli.launch import main

    code = 1
    try:
        sys.argv = ["mitoseg"]
        code = main(job["words"])
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve():
    """Answer every line."""
    for name in ("mitoseg.workflows.predict", "hydra", "torch._dynamo"):  # what the children need
        importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.NamedTemporaryFile() as log, tempfile.NamedTemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                child(json.loads(line), log.name, err.name)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            answer = {"code": code, "err": err.read().decode(), "computed": len(log.read())}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
