"""The bioimage.io package: bioimageio.core accepts it, and predicts with it what mitoseg predicts."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from exported_models import block_model, grey_volume, predicted, unet_model
from package_driver import make
from PIL import Image

from mitoseg.errors import UserError
from mitoseg.export import package
from mitoseg.export.package import draw_cover
from mitoseg.geometry import Box
from mitoseg.networks.checkpoint import find_weights, load_model
from mitoseg.volumes import open_volume

ROOT = Path(__file__).parents[2]


def child(*words, cwd):
    """Run Python on words; its output."""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "BIOIMAGEIO_CACHE_PATH": str(cwd / "cache")}
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What `package_driver` leaves behind."""
    folder = tmp_path_factory.mktemp("package")
    child(Path(__file__).with_name("package_driver.py"), folder, cwd=folder)
    return folder


@pytest.mark.slow
def test_what_is_in_it(made):
    told = json.loads((made / "told.json").read_text())
    assert told["form"] == "volume"
    assert told["difference"] < 1e-5
    assert told["steps"][-1] == "testing the package with bioimageio.core"
    with zipfile.ZipFile(made / "tiny.zip") as archive:
        names = {"rdf.yaml", "weights.onnx", "test_input.npy", "test_output.npy", "cover.png", "documentation.md"}
        assert set(archive.namelist()) == names
        about = yaml.safe_load(archive.read("rdf.yaml"))
        text = archive.read("documentation.md").decode()
        with archive.open("cover.png") as file:
            cover = Image.open(file)
            assert cover.size[0] == 2 * cover.size[1]
    assert about["inputs"][0]["pad"] == {"mode": "reflect"}
    assert about["name"] == "mitoseg tiny"
    assert about["license"] == "BSD-3-Clause"
    assert about["cite"] == [{"text": "Lucchi", "doi": "10.1109/TMI.2011.2171705"}]
    assert about["training_data"]["cite"] == about["cite"]
    axes = {axis.get("id", axis["type"]): axis for axis in about["inputs"][0]["axes"]}
    assert [axes[name]["scale"] for name in "zyx"] == [5.0, 5.0, 5.0]
    assert axes["y"]["size"] == {"min": 72, "step": 8}
    halo = {axis.get("id"): axis.get("halo") for axis in about["outputs"][0]["axes"]}
    assert (halo["z"], halo["y"], halo["x"]) == (2, 32, 32)
    assert about["config"]["mitoseg"]["threshold"] == "0.4"
    assert "http" not in str(about), "an address would be looked up"
    for word in ("## Validation", "# mitoseg tiny", "## Card", "-2, -1, 0, +1, +2", "2 x 32 x 32"):
        assert word in text


def test_authors_are_those_of_the_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert package.authors() == [author["name"] for author in cited["authors"]]


@pytest.mark.slow
def test_it_predicts_what_mitoseg_predicts(made):
    image, found = grey_volume((9, 80, 96), seed=3), np.load(made / "found.npy")
    padded = np.pad(image, [(2, 2), (32, 32), (32, 32)], mode="reflect")  # as bioimageio.core pads
    model = unet_model(channels="adjacent5")
    ours = predicted(model, padded, tile=[1, *padded.shape[1:]])[2:-2, 32:-32, 32:-32]
    assert found.shape == image.shape
    np.testing.assert_allclose(found, ours, atol=2e-5)


@pytest.mark.slow
def test_the_code_of_the_page(made):
    found, ours = np.load(made / "page.npy"), predicted(block_model(), grey_volume((6, 80, 90)))
    np.testing.assert_allclose(found[1:-1], ours[1:-1], atol=2e-5)


@pytest.mark.slow
def test_a_package_that_fails_its_test_is_not_kept(made):
    told = json.loads((made / "told.json").read_text())
    assert "does not pass bioimageio.core's test" in told["refused"]
    assert not list(made.glob("*wrong*"))


def test_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot export to that suffix.*NAME\.zip"):
        make(block_model(), tmp_path / "a.tar")
    monkeypatch.setitem(sys.modules, "bioimageio.core", None)
    with pytest.raises(UserError, match=r"this needs a library: 'bioimageio.core'; run pip install"):
        make(block_model(), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


def test_the_outline_is_inside_and_not_at_the_border():
    prob = np.zeros((64, 64), np.float32)
    prob[:20, :20] = 1
    cover = np.asarray(draw_cover(grey_volume((1, 64, 64))[0].astype(float), prob, 0.5)).astype(int)
    right = cover[:, 384:]
    far = np.abs(right - (255, 140, 0)).max(axis=2)
    assert far[60, 117] < 20  # the edge at x = 19
    assert far[60, 3] > 60  # the image's own border is none
    assert np.ptp(cover[:, :384], axis=2).max() == 0


@pytest.mark.slow
def test_the_bundled_model_passes_the_command_of_bioimageio(tmp_path, real_data):
    words = ["-m", "mitoseg.export", "checkpoint=epfl-unet25d", "output=bundled.zip"]
    assert "bioimageio.core's own test passed" in child(*words, cwd=tmp_path)
    child("-m", "bioimageio.core", "test", "bundled.zip", cwd=tmp_path)
    same_as_ours(tmp_path, real_data)


PREDICT = """
import numpy as np
from bioimageio.core import predict
found = predict(model="bundled.zip", inputs=np.load("crop.npy").astype("float32")[None, None])
np.save("found.npy", found.members["probability"].data.to_numpy()[0, 0])
"""


def same_as_ours(folder, real_data):
    """The package of the bundled model on a crop of real data."""
    box = Box((20, 64, 640), (44, 192, 768))  # a third is mitochondria
    image = open_volume(str(real_data / "epfl_ca1" / "testing_z000-081.tif")).read(box)
    np.save(folder / "crop.npy", image)
    child("-c", PREDICT, cwd=folder)
    model = load_model(find_weights(None))
    padded = np.pad(image, [(8, 8), (32, 32), (32, 32)], mode="reflect")
    ours = predicted(model, padded, tile=[1, *padded.shape[1:]])[8:-8, 32:-32, 32:-32]
    np.testing.assert_allclose(np.load(folder / "found.npy"), ours, atol=2e-5)
    assert 0.1 < (ours >= model.threshold).mean() < 0.6
