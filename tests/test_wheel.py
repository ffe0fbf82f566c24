"""What a wheel holds, and that it works where there is no clone."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    "data=phantom", "data.root=its data", "data.train_shape=[16,96,96]", "data.test_shape=[4,96,96]",
    "data.positions=any", "data.label_rule=center", "data.balance=subsample", "epochs=1", "save_overlays=1",
    "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
]  # fmt: skip

pytestmark = pytest.mark.slow


def run(command, folder, **more):
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", timeout=600, check=False, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)], folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A console script in an environment that has the wheel, and this environment's libraries but not its mitoseg."""
    folder = tmp_path_factory.mktemp("an environment")
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder), "installed_base": sys.base_prefix}
    scheme = "nt" if os.name == "nt" else "posix_prefix"
    scripts, site = (Path(sysconfig.get_path(name, scheme, paths)) for name in ("scripts", "purelib"))
    python = scripts / Path(sys.executable).name
    python = python if python.exists() else scripts / "python"
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", str(wheel)], folder)
    libraries = sysconfig.get_path("purelib")
    (site / "libraries.pth").write_text(libraries, encoding="utf-8")  # a .pth inside that folder is not read again
    where = run([str(python), "-c", "import mitoseg; print(mitoseg.__file__)"], folder).strip()
    assert Path(where).is_relative_to(site)
    return scripts / ("mitoseg.exe" if os.name == "nt" else "mitoseg")


def test_names_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"mitoseg", info}
    assert f"{info}/licenses/LICENSE" in names
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mitoseg").rglob("*.py")}
    configs = {f"mitoseg/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    report = ROOT / "mitoseg" / "evaluation" / "report"
    pages = {p.relative_to(ROOT).as_posix() for kind in ("static", "templates") for p in report.glob(f"{kind}/*.*")}
    assert {Path(name).suffix for name in pages} == {".css", ".html", ".js"}
    assert sources | configs | pages <= names
    assert "mitoseg/viewers/napari_plugin/napari.yaml" in names
    points = zipfile.ZipFile(wheel).read(f"{info}/entry_points.txt").decode()
    assert "[napari.manifest]\nmitoseg = mitoseg.viewers.napari_plugin:napari.yaml" in points
    assert not [name for name in names if "__pycache__" in name or name.startswith("mitoseg/tests")]


def test_help_and_training_on_two_processes_from_an_empty_folder(installed, tmp_path):
    assert "train" in run([str(installed), "--help"], tmp_path)
    assert "== Config ==" in run([str(installed), "train", "--help"], tmp_path)
    folder = tmp_path / "my [1] = ü#, a"
    folder.mkdir()
    said = run([str(installed), "train", "trainer.devices=2", *TINY], folder)
    (made,) = folder.glob("outputs/train/*/*")
    assert folder / said.splitlines()[-1] == made
    assert all((made / name).is_file() for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.json"))
    assert {path.name for path in folder.iterdir()} == {"outputs", "its data"}


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the bounds of pyproject.toml are tried with Python 3.11")
def test_the_lowest_versions_that_are_allowed_train_and_predict(wheel, tmp_path):
    """Only torch is that of constraints/cpu.txt: its lowest version would fetch gigabytes of CUDA once more."""
    venv.create(tmp_path / "an environment", with_pip=True)
    scripts = tmp_path / "an environment" / ("Scripts" if os.name == "nt" else "bin")
    run([str(scripts / "python"), "-m", "pip", "install", "--quiet", "uv"], tmp_path)
    lowest = ["--resolution", "lowest-direct", "--constraint", str(ROOT / "constraints" / "cpu.txt")]
    run([str(scripts / "uv"), "pip", "install", "--python", str(scripts / "python"), *lowest, str(wheel)], tmp_path)
    run([str(scripts / "mitoseg"), "train", *TINY, "hydra.run.dir=run"], tmp_path)
    (image,) = (tmp_path / "its data").glob("fibsem_4x*/image.tif")
    words = ["checkpoint=run/checkpoints/best.ckpt", f"input={image}", "output=out.zarr"]
    run([str(scripts / "mitoseg"), "predict", *words], tmp_path)
    assert (tmp_path / "out.zarr").is_dir()
