"""Ranks that somebody else starts (srun, torchrun): one folder for all, and a job that is queued again goes on."""

import subprocess
import sys

import pytest

from mitoseg.cli.launch import prepare_words
from mitoseg.cli.ranks import outside_job
from mitoseg.errors import UserError

SRUN = {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "mine", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}


@pytest.fixture
def started_by(monkeypatch, tmp_path):
    """Pretend that this process is a rank of somebody's job."""
    monkeypatch.chdir(tmp_path)
    names = {*SRUN, *TORCHRUN, "SLURM_PROCID", "RANK", "LOCAL_RANK", "MITOSEG_RUN_DIR"}

    def start(**variables):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


def test_alone_there_is_nothing_to_share(started_by):
    started_by(SLURM_JOB_ID="41", SLURM_NTASKS="1", SLURM_PROCID="0")
    assert outside_job() is None
    assert prepare_words(["seed=1"], sweep=False) == ["seed=1"]


@pytest.mark.parametrize(
    ("variables", "rank", "name"),
    [
        (SRUN, "SLURM_PROCID", "41"),
        (SRUN | {"SLURM_STEP_ID": "3"}, "SLURM_PROCID", "41_3"),
        (TORCHRUN, "RANK", "mine"),
        (TORCHRUN | {"TORCHELASTIC_RUN_ID": "a/b"}, "RANK", "a-b"),
    ],
)
def test_ranks_share_a_folder_and_take_it_up_again(started_by, tmp_path, variables, rank, name):
    pinned = f'hydra.run.dir="outputs/train/job_{name}"'
    started_by(**variables, **{rank: "0"})
    assert prepare_words(["seed=1"], sweep=False) == ["seed=1", pinned]
    started_by(**variables, **{rank: "1"})
    further = ["hydra.output_subdir=null"]
    assert prepare_words(["seed=1"], sweep=False) == ["seed=1", pinned, *further]
    assert prepare_words(["hydra.run.dir=a"], sweep=False) == ["hydra.run.dir=a", *further]
    (tmp_path / "outputs" / "train" / f"job_{name}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "outputs" / "train" / f"job_{name}" / "checkpoints" / "last.ckpt").touch()
    again = ["seed=1", pinned, f'resume="outputs/train/job_{name}"', *further]
    assert prepare_words(["seed=1"], sweep=False) == again
    with pytest.raises(UserError, match="starts the ranks of its jobs itself"):
        prepare_words(["seed=1,2"], sweep=True)


def test_torchrun_without_a_name_is_known_by_its_start(started_by):
    started_by(**TORCHRUN | {"TORCHELASTIC_RUN_ID": "none"}, RANK="0")
    first = outside_job()
    assert first.endswith("_29500")
    assert outside_job() == first


@pytest.mark.slow
def test_torchrun_on_two_processes(project):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    done = subprocess.run(
        [*command, "fake_command.py", "then=train_outside"],
        cwd=project.folder, capture_output=True, text=True, timeout=300, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = (project.folder / "outputs" / "fake").iterdir()
    assert sorted(path.name for path in run.glob("rank*.json")) == ["rank0.json", "rank1.json"]
    assert (run / ".hydra" / "overrides.yaml").is_file()
    assert done.stdout.count("outputs") == 1
