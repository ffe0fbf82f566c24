"""Sweeps of a small command: their names, who fails and goes on, what is written, what a second call does."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny_training import TINY

from mitoseg.cli.sweeps.jobs import (
    LONGEST_JOB,
    LONGEST_SWEEP,
    expand_seeds,
    failure_line,
    job_name,
    make_slot,
    pin_sweep,
    plan_sweep,
    safe_name,
    summarise,
    sweep_name,
    visible_gpus,
    write_results,
)
from mitoseg.cli.sweeps.optuna_sweeper import missing_plugin
from mitoseg.errors import UserError
from mitoseg.processes import job_variables
from mitoseg.storage import held

UNIX = pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")


def table(folder, name="results.csv"):
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def record(folder):
    return json.loads((folder / "job.json").read_text(encoding="utf-8"))


def until(condition, seconds=60):
    """Wait for something to be so; what it is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def last(text):
    return text.splitlines()[-1]


@pytest.fixture
def call(project, monkeypatch, capfd):
    """Run a sweep in this process; its jobs are processes."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: project.call_here(monkeypatch, capfd, *words)


@UNIX
def test_jobs_that_die_stop_no_other_and_the_same_command_takes_them_up(project, call):
    words = ["-m", "then=lose_ranks,save_and_die,mistake,nothing", "lr=0.01", "name=s"]
    done = call(*words)
    sweep = project.folder / "outputs" / "sweeps" / "s"
    assert done.returncode == 1
    assert "Error executing job" not in done.stderr
    assert last(done.stdout) == os.path.join("outputs", "sweeps", "s")
    killed = "killed by SIGKILL, out of memory perhaps"
    assert last(done.stderr) == (
        f"error: 3 of 4 jobs failed: then=lose_ranks ({killed}), then=mistake (no such thing; choose another), "
        f"then=save_and_die ({killed}); the same command runs them again"
    )
    rank_1 = int((sweep / "then=lose_ranks" / "pid.json").read_text())
    assert not psutil.pid_exists(rank_1) or psutil.Process(rank_1).status() == psutil.STATUS_ZOMBIE
    assert [(row["then"], row["status"]) for row in table(sweep)] == [
        ("lose_ranks", "failed"), ("mistake", "failed"), ("nothing", "finished"), ("save_and_die", "failed")
    ]  # fmt: skip
    finished = (sweep / "then=nothing" / "rank0.json").stat().st_mtime_ns

    again = call(*words[:1], "then=save_and_die,nothing,mistake", *words[2:])
    assert "1 of 3 jobs failed: then=mistake" in last(again.stderr)
    assert (sweep / "then=nothing" / "rank0.json").stat().st_mtime_ns == finished
    assert "then=nothing: finished before" in again.stderr
    taken_up = json.loads((sweep / "then=save_and_die" / "rank0.json").read_text())
    assert taken_up["resume"] == str(sweep / "then=save_and_die")
    found = record(sweep / "then=save_and_die")
    assert (found["status"], found["exit"], found["objective"]) == ("finished", 0, 1.0)
    rows = {row["job"]: row for row in table(sweep)}
    assert rows["then=save_and_die"]["objective"] == rows["then=nothing"]["validation_jaccard_foreground"] == "1.0"
    assert rows["then=mistake"]["error"] == "no such thing; choose another"

    other = call("-m", "then=nothing,mistake", "lr=0.1", "name=s")
    assert "the folder holds a job of other arguments (-lr=0.01 +lr=0.1)" in other.stderr
    assert record(sweep / "then=nothing")["status"] == "finished"


def test_seeds_report_mean_and_spread(project, call):
    done = call("seeds=3", "seed=4", "lr=0.01")
    assert done.returncode == 0, done.stderr
    sweep = project.folder / last(done.stdout)
    assert sorted(path.name for path in sweep.glob("seed=*")) == ["seed=4", "seed=5", "seed=6"]
    (row,) = table(sweep, "summary.csv")
    assert (row["n"], row["objective_mean"], row["objective_sd"]) == ("3", "5.0", "1.0")
    assert "5 ± 1" in done.stdout
    for words, line in [
        (["seeds=0"], "seeds counts runs, it cannot be: '0'"),
        (["seeds=two"], "seeds counts runs, it cannot be: 'two'"),
        (["seeds=2", "seed=1,2"], "seeds= counts up from one seed: 'seed=1,2'"),
    ]:
        with pytest.raises(UserError, match=re.escape(line)):
            expand_seeds(words)
    assert expand_seeds(["seeds=1", "a=2"]) == (["a=2"], False)


@UNIX
@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_job_ends_when_its_sweep_is_killed(project, launcher):
    words = [] if launcher == "basic" else [f"hydra/launcher={launcher}"]
    sweep = project.folder / "outputs" / "sweeps" / "s"
    with project.start("-m", "then=wait", "seed=1,2", "name=s", *words) as process:
        pid = int(until(lambda: next(sweep.glob("seed=*/pid.json"), None)).read_text() or 0)
        process.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, 20)
    job = next(sweep.glob("seed=*/pid.json")).parent
    until((job / "checkpoints" / "last.ckpt").exists)


def test_a_second_sweep_of_the_same_name_is_refused(project, call):
    sweep = project.folder / "outputs" / "sweeps" / "s"
    with held(sweep / ".lock", "a sweep"):
        before = sorted(sweep.rglob("*"))
        other = call("-m", "lr=1,2", "name=s")
    assert (other.returncode, other.stdout) == (1, "")
    assert other.stderr.startswith("error: another sweep is running in this folder: ")
    assert other.stderr.count("\n") == 1
    assert sorted(sweep.rglob("*")) == before


@UNIX
@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        ("basic", signal.SIGINT, 130),
        pytest.param("basic", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("joblib", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_sweep_lets_its_jobs_save(project, launcher, number, code):
    sweep = project.folder / "outputs" / "sweeps" / "s"
    words = ["-m", "then=wait", "seed=1,2", "name=s", f"hydra/launcher={launcher}"]
    with project.start(*words) as process:
        job = until(lambda: next(sweep.glob("seed=*/pid.json"), None)).parent
        until(lambda: (job / "pid.json").read_text())
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert record(job)["status"] == "interrupted"
    assert (job / "checkpoints" / "last.ckpt").exists()
    assert table(sweep)[0]["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="cores can be chosen on Linux")
def test_joblib_runs_jobs_side_by_side_each_on_its_cores(project):
    done = project.call(
        "-m", "hydra/launcher=joblib", "seed=1,2", "then=nothing,mistake", "name=s", OMP_NUM_THREADS=""
    )
    assert "2 of 4 jobs failed" in last(done.stderr)
    sweep = project.folder / "outputs" / "sweeps" / "s"
    told = [json.loads(path.read_text()) for path in sweep.glob("*/rank0.json")]
    cores = len(os.sched_getaffinity(0))
    if cores > 1:
        assert {len(job["cores"]) for job in told} == {cores // 2}
        assert len({tuple(job["cores"]) for job in told}) == 2
    assert "at work on None" in (sweep / "seed=1,then=nothing" / "console.log").read_text()
    assert "at work" not in done.stderr
    assert {row["status"] for row in table(sweep)} == {"finished", "failed"}


@pytest.mark.slow
def test_submitit_runs_the_jobs_alike(project):
    words = ["-m", "hydra/launcher=submitit_local", "then=nothing,mistake", "name=s"]
    done = project.call(*words, SLURM_NTASKS="4", SLURM_JOB_ID="7")
    assert "1 of 2 jobs failed" in last(done.stderr)
    sweep = project.folder / "outputs" / "sweeps" / "s"
    assert [row["status"] for row in table(sweep)] == ["failed", "finished"]
    (pickles,) = (sweep / ".submitit").iterdir()
    assert len(pickles.name) == 16  # drawn anew: nobody can have put pickles there before


SLURM = {
    "sbatch": """#!/bin/bash
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
for i in $(seq 0 $last); do
    export SLURM_JOB_ID=4$i SLURM_ARRAY_JOB_ID=40 SLURM_ARRAY_TASK_ID=$i SLURM_JOB_NODELIST=here
    SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 bash "$1" > /dev/null 2>&1 &
