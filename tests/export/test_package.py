"""The bioimage.io package: bioimageio.core accepts it, and predicts with it what mitoseg predicts."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from exported_models import block_model, grey_volume, predicted, unet_model
from PIL import Image

from mitoseg.errors import UserError
from mitoseg.export import export_package, package
from mitoseg.export.cover import draw_cover
from mitoseg.networks.bundle import find_weights
from mitoseg.networks.checkpoint import load_model

# bioimageio.spec 0.5 leaves the files open whose checksums it takes.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
ROOT = Path(__file__).parents[2]
FACTS = {
    "name": "lucchi",
    "title": "EPFL CA1 (Lucchi et al.)",
    "citation": "Lucchi",
    "doi": "10.1109/TMI.2011.2171705",
}


def make(model, path, **more):
    more = {"name": "tiny", "image": grey_volume, "card": "# Card\n\n## Use\n", "facts": FACTS, **more}
    return export_package(model, path, **more)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The package of a small U-Net with neighbours as channels."""
    pytest.importorskip("bioimageio.core")
    model, path = unet_model(channels="adjacent5"), tmp_path_factory.mktemp("package") / "tiny.zip"
    steps = []
    told = make(model, path, on_step=steps.append)
    return model, path, told, steps


def test_what_is_in_it(tiny):
    _, path, told, steps = tiny
    assert told.form == "volume"
    assert told.difference < 1e-5
    assert steps[-1] == "testing the package with bioimageio.core"
    with zipfile.ZipFile(path) as archive:
        names = {"rdf.yaml", "weights.onnx", "test_input.npy", "test_output.npy", "cover.png", "documentation.md"}
        assert set(archive.namelist()) == names
        about = yaml.safe_load(archive.read("rdf.yaml"))
        text = archive.read("documentation.md").decode()
        with archive.open("cover.png") as file:
            cover = Image.open(file)
            assert cover.size[0] == 2 * cover.size[1]
    assert about["name"] == "mitoseg tiny"
    assert about["license"] == "BSD-3-Clause"
    assert about["cite"] == [{"text": "Lucchi", "doi": FACTS["doi"]}]
    assert about["training_data"]["cite"] == about["cite"]
    axes = {axis.get("id", axis["type"]): axis for axis in about["inputs"][0]["axes"]}
    assert [axes[name]["scale"] for name in "zyx"] == [5.0, 5.0, 5.0]
    assert axes["y"]["size"] == {"min": 96, "step": 8} or axes["y"]["size"]["step"] == 8
    halo = {axis.get("id"): axis.get("halo") for axis in about["outputs"][0]["axes"]}
    assert (halo["z"], halo["y"], halo["x"]) == (2, 32, 32)
    assert about["config"]["mitoseg"]["threshold"] == "0.4"
    assert "http" not in str(about), "an address would be looked up"
    for word in ("## Validation", "# mitoseg tiny", "## Card", "-2, -1, 0, +1, +2", "2 x 32 x 32"):
        assert word in text


def test_authors_are_those_of_the_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert package.authors() == [author["name"] for author in cited["authors"]]


def test_it_predicts_what_mitoseg_predicts(tiny):
    from bioimageio.core import predict

    model, path, *_ = tiny
    image = grey_volume((9, 64, 96), seed=3)
    found = predict(model=path, inputs=image[None, None].astype(np.float32))
    found = found.members["probability"].data.to_numpy()[0, 0]
    padded = np.pad(image, [(2, 2), (32, 32), (32, 32)], mode="reflect")  # as bioimageio.core pads
    ours = predicted(model, padded, tile=[1, *padded.shape[1:]])[2:-2, 32:-32, 32:-32]
    assert found.shape == image.shape
    np.testing.assert_allclose(found, ours, atol=2e-5)


def test_a_package_that_fails_its_test_is_not_kept(tmp_path, monkeypatch):
    right = package.expected
    monkeypatch.setattr(package, "expected", lambda *a: np.clip(right(*a) + np.float32(0.1), 0, 1))
    with pytest.raises(UserError, match=r"does not pass bioimageio\.core's test"):
        make(block_model("PatchCNN", "single"), tmp_path / "a.zip")
    assert not list(tmp_path.iterdir())


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
    assert tuple(right[60, 117]) == (255, 140, 0)  # the edge at x = 19
    assert tuple(right[60, 3]) != (255, 140, 0)  # the image's own border is none
    assert np.ptp(cover[:, :384], axis=2).max() == 0


@pytest.mark.slow
def test_the_bundled_model_passes_the_command_of_bioimageio(tmp_path, real_data):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BIOIMAGEIO_CACHE_PATH": str(tmp_path / "cache")}
    words = ["-m", "mitoseg.export", "checkpoint=epfl-unet25d", "output=bundled.zip"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "bioimageio.core's own test passed" in done.stdout
    words = ["-m", "bioimageio.core", "test", "bundled.zip"]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    same_as_ours(tmp_path / "bundled.zip", real_data)


def same_as_ours(path, real_data):
    """The package of the bundled model on a crop of real data."""
    from bioimageio.core import predict

    from mitoseg.geometry import Box
    from mitoseg.volumes import open_volume

    model = load_model(find_weights(None))
    box = Box((20, 300, 400), (44, 428, 528))
    image = open_volume(str(real_data / "epfl_ca1" / "testing_z000-081.tif")).read(box)
    found = predict(model=path, inputs=image[None, None].astype(np.float32)).members["probability"].data.to_numpy()
    padded = np.pad(image, [(8, 8), (32, 32), (32, 32)], mode="reflect")
    ours = predicted(model, padded, tile=[1, *padded.shape[1:]])[8:-8, 32:-32, 32:-32]
    np.testing.assert_allclose(found[0, 0], ours, atol=2e-5)
    assert (ours >= model.threshold).any()
