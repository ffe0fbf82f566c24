"""Memory and cores that this process may take: of the machine, of its control groups, of its resource limits.

SLURM, systemd and containers put a process into nested control groups of Linux, each of which may limit it far below
what the machine has: ``/sys/fs/cgroup/system.slice/job_7/memory.max``.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import psutil


def memory_available(root: Path = Path("/")) -> int:
    """Bytes that this process may still take: the least that the machine and each limit leave.

    Of a group's memory, the pages of files not used lately do not count: the kernel frees them on demand.
    """
    left = [psutil.virtual_memory().available, *_left_by_resource_limits()]
    for folder, version in _groups("memory", root):
        current, limits = (
            ("memory.current", ("memory.max", "memory.high"))
            if version == 2
            else ("memory.usage_in_bytes", ("memory.limit_in_bytes",))
        )
        limit = min(filter(None, (_number(folder / name) for name in limits)), default=None)
        used = _number(folder / current)
        if limit is not None and used is not None:
            unused = "inactive_file" if version == 2 else "total_inactive_file"  # pages of files, not used lately
            match = re.search(rf"^{unused} (\d+)$", _text(folder / "memory.stat"), re.MULTILINE)
            left.append(limit - max(0, used - (int(match[1]) if match else 0)))
    return max(0, int(min(left)))


def usable_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those it is bound to, as many as the quota of its control groups pays for."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, math.ceil(cpu_quota(root) or bound)))


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores whose time this process's control groups may use, such as 1.5; None where no group has a quota."""
    quotas = []
    for folder, version in _groups("cpu", root):
        if version == 2:
            quota, _, period = _text(folder / "cpu.max").partition(" ")
        else:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # "max", in version 1 "-1": no quota
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """Folder and version (1 or 2) of each group that this process is in, from its own up to the outermost."""
    own: dict[str, PurePosixPath] = {}  # the path of our group, by controller; "" is version 2
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), PurePosixPath(path)))
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind not in ("cgroup", "cgroup2") or (kind == "cgroup" and controller not in options.split(",")):
            continue
        fields = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), f) for f in before.split(" ")[3:5])
        top, mounted = map(PurePosixPath, fields)
        if (group := own.get(controller if kind == "cgroup" else "")) is None:
            continue
        # Our group may lie outside the mount, as in a container that sees one group only: then that one limits us.
        inside = group.relative_to(top).parts if group.is_relative_to(top) and ".." not in group.parts else ()
        for depth in range(len(inside), -1, -1):
            yield root.joinpath(*mounted.parts[1:], *inside[:depth]), 2 if kind == "cgroup2" else 1


def _left_by_resource_limits() -> Iterator[int]:
    """What ``ulimit -v`` and ``ulimit -d`` leave of address space and data, where there are such limits."""
    with suppress(ImportError):  # Windows
        import resource

        memory = psutil.Process().memory_info()
        for limit, field in ((resource.RLIMIT_AS, "vms"), (resource.RLIMIT_DATA, "data")):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY and hasattr(memory, field):
                yield most - getattr(memory, field)


def _number(path: Path) -> int | None:
    """What a file holds; None where there is no such file, or no number in it ("max")."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()
    except OSError:
        return ""
