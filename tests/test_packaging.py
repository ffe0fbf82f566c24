"""Containers, the conda recipe and the change log agree with pyproject.toml."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import mitoseg

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_recipe_asks_for_what_the_package_asks_for():
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text(encoding="utf-8"))
    wanted = {f"python {PROJECT['requires-python']}"}
    for line in PROJECT["dependencies"]:
        requirement = Requirement(line)
        name = CONDA_NAMES.get(requirement.name, requirement.name)
        wanted.add(f"{name} {','.join(sorted(str(requirement.specifier).split(','), reverse=True))}")
    assert {re.sub(r"\s+#.*", "", line) for line in recipe["requirements"]["run"]} == wanted
    assert recipe["context"]["version"] == mitoseg.__version__
    scripts = [f"{name} = {target}" for name, target in PROJECT["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts


def shell_steps(name):
    """The commands that build an image, as one shell script."""
    text = (ROOT / "containers" / name).read_text(encoding="utf-8")
    if name == "Dockerfile":
        return "\n".join(re.findall(r"^RUN ((?:.*\\\n)*.*)", text, re.MULTILINE))
    return re.search(r"^%post\n(.*?)^%", text, re.MULTILINE | re.DOTALL)[1]


def test_containers_are_shell_scripts_and_install_the_same_packages():
    steps = [shell_steps(name) for name in ("Dockerfile", "mitoseg.def")]
    for script in steps:
        done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    found = [re.findall(r"--no-install-recommends (.*?) *\\?$", script, re.MULTILINE) for script in steps]
    assert found[0] == found[1] != []


def test_the_change_log_has_this_version():
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(mitoseg.__version__)}\b", log, re.MULTILINE)


def test_every_command_starts_without_the_extras():
    """With the packages of extras hidden, as after a plain install."""
    hidden = (
        "optuna napari npe2 qtpy onnx onnxruntime distributed dask_jobqueue nibabel nrrd neuroglancer submitit joblib"
    )
    code = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({hidden.split()!r}))
import mitoseg.cli.launch, mitoseg.viewers.view, mitoseg.workflows
for found in pkgutil.iter_modules(mitoseg.workflows.__path__):
    importlib.import_module("mitoseg.workflows." + found.name)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
