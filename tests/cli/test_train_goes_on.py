"""Runs that are stopped, resumed, extended, fine-tuned and tuned, as a user types it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from small_project import heed_interrupts
from tiny_training import TINY, command

from mitoseg.arguments import refuse_code
from mitoseg.cli.launch import default_config_dir
from mitoseg.errors import UserError
from mitoseg.storage import held
from mitoseg.training import SegmentationModule

QUIET = ("test=false", "figures=false", "save_overlays=0")
"""For a training of which only the state matters."""


def last_line(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def checkpoint(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)


def weights(folder, name="last"):
    return {k: v for k, v in checkpoint(folder, name)["state_dict"].items() if k.startswith("network.")}


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


def test_the_same_command_gives_the_same_bits(work, monkeypatch):
    assert command(monkeypatch, "train", *TINY, "hydra.run.dir=again", "test=false", "save_overlays=0") == 0
    assert same(weights(work / "run"), weights(work / "again"))
    first, second = (json.loads((work / run / "metrics.json").read_text()) for run in ("run", "again"))
    assert first["validation"] == second["validation"]


def test_a_run_too_short_to_be_validated_says_so(work, monkeypatch, capsys):
    assert command(monkeypatch, "train", *TINY, "hydra.run.dir=short", "trainer.max_steps=1") == 1
    assert "training ended before its first validation" in last_line(capsys)
    assert not (work / "short" / "metrics.json").exists()


def test_a_finished_run_can_be_extended(work, monkeypatch, capsys):
    shutil.copytree(work / "run", work / "longer")
    assert command(monkeypatch, "train", "resume=longer", "extend=2", *QUIET) == 0
    assert checkpoint(work / "longer")["global_step"] == 3 * checkpoint(work / "run")["global_step"]
    assert (work / "longer" / "metrics_after_1_epochs.json").is_file()
    seconds = [
        json.loads((work / run / "provenance.json").read_text())["training_seconds"] for run in ("run", "longer")
    ]
    assert seconds[0] <= seconds[1]  # the time of before counts
    assert command(monkeypatch, "train", "resume=longer") == 0  # the words of the extension are not said again
    assert checkpoint(work / "longer")["global_step"] == 3 * checkpoint(work / "run")["global_step"]
    (work / "longer" / "metrics.json").unlink()
    capsys.readouterr()
    assert command(monkeypatch, "train", "resume=longer", "extend=2") == 1
    assert "the run has not finished" in last_line(capsys)
    assert command(monkeypatch, "train", *TINY, "extend=2") == 1
    assert "extend= without a run" in last_line(capsys)
    assert command(monkeypatch, "train", "resume=run", "extend=0") == 1
    assert "extend is not a whole number from 1" in last_line(capsys)


def take_up(work, *words):
    """A copy of the run whose saved words are followed by those of somebody else."""
    shutil.rmtree(work / "stranger", ignore_errors=True)
    shutil.copytree(work / "run", work / "stranger")
    saved = work / "stranger" / ".hydra" / "overrides.yaml"
    saved.write_text(yaml.safe_dump([*yaml.safe_load(saved.read_text()), *words]))
    return saved


def test_a_run_that_is_going_on_is_taken_up_by_nobody_else(work, monkeypatch, capsys):
    shutil.copytree(work / "run", work / "busy")
    saved = (work / "busy" / ".hydra" / "overrides.yaml").read_text()
    with held(work / "busy" / "checkpoints" / ".lock", "busy"):
        assert command(monkeypatch, "train", "resume=busy", "optimizer.lr=1") == 1
        assert last_line(capsys).startswith("error: another training is running in this folder")
    assert (work / "busy" / ".hydra" / "overrides.yaml").read_text() == saved


def test_changed_options_are_told_or_refused(work, monkeypatch, capsys):
    """The checkpoint restores the optimizer's rate, whatever is given; config.yaml would say otherwise."""
    shutil.copytree(work / "run", work / "changed")
    saved = (work / "changed" / ".hydra" / "overrides.yaml").read_text()
    assert command(monkeypatch, "train", "resume=changed", "optimizer.lr=1") == 1
    assert "restores its optimizer, optimizer.lr would have no effect: '1'; resume without" in last_line(capsys)
    assert (work / "changed" / ".hydra" / "overrides.yaml").read_text() == saved
    assert command(monkeypatch, "train", "resume=changed", "data.batch_size=7", "freeze=[nothing]") == 1
    assert "other options than before: data.batch_size was null, is now 7" in capsys.readouterr().err


