"""What made a result: code, libraries, machine, time and command."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from mitoseg import __version__

LIBRARIES = ("torch", "pytorch-lightning", "torchmetrics", "hydra-core", "numpy", "scipy", "scikit-image", "monai")
SOURCE = Path(__file__).resolve().parents[1]


def collect(**more: object) -> dict[str, object]:
    """What is needed to make a result again; ``arguments`` run this one job again, also from within a sweep."""
    commit, dirty = git_state(SOURCE)
    return {
        "mitoseg": __version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "devices": devices(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(sys.orig_argv),
        "arguments": sys.argv[1:],
        **more,
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """The commit of a clone, and whether tracked files differ from it; None where there is no clone."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top).resolve() != folder.resolve():
        return None, None
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def devices() -> list[str]:
    """Names of the accelerators that torch sees; of the processor, where there are none."""
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        return ["mps"]
    return [platform.processor() or platform.machine()]


def peak_memory() -> int:
    """The most memory that this process has held, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    with contextlib.suppress(OSError):  # Linux; getrusage there also counts what the starting process held
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        if found:
            return 1024 * int(found[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes on Linux


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, encoding="utf-8", timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