done
echo Submitted batch job 40""",
    "srun": """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --output || $1 == --error ]] && shift; shift; done
exec "$@"
""",
    "sacct": """#!/bin/bash
echo "JobID|State|NodeList"
for i in 0 1 2 3; do echo "40_$i|RUNNING|here"; done
""",
}
"""What submitit calls, as scripts that run the jobs on this machine."""


@UNIX
def test_slurm_gets_the_jobs_with_what_they_need(project, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in SLURM.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    words = ["-m", "hydra/launcher=slurm", "hydra.launcher.partition=gpu", "then=nothing,die", "name=s"]
    done = project.call(*words, PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert "1 of 2 jobs failed" in last(done.stderr), done.stderr
    sweep = project.folder / "outputs" / "sweeps" / "s"
    assert [row["status"] for row in table(sweep)] == ["failed", "finished"]
    asked = next((sweep / ".submitit").rglob("*.sh")).read_text()
    for line in ("partition=gpu", "gpus-per-node=1", "time=240", "ntasks-per-node=1", "signal=USR2@120"):
        assert f"#SBATCH --{line}" in asked


@UNIX
@pytest.mark.slow
def test_a_job_that_submitit_queues_again_goes_on(project):
    """What `max_num_timeout` does on SLURM, with the executor for one machine: a signal, then the job once more."""
    sweep = project.folder / "outputs" / "sweeps" / "s"
    with project.start("-m", "hydra/launcher=submitit_local", "seed=1", "then=wait_once", "name=s") as process:
        until(lambda: next(sweep.glob("job/pid.json"), None))
        until(lambda: (sweep / "job" / "pid.json").read_text())
        for worker in psutil.Process(process.pid).children(recursive=True):
            if "submitit.core._submit" in worker.cmdline():
                worker.send_signal(signal.SIGUSR2)
        _, told = process.communicate(timeout=100)
    assert process.returncode == 0, told
    assert json.loads((sweep / "job" / "rank0.json").read_text())["resume"] == str(sweep / "job")
    assert record(sweep / "job")["status"] == "finished"


@UNIX
def test_a_search_that_was_killed_goes_on_with_the_same_study(project, call):
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "lr=tag(log,interval(1e-4,1))", "name=s"]
    sweep = project.folder / "outputs" / "sweeps" / "s"
    with project.start(*words, "then=wait_once") as process:
        job = until(lambda: next(sweep.glob("lr=*/pid.json"), None)).parent
        process.kill()
    until((job / "checkpoints" / "last.ckpt").exists)
    done = call(*words, "then=wait_once", "hydra.sweeper.max_failure_rate=1")
    assert done.returncode == 0, done.stderr
    assert json.loads((job / "rank0.json").read_text())["resume"] == str(job), "the trial that was under way"
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    rows = table(sweep)
    assert len(rows) == found["trials"] == 3
    assert found["best_value"] == max(float(row["objective"]) for row in rows)
    more = call(*words, "then=wait_once")
    assert more.returncode == 0
    assert "starts" not in more.stderr, "n_trials counts the whole study"


def test_a_sweep_lies_in_one_folder_that_its_words_name():
    words = ["network=a,b", "seed=1,2"]
    first, again = (plan_sweep(pin_sweep(w, ["train"]), ["x"]) for w in (words, words[::-1]))
    assert first.folder == again.folder
    assert first.folder.name.startswith("network=a+b_seed=1+2_")
    assert first.varied == {"network", "seed"}
    assert (
        pin_sweep([*words, "hydra/launcher=slurm", "hydra.sweeper.n_trials=9"], ["train"])[-2:]
        == (pin_sweep(words, ["train"])[-2:])
    )
    assert pin_sweep(words, ["train"]) != pin_sweep([*words, "epochs=2"], ["train"])
    own = plan_sweep(pin_sweep([*words, "hydra.sweep.dir=my", "hydra.sweep.subdir=${hydra.job.num}"]), [])
    assert (own.folder.name, own.own_folders) == ("my", True)
    with pytest.raises(UserError, match="one folder for all jobs"):
        pin_sweep([*words, "hydra.sweep.dir=a/${now:%H}"])


def test_a_job_does_not_see_what_its_sweep_runs_in(tmp_path):
    before = {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7", "SUBMITIT_EXECUTOR": "local", "LOCAL_RANK": "1", "HOME": "h"}
    found = job_variables(before, tmp_path, {"OMP_NUM_THREADS": "1"})
    assert {"HOME", "SLURM_JOB_ID", "OMP_NUM_THREADS"} < set(found)
    assert not {"SLURM_NTASKS", "SUBMITIT_EXECUTOR", "LOCAL_RANK"} & set(found)


def test_slots_share_out_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    cfg = OmegaConf.create({"trainer": {"devices": 2, "accelerator": "auto"}})
    given = [make_slot(i, 2, cfg).variables["CUDA_VISIBLE_DEVICES"] for i in range(2)]
    assert given == ["4,5", "6,7"]
    shared = [make_slot(i, 5, OmegaConf.create()).variables["CUDA_VISIBLE_DEVICES"] for i in range(5)]
    assert shared == ["4", "5", "6", "7", "4"]
    on_cpu = make_slot(0, 2, OmegaConf.create({"trainer": {"accelerator": "cpu"}}))
    assert "CUDA_VISIBLE_DEVICES" not in on_cpu.variables
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert visible_gpus() == []


def test_results_of_jobs_that_vary_in_different_keys(tmp_path):
    for name, varied, score in [("a", {"seed": "1"}, 0.5), ("b", {"seed": "2", "x": "3"}, None)]:
        (tmp_path / name).mkdir()
        status = "finished" if score else "failed"
        facts = {
            "status": status,
            "varied": varied,
            "objective": score,
            "seconds": 1.0,
            "error": None if score else "why",
        }
        (tmp_path / name / "job.json").write_text(json.dumps(facts))
    (tmp_path / "a" / "metrics.json").write_text(json.dumps({"test": {"dice": 0.25}}))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "job.json").write_text("{damaged")
    for name, wrong in [("d", {"varied": [1]}), ("e", {"words": [[1]]}), ("f", {"process": {"pid": "1"}})]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.json").write_text(json.dumps({"status": "finished", "seconds": 1.0} | wrong))
    (tmp_path / "b" / "metrics.json").write_text(json.dumps({"test": [0.5]}))
    write_results(tmp_path)
    first, second = table(tmp_path)
    assert (first["seed"], first["x"], first["test_dice"], first["error"]) == ("1", "", "0.25", "")
    assert (second["x"], second["objective"], second["error"]) == ("3", "", "why")
    assert summarise([{"seed": "1", "status": "finished", "objective": 1.0}]) == []
    assert failure_line([{"job": "a", "status": "finished"}]) is None
    assert "and 2 more" in failure_line([{"job": str(i), "status": "failed"} for i in range(7)])


def test_a_launcher_that_is_not_installed_is_one_line():
    for error in (
        "Unknown plugin class : 'hydra_plugins.hydra_submitit_launcher.x'",
        "Could not find 'hydra/launcher/joblib'",
    ):
        assert 'pip install "mitoseg[sweep]"' in missing_plugin(RuntimeError(error))
    assert missing_plugin(RuntimeError("else")) is None


@pytest.mark.slow
def test_a_rank_that_is_killed_stops_its_job_and_no_other(project):
    done = project.call("-m", "then=train_and_lose", "seed=1,2", "trainer.devices=2", "name=s")
    assert done.returncode == 1
    rows = table(project.folder / "outputs" / "sweeps" / "s")
    assert rows[0]["status"] in {"failed", "interrupted"}
    assert rows[1]["status"] == "finished"


VALUES = st.text(min_size=1, max_size=140).filter(lambda text: "\n" not in text)
WORDS = st.dictionaries(st.sampled_from(["seed", "data.root", "optimizer.lr", "network"]), VALUES, min_size=1)
SAFE = re.compile(r"[a-z0-9._+=,-]+")


def words_of(values):
    return [f"{key}={value}" for key, value in values.items()]


@given(WORDS, WORDS)
def test_job_names(one, other):
    first, second = job_name(words_of(one)), job_name(words_of(other))
    assert SAFE.fullmatch(first)
    assert len(first) <= LONGEST_JOB
    assert first[-1] != "."
    assert first == job_name(words_of(one)[::-1])
    if one != other and {k: v.strip("\"'") for k, v in one.items()} != {k: v.strip("\"'") for k, v in other.items()}:
        assert first.lower() != second.lower()


@given(WORDS)
def test_sweep_names(values):
    words = words_of(values)
    name = sweep_name(words, words)
    assert SAFE.fullmatch(name)
    assert len(name) <= LONGEST_SWEEP
    assert "," not in name
    assert name == sweep_name(words[::-1], words)


def test_names_to_read():
    assert job_name(["seed=1", "network=patch_cnn"]) == "network=patch_cnn,seed=1"
    assert job_name([]) == "job"
    assert (safe_name("paper", "paper", 60), safe_name("a/b", "a/b", 60)) == ("paper", "a-b_c14cddc0")
    varied = ["seed=1,2", "network=choice(a,b)", "optimizer.lr=interval(0.1,1)"]
    assert plan_sweep([*varied, "epochs=3"], []).varied == {"seed", "network", "optimizer.lr"}
    assert sweep_name(["seed=1,2", "name=mine"], ["seed=1,2"]) == "mine"
    assert sweep_name(["experiment=paper", "seed=1,2"], ["seed=1,2"]).startswith("paper_seed=1+2_")
    assert safe_name("con", "con", 60) != "con"
    assert job_name(["a=X"]) != job_name(["a=x"])


def train(folder, *words):
    command = [sys.executable, "-m", "mitoseg", "train", *TINY, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


@UNIX
@pytest.mark.slow
def test_networks_and_seeds_on_two_devices_killed_and_taken_up(tmp_path):
    words = ["-m", "network=patch_cnn,context_cnn", "seed=1,2", "epochs=2", "name=s"]
    words += ["trainer.devices=2", "data.validation_stride=1"]
    sweep = tmp_path / "outputs" / "sweeps" / "s"
    with train(tmp_path, *words) as process:
        until((sweep / "network=patch_cnn,seed=2" / "checkpoints" / "last.ckpt").is_file, 240)
        process.send_signal(signal.SIGKILL)
    with train(tmp_path, *words) as process:
        _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert "network=patch_cnn,seed=1: finished before" in told
    assert "network=patch_cnn,seed=2: goes on" in told
    found = table(sweep)
    assert {(row["network"], row["seed"]) for row in found} == {
        (network, seed) for network in ("patch_cnn", "context_cnn") for seed in "12"
    }
    for row in found:
        metrics = json.loads((sweep / row["job"] / "metrics.json").read_text())
        assert float(row["objective"]) == metrics["validation"]["jaccard_foreground"]
        assert float(row["test_dice"]) == metrics["test"]["dice"]
    assert [row["n"] for row in table(sweep, "summary.csv")] == ["2", "2"]


@UNIX
@pytest.mark.slow
def test_a_search_on_the_phantom_never_looks_at_the_test_volume(tmp_path):
    words = ["-m", "hparams_search=phantom_lr", "hydra.sweeper.n_trials=2", "epochs=1", "data.epoch_blocks=400"]
    with train(tmp_path, *words) as process:
        _, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert sweep.name.startswith("phantom_lr_")
    found = table(sweep)
    assert len(found) == 2
    assert {"optimizer.lr", "optimizer.weight_decay", "data.batch_size"} < set(found[0])
    assert "test_dice" not in found[0]
    assert (sweep / "optimization_results.yaml").is_file()