def test_changed_training_data_are_noticed(work, monkeypatch, capsys):
    shutil.copytree(work / "run", work / "interrupted")
    image = next((work / "phantom").glob("*10x96x128*/image.tif"))
    before = image.read_bytes()
    image.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        assert command(monkeypatch, "train", "resume=interrupted", "extend=1") == 1
        assert "the training data have changed since the run was interrupted (train.image 1 was" in last_line(capsys)
    finally:
        image.write_bytes(before)
    assert command(monkeypatch, "train", "resume=interrupted", *QUIET) == 0


def test_a_stranger_s_run_cannot_run_code(work, monkeypatch, capsys):
    saved = take_up(work)
    (work / "stranger" / "notes.yaml").write_text("_target_: os.mkdir\npath: pwned\n_partial_: false")
    notes = os.path.relpath(work / "stranger" / "notes", default_config_dir() / "network")
    for word in (
        *("network._target_=os.system", "optimizer={_target_: os.system, command: 'touch pwned'}"),
        *("hydra.verbose=1", " hydra.searchpath=[stranger]", "--config-dir=stranger", "-cd=stranger"),
        *(f"network={notes}", f'loss="{notes}"', f"+experiment=[unet25d,{notes}]", f"optimizer@loss={notes}"),
        *(f"network={work}/stranger/notes", f"network=choice({notes},unet2d)", f"~network={notes}"),
        *("data@hydra.x=phantom", "logger.mlflow.tracking_uri=http://example.org"),
        *(r"name=$\{oc.env:HOME\}", r"data={validation: {$\{oc.env:HOME\}: 3}}"),
    ):
        take_up(work, word)
        assert command(monkeypatch, "train", "resume=stranger") == 1, word
        assert "holds an argument that can run code" in last_line(capsys), word
        assert not (work / "pwned").exists(), word
    take_up(work)
    (work / "kept.yaml").write_text("kept")
    (saved.parent / "config.yaml").unlink(missing_ok=True)
    (saved.parent / "config.yaml").symlink_to(work / "kept.yaml")
    assert command(monkeypatch, "train", "resume=stranger") == 1
    assert "holds a link to another place" in last_line(capsys)
    assert (work / "kept.yaml").read_text() == "kept"
    saved.write_text("[unclosed")
    assert command(monkeypatch, "train", "resume=stranger") == 1
    assert "cannot be read" in last_line(capsys)


def test_the_trainings_of_a_stranger_s_benchmark_cannot_run_code(tmp_path):
    dirs = [default_config_dir()]
    for words in (
        *('"trust=true"', '"resume=b"'),
        *('"network=../../notes"', '"--config-dir=notes"', '"hydra.searchpath=[a]"', '"data=[phantom,../b]"'),
    ):
        for word in (f"methods.unet25d.train=[{words}]", f"+methods.mine={{title: a, train: [{words}]}}"):
            with pytest.raises(UserError, match="can run code"):
                refuse_code([word], tmp_path, dirs)


def test_the_words_that_people_type_are_taken_up_without_trust(tmp_path):
    words = [
        "network=unet25d",
        "experiment=null",
        "data.train.image=[../a b.tif]",
        "~data.gap",
        "name=a/../b",
        "+a.b=1",
    ]
    words += ["methods=[forest,unet25d]", 'methods.unet25d.train=["network=unet25d","epochs=2"]', "loss.weight=1e-3"]
    words += ['methods.unet25d.checkpoint="a=b/best.ckpt"', "data={validation: {gap: 3}}", 'input="c:\\\\d (1).tif"']
    refuse_code(words, tmp_path, [default_config_dir()])
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "dilated.yaml").touch()
    refuse_code(["network=dilated"], tmp_path, [default_config_dir(), tmp_path])


def test_a_resumed_run_builds_only_what_the_configs_name(work, monkeypatch, capsys):
    take_up(work, "network=patch_cnn")
    monkeypatch.setattr("mitoseg.arguments.refuse_code", lambda *_: None)  # as if it had been outwitted
    take_up(work, "+loss.more={_target_: os.mkdir, path: pwned}")
    assert command(monkeypatch, "train", "resume=stranger") == 1
    assert "names code that is not in the configs: 'os.mkdir'" in last_line(capsys)
    assert not (work / "pwned").exists()
    assert command(monkeypatch, "train", "resume=stranger", "loss._target_=torch.nn.Identity") == 1
    assert "'os.mkdir'" in last_line(capsys)


def test_a_resumed_network_takes_no_more_than_its_weights_call_for(work, monkeypatch, capsys):
    take_up(work, "network=unet2d", "network.filters=[64,8192,8192]", "network.strides=[2,2]")
    assert command(monkeypatch, "train", "resume=stranger") == 1
    assert "larger than its weights" in last_line(capsys)


