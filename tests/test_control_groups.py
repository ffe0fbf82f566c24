"""The limits of the control groups that a process is in, read from trees such as Linux shows them."""

import subprocess
import sys

import pytest

from mitoseg.control_groups import cpu_quota, memory_available, usable_cores

GB = 10**9
ANYTHING = 2**63 - 4096  # what version 1 says where there is no limit


@pytest.fixture(autouse=True)
def large_machine(monkeypatch):
    monkeypatch.setattr("mitoseg.control_groups.psutil.virtual_memory", lambda: type("", (), {"available": 20 * GB}))


def tree(folder, cgroup, mounts, files):
    """A root with ``/proc/self`` and the files of its control groups."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    lines = ["22 27 0:21 / /proc rw,relatime - proc proc rw", "27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw"]
    lines += [f"31 23 0:28 {top} {at} rw shared:4 - {kind} cgroup {options}" for top, at, kind, options in mounts]
    (folder / "proc/self/mountinfo").write_text("\n".join(lines))
    for name, text in files.items():
        path = folder / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


V2 = [("/", "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")]


def test_the_tightest_group_of_version_2_counts(tmp_path, monkeypatch):
    """As systemd and SLURM nest them; the limit of a step may be "max", that of its job above it not."""
    job = "system.slice/slurmstepd.scope/job_7"
    root = tree(
        tmp_path,
        f"0::/{job}/step_0/user/task_0\n",
        V2,
        {
            f"{job}/step_0/user/task_0/memory.max": "max",
            f"{job}/step_0/user/task_0/memory.current": GB,
            f"{job}/memory.max": 3 * GB,
            f"{job}/memory.current": 2 * GB,
            f"{job}/memory.stat": f"anon 5\ninactive_file {GB // 2}\nactive_file 7",
            f"{job}/cpu.max": "150000 100000",
            "system.slice/memory.max": 10 * GB,
            "system.slice/memory.current": 4 * GB,
            "system.slice/cpu.max": "max 100000",
        },
    )
    assert memory_available(root) == 3 * GB - 2 * GB + GB // 2
    assert cpu_quota(root) == 1.5
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert (usable_cores(root), usable_cores(tmp_path / "none")) == (2, 8)
    (tmp_path / "sys/fs/cgroup/system.slice/memory.high").write_text(str(5 * GB))
    assert memory_available(root) == GB
    (tmp_path / f"sys/fs/cgroup/{job}/memory.current").write_text(str(4 * GB))
    assert memory_available(root) == 0


def test_version_1(tmp_path):
    """One hierarchy for memory and one for the processor; version 2 is there as well, without either."""
    root = tree(
        tmp_path,
        "9:name=systemd:/user\n4:memory:/slurm/uid_5/job_7\n2:cpu,cpuacct:/slurm\n0::/user\n",
        [
            ("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
            ("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
            ("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,name=systemd"),
            ("/", "/sys/fs/cgroup/unified", "cgroup2", "rw"),
        ],
        {
            "memory/slurm/uid_5/job_7/memory.limit_in_bytes": 2 * GB,
            "memory/slurm/uid_5/job_7/memory.usage_in_bytes": GB,
            "memory/slurm/uid_5/job_7/memory.stat": f"inactive_file 3\ntotal_inactive_file {GB // 4}",
            "memory/memory.limit_in_bytes": ANYTHING,
            "memory/memory.usage_in_bytes": 9 * GB,
            "cpu,cpuacct/slurm/cpu.cfs_quota_us": 400_000,
            "cpu,cpuacct/slurm/cpu.cfs_period_us": 100_000,
            "cpu,cpuacct/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/cpu.cfs_period_us": 100_000,
        },
    )
    assert memory_available(root) == GB + GB // 4
    assert cpu_quota(root) == 4


OWN = {  # a process's group, what is mounted, and where in /sys/fs/cgroup
    "own namespace": ("/", "/", ""),
    "one group mounted": ("/docker/abc", "/docker/abc", ""),
    "moved out of its namespace": ("/../other", "/", ""),
    "mounted from outside": ("/a", "/..", ""),
    "a blank": ("/", "/", "/my groups"),
}


@pytest.mark.parametrize(("cgroup", "top", "folder"), OWN.values(), ids=OWN)
def test_a_container_sees_its_own_group_as_the_root(tmp_path, cgroup, top, folder):
    files = {f".{folder}/memory.max": 2 * GB, f".{folder}/memory.current": GB, f".{folder}/cpu.max": "50000 100000"}
    place = f"/sys/fs/cgroup{folder}".replace(" ", "\\040")
    root = tree(tmp_path, f"0::{cgroup}\n", [(top, place, "cgroup2", "rw")], files)
    assert memory_available(root) == GB
    assert cpu_quota(root) == 0.5


def test_without_limits_or_control_groups_the_machine_counts(tmp_path):
    unlimited = {"a/memory.max": "max", "a/memory.current": GB, "a/cpu.max": "max 100000"}
    empty = dict.fromkeys(unlimited, "")
    roots = [tree(tmp_path / str(i), "0::/a\n", V2, files)
             for i, files in enumerate(({}, unlimited, {"a/memory.max": GB}, empty))]  # fmt: skip
    for root in (*roots, tmp_path / "none"):
        assert (memory_available(root), cpu_quota(root)) == (20 * GB, None)


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v limits nothing elsewhere")
def test_the_limit_of_address_space():
    code = "from mitoseg.control_groups import memory_available; print(memory_available())"
    words = ["bash", "-c", f"ulimit -v 500000; '{sys.executable}' -c '{code}'"]
    assert int(subprocess.run(words, capture_output=True, check=True, text=True).stdout) < 512_000_000
