"""A project of its own with a small command, which the tests of launch and of sweeps start as a user does."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from mitoseg.cli.launch import default_config_dir, launch

HERE = Path(__file__).parent
CONFIG = """
defaults:
  - group: one
  - override hydra/job_logging: mitoseg
  - override hydra/hydra_logging: mitoseg
  - override hydra/callbacks: mitoseg
  - _self_
input: null
crop: null
resume: null
seed: 1
then: nothing
must: ???
name: fake
seeds: 1
lr: 0.1
trainer: {max_epochs: 1, devices: 1, accelerator: cpu}
hydra:
  run: {dir: "outputs/fake/${now:%Y}"}
"""


def heed_interrupts():
    """What runs in the background ignores SIGINT and hands that down to its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Project:
    """A folder with a script and its configs."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "conf" / "group").mkdir(parents=True)
        (folder / "conf" / "fake.yaml").write_text(CONFIG, encoding="utf-8")
        (folder / "conf" / "group" / "one.yaml").write_text("a: 1")
        (folder / "conf" / "group" / "two.yaml").write_text("{a: 2, b: 3}")
        shutil.copytree(default_config_dir() / "hydra", folder / "conf" / "hydra")
        shutil.copy(HERE / "fake_command.py", folder)

    def call(self, *words, **variables):
        """Run the script; output as text."""
        with self.start(*words, **variables) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def call_here(self, monkeypatch, capsys, *words):
        """The same in this process."""
        import fake_command

        monkeypatch.chdir(self.folder)
        monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # so that it is put back
        monkeypatch.setattr(sys, "argv", [str(self.folder / "fake_command.py"), *words])
        for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE", "MITOSEG_RUN_DIR"):
            monkeypatch.delenv(name, raising=False)
        code = 0
        try:
            launch("fake", fake_command.run, config_dir=self.folder / "conf")
        except SystemExit as leaving:
            code = leaving.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    def start(self, *words, **variables):
        """Start the script, its output in pipes."""
        ranks = {"RANK", "LOCAL_RANK", "SLURM_PROCID", "WORLD_SIZE", "MITOSEG_RUN_DIR"}
        environment = {key: value for key, value in os.environ.items() if key not in ranks}
        environment |= {"PYTHONUTF8": "1", "COLUMNS": "200", **variables}
        command = [sys.executable, "fake_command.py", *words]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        if sys.platform != "win32":
            options["preexec_fn"] = heed_interrupts
        return subprocess.Popen(command, cwd=self.folder, env=environment, **options)

    def told(self, pattern="outputs/fake/*/rank*.json"):
        """What the command wrote down, by file in order."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob(pattern))]