def test_a_damaged_checkpoint_is_told_and_the_best_one_goes_on(work, monkeypatch, capsys):
    take_up(work)
    last = work / "stranger" / "checkpoints" / "last.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1
    last.write_bytes(data)
    assert command(monkeypatch, "train", "resume=stranger") == 1
    line = last_line(capsys)
    assert "damaged" in line
    best = line.rpartition("instead: ")[2]

    def reached(trainer, module, data, checkpoint, **options):
        raise UserError("reached", checkpoint.name)

    monkeypatch.setattr("mitoseg.workflows.train.fit", reached)
    assert command(monkeypatch, "train", f"resume={best}") == 1
    assert last_line(capsys) == "error: reached: 'best.ckpt'"


@pytest.mark.parametrize(
    "damage",
    [
        lambda found: found["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(1)),  # was read beyond
        lambda found: found["optimizer_states"][0]["state"][0].update(exp_avg_sq=-1),
        lambda found: found["optimizer_states"][0]["state"][0].pop("exp_avg"),
        lambda found: found["optimizer_states"][0].update(param_groups=[]),
        lambda found: found["loops"]["fit_loop"]["epoch_progress"]["total"].update(completed=None),
        lambda found: found["mitoseg"].update(calibration="x"),
    ],
)
def test_a_training_s_state_that_cannot_be_is_one_line(damage, work, monkeypatch, capsys):
    take_up(work)
    found = checkpoint(work / "run")
    damage(found)
    torch.save(found, work / "stranger" / "checkpoints" / "last.ckpt")
    assert command(monkeypatch, "train", "resume=stranger", "extend=1") == 1
    assert "cannot continue from this checkpoint" in last_line(capsys)


def test_a_run_that_was_copied_in_part_is_told(work, monkeypatch, capsys):
    take_up(work)
    (work / "stranger" / "checkpoints" / "best.ckpt").unlink()
    assert command(monkeypatch, "train", "resume=stranger") == 1
    assert last_line(capsys).startswith("error: the best checkpoint of the run is missing: ")


class Bomb:
    """Runs something when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_checkpoint_is_not_run(work, monkeypatch, capsys):
    take_up(work)
    last = work / "stranger" / "checkpoints" / "last.ckpt"
    torch.save({**checkpoint(work / "run"), "more": Bomb(work / "pwned")}, last)
    for words in (["resume=stranger"], [*TINY, f"init_from={last}"]):
        assert command(monkeypatch, "train", *words) == 1
        assert "not a checkpoint that is safe to load" in last_line(capsys)
        assert not (work / "pwned").exists()


def test_fine_tuning_starts_from_the_weights_and_keeps_what_is_frozen(work, monkeypatch, capsys):
    words = ["init_from=run/checkpoints/best.ckpt", "freeze=[layers.conv1,layers.conv2]", "hydra.run.dir=tuned"]
    assert command(monkeypatch, "train", *TINY, *words, *QUIET) == 0
    before, after = weights(work / "run", "best"), weights(work / "tuned")
    for name in before:
        assert torch.equal(before[name], after[name]) == ("conv1" in name or "conv2" in name), name
    provenance = json.loads((work / "tuned" / "provenance.json").read_text())
    assert provenance["init_from"]["checkpoint"] == "run/checkpoints/best.ckpt"
    assert "layers.conv2.bias" in provenance["frozen"]
    capsys.readouterr()
    assert command(monkeypatch, "train", *TINY, "init_from=none.ckpt") == 1
    assert "no such checkpoint: 'none.ckpt'" in last_line(capsys)
    assert command(monkeypatch, "train", *TINY, "freeze=[conv9]") == 1
    assert "freeze: no such layer: 'conv9'" in last_line(capsys)


@pytest.mark.slow
def test_finders_set_what_they_found_and_the_run_remembers(work, monkeypatch):
    words = ["tune_lr=true", "tune_batch_size=true", "data.batch_size=20", "data.epoch_blocks=70"]
    given = [*(w for w in TINY if "epoch_blocks" not in w), *words, "hydra.run.dir=found", "test=false"]
    assert command(monkeypatch, "train", *given) == 0
    config = yaml.safe_load((work / "found" / "config.yaml").read_text())
    assert config["data"]["batch_size"] == 70
    assert 1e-7 < config["optimizer"]["lr"] < 1
    assert (work / "found" / "figures" / "learning_rate.png").is_file()
    saved = yaml.safe_load((work / "found" / ".hydra" / "overrides.yaml").read_text())
    assert f"data.batch_size={config['data']['batch_size']}" in saved
    assert not any(word.startswith("tune") for word in saved)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tune_lr=true", "optimizer=sgd_paper"], "a separate rate for each kind of layer"),
        (["tune_lr=true", "trainer.devices=2"], "tune_lr and tune_batch_size need one device: 2"),
        (["patience=0"], "patience is not a whole number from 1: 0"),
        (["compile=fast"], "unknown choice of compile: 'fast'"),
        (["data.voxels_on=disk"], "unknown voxels_on: 'disk'; choose one of auto, device, host"),
        (["logger=mlflow"], "pip install mlflow"),
        (["+foo=1"], "no such option: 'foo'"),
        (["trainer.devices=two"], "should be an int > 0"),
        *(
            ([word], "")
            for word in ("data.test_shape=[2,96,128]", "optimizer.lr=-1", "epochs=many", "scheduler=nothing")
        ),
        (["trainer.accumulate_grad_batches=200"], "1 devices, in 200 parts each, cannot share batches of 100"),
    ],
)
def test_mistakes_are_one_line(words, line, work, monkeypatch, capsys):
    kept = [word for word in TINY if word.split("=")[0] not in {word.split("=")[0] for word in words}]
    before = list(work.glob("outputs/train/*/*"))
    assert command(monkeypatch, "train", *kept, *words) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: ")
    assert line in said.splitlines()[-1]
    if "accumulate" not in words[0]:  # which is found out when the run has begun
        assert list(work.glob("outputs/train/*/*")) == before, "a run that was refused leaves a folder"


def test_early_stopping_and_other_options(work, monkeypatch):
    words = ["epochs=9", "patience=1", "optimizer.lr=0", "trainer.precision=bf16-mixed", "channels_last=false"]
    words += ["data.epoch_blocks=100", "data.validation_stride=8"]
    assert command(monkeypatch, "train", *TINY, *words, "hydra.run.dir=early", *QUIET) == 0
    assert checkpoint(work / "early")["epoch"] == 1


def start(*words, **options):
    """A real process that trains; it heeds Ctrl-C even if this one runs in the background."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    given = [sys.executable, "-m", "mitoseg", "train", *TINY, *words]
    return subprocess.Popen(
        given,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
        preexec_fn=heed_interrupts,
        **options,
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


ENDS = [(signal.SIGINT, 130, "stopped"), (signal.SIGTERM, 143, "terminated")]


def check_ended(folder, number, code, told):
    """A training that got a signal has left its last checkpoint and said how to go on."""
    (expected, word), *_ = [(code, word) for other, code, word in ENDS if other == number]
    assert code == expected
    assert "Traceback" not in told
    assert f"{word}; continue with: python train.py resume={folder.name}" in told
    found = checkpoint(folder)
    assert 0 < found["global_step"] < 200
    assert found["mitoseg"]["channels"] == "adjacent"


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one process there")
@pytest.mark.parametrize("number", [number for number, *_ in ENDS])
def test_a_training_that_gets_a_signal_writes_a_checkpoint(number, work, monkeypatch, capsys, interruptible):
    """Some way into the first epoch."""
    step, taken = SegmentationModule.training_step, []

    def signalled(*args, **options):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), number)
        return step(*args, **options)

    monkeypatch.setattr(SegmentationModule, "training_step", signalled)
    code = command(monkeypatch, "train", *TINY, "epochs=50", f"hydra.run.dir=ended{number}")
    check_ended(work / f"ended{number}", number, code, capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one process there")
@pytest.mark.parametrize("number", [number for number, *_ in ENDS])
@pytest.mark.parametrize("more", [[], ["trainer.devices=2", "data.validation_stride=1"]], ids=["alone", "two"])
def test_a_real_training_that_gets_a_signal_writes_a_checkpoint(number, more, work):
    folder = work / f"ended{number}_{len(more)}"
    with start(*more, "epochs=50", f"hydra.run.dir={folder.name}") as process:
        wait_for(folder / "checkpoints" / "last.ckpt", process)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    check_ended(folder, number, process.returncode, told)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL there")
def test_killed_at_any_moment_and_resumed_is_as_if_never_killed(work, monkeypatch):
    """Weights, threshold and every score, bit for bit."""
    words = ["epochs=3", "data.epoch_blocks=1500", "checkpoint_minutes=0.00001"]
    with start(*words, "hydra.run.dir=whole") as process:
        _, told = process.communicate()
    assert process.returncode == 0, told
    rng = np.random.default_rng(0)
    for trial in range(4):
        folder = work / f"killed{trial}"
        with start(*words, f"hydra.run.dir={folder.name}") as process:
            wait_for(folder / "checkpoints" / "last.ckpt", process)
            time.sleep(rng.random() * 4)
            process.kill()
        again = [sys.executable, "-m", "mitoseg", "train", f"resume={folder.name}"]
        subprocess.run(again, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        for name in ("last", "best"):
            assert same(weights(work / "whole", name), weights(folder, name))
        assert (work / "whole" / "metrics.json").read_text() == (folder / "metrics.json").read_text()
