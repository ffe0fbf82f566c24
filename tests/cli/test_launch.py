"""Commands started as a user starts them, or by srun and torchrun, from a folder that Hydra's grammar dislikes."""

import errno
import subprocess
import sys
import threading

import pytest
from hydra.core.hydra_config import HydraConfig

from mitoseg.arguments import split_words
from mitoseg.cli.console import warnings_as_lines
from mitoseg.cli.launch import claim, prepare_words, run_dir
from mitoseg.cli.ranks import outside_job
from mitoseg.errors import UserError

PATH = "ä b,c=[1] (2) {3} #~$x.tif"


@pytest.fixture
def call(project, monkeypatch, capsys):
    """Run the command in this process."""
    return lambda *words: project.call_here(monkeypatch, capsys, *words)


def test_a_run_says_where_it_wrote(project):
    done = project.call(f"input={PATH}", "crop=0:82,64:768", "then=warn")
    first, warning = done.stderr.splitlines()
    assert (done.returncode, first) == (0, f"at work on {PATH}")
    assert warning.startswith("warning: odd thing (UserWarning, fake_command.py:")
    folder = project.folder / done.stdout.splitlines()[-1]
    assert folder.parent == project.folder / "outputs" / "fake"
    told = project.told()[0]
    assert (told["input"], told["crop"], told["seed"], told["group"]) == (PATH, ["0:82", "64:768"], 1, 1)
    assert (told["world"], told["resume"]) == (None, None)
    assert "noise" in (folder / "fake_command.log").read_text(encoding="utf-8")


def test_commands_of_one_moment_have_a_folder_each(project, call):
    """The clock of this project shows the year only."""
    started = [project.start(f"seed={seed}") for seed in (1, 2, 3)]
    ends = [process.communicate(timeout=100) for process in started]
    folders = [project.folder / out.splitlines()[-1] for out, _ in ends]
    assert len(set(folders)) == 3
    told = {folder: [path.read_text(encoding="utf-8") for path in folder.glob("rank*.json")] for folder in folders}
    assert all(f'"seed": {seed}' in told[folder][0] for seed, folder in zip((1, 2, 3), folders, strict=True))
    assert all((folder / ".hydra" / "overrides.yaml").is_file() for folder in folders)
    assert call("hydra.run.dir=mine").stdout == call("hydra.run.dir=mine").stdout == "mine\n"


def test_six_threads_make_six_folders(tmp_path):
    together, made = threading.Barrier(6), []

    def make():
        together.wait()
        made.append(claim(tmp_path / "a" / "b"))

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {folder.name for folder in made} == {"b", *(f"b_{n}" for n in range(2, 7))}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["then=mistake", "input=a.tif"], "error: no such thing: 'a.tif'; choose another"),
        (["then=wrapped"], "error: inside: 1; mend it"),
        (["then=missing"], "error: must has no value; add must=... to the command"),
        (["trainer.max_epoch=3"], "error: no such option: 'trainer.max_epoch'; did you mean trainer.max_epochs?"),
        (["group=two", "group.c=3"], "error: no such option: 'group.c'; did you mean group.b?"),
        (["group=three"], "error: group has no 'three'; choose one of one, two (your own need --config-dir FOLDER)"),
        (["seed=[1"], "error: no viable alternative"),
        (["input=${a}"], "error: a path with ${ in it"),
        (["resume=nowhere"], "error: no run to resume: 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(call, words, line):
    done = call(*words)
    said = [text for text in done.stderr.splitlines() if not text.startswith("at work")]
    assert done.returncode == 1
    assert len(said) == 1
    assert said[0].startswith(line)
    assert "outputs" not in done.stdout


def test_an_option_of_ones_own_needs_a_name_of_its_own(call, project):
    (project.folder / "mine" / "group").mkdir(parents=True)
    own = project.folder / "mine" / "group" / "one.yaml"
    own.write_text("a: 5")
    done = call("--config-dir", "mine")
    assert done.returncode == 1
    assert "error: group/one.yaml in mine has the name of one of mitoseg's own options; rename it" in done.stderr
    own.rename(own.with_name("five.yaml"))
    assert call("--config-dir", "mine", "group=five").returncode == 0
    assert project.told()[0]["group"] == 5
    assert "--config-dir FOLDER" not in call("--config-dir", "mine", "group=six").stderr


def test_exit_codes(call):
    done = call("then=bug")
    assert done.returncode == 1
    assert "KeyError: 'oops'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: this is a bug")
    done = call("then=interrupt")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "interrupted")
    done = call("--help")
    assert (done.returncode, "max_epochs: 1" in done.stdout) == (0, True)
    assert call("--nonsense").returncode == 2


def test_further_ranks_share_the_folder(project):
    done = project.call("then=relaunch", f"input={PATH}", "hydra.verbose=false")
    assert done.returncode == 0, done.stderr
    first, second = project.told()
    assert first["input"] == second["input"] == PATH
    assert len(list(project.folder.glob("outputs/fake/*"))) == 1
    assert done.stdout.count("outputs") == 1


def test_a_comma_in_a_path_is_no_sweep(project, call):
    assert call("-m", "input=a,b.tif").returncode == 0
    assert [job["input"] for job in project.told("outputs/sweeps/*/*/rank*.json")] == ["a,b.tif"]


def test_a_sweep_relaunches_its_jobs_not_itself(project, call):
    done = call("then=relaunch", "-m", f'input=choice("{PATH}","a,b.tif")', "seed=5")
    assert done.returncode == 0, done.stderr
    told = project.told("outputs/sweeps/*/*/rank*.json")
    assert sorted((job["input"], job["seed"]) for job in told) == sorted([(PATH, 5), ("a,b.tif", 5)] * 2)
    assert all(job["world"] is None for job in told), "the traces of one job reached the next"
    assert not any("-m" in job["argv"] for job in told)


def test_resume_takes_the_saved_words_first(project, call):
    assert call("group=two", "seed=3", f"input={PATH}").returncode == 0
    (run,) = (project.folder / "outputs" / "fake").iterdir()
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").touch()
    for resume in (run, run / "checkpoints" / "last.ckpt"):
        done = call("seed=4", f"resume={resume.relative_to(project.folder)}")
        assert done.returncode == 0, done.stderr
        (told,) = project.told()
        assert (told["group"], told["seed"], told["input"]) == (2, 4, PATH)
    assert call("-m", "seed=1,2", f"resume={run}").stderr.startswith("error: resume= continues a single run")
    assert "not a run" in call("resume=conf").stderr


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["a=1", "-m", "b=2"], ["-m"]),
        (["--cfg", "job", "a=1", "b=2"], ["--cfg", "job"]),
        (["a=1", "--config-dir", "x=y", "b=2"], ["--config-dir", "x=y"]),
    ],
)
def test_words_and_options_may_be_mixed(words, options):
    assert split_words(words) == (options, [word for word in words if word not in options])


def test_there_is_no_run_folder_outside_a_run(monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with pytest.raises(ValueError, match="HydraConfig"):
        run_dir()


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["-m", "seed=1,2"]])
def test_lightning_on_two_processes(project, words):
    done = project.call("then=train", f"input={PATH}", *words)
    assert done.returncode == 0, done.stderr
    told = project.told("outputs/**/rank*.json")
    assert [job["input"] for job in told] == [PATH] * (4 if words else 2)


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


def test_a_full_disk_in_a_librarys_thread_is_one_line(caplog, capsys):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    with warnings_as_lines():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert caplog.messages == ["the disk is full or the file too large for it; free some space or write elsewhere"]
    assert "Traceback" not in capsys.readouterr().err
