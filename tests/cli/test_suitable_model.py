"""Without ``checkpoint=``, the bundled model that suits the input predicts, and one for all volumes of a folder."""

from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import predict, prepare, tif

import mitoseg
from mitoseg.errors import UserError
from mitoseg.inference.confidence import Field
from mitoseg.networks.checkpoint import bundled
from mitoseg.volumes import ArrayVolume, open_volume
from mitoseg.workflows import predict as command
from mitoseg.workflows import suitable

GREY = np.random.default_rng(0).integers(0, 255, (2, 64, 64), np.uint8)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What was asked for each choice: the shapes of the volumes."""
    asked = []

    def choose(volumes, **options):
        asked.append([volume.shape for volume in volumes])
        return bundled()[0]

    prepare(tmp_path, monkeypatch, GREY)
    monkeypatch.setattr(command, "choose_model", choose)
    return asked


def test_a_volume_chooses_and_a_named_checkpoint_does_not(given, monkeypatch):
    assert predict(monkeypatch, "input=in.tif", "output=out.zarr", "hydra.run.dir=run") == 0
    assert given == [[GREY.shape]]
    assert open_volume("out.zarr").info.metadata["checkpoint"] == bundled()[0]
    assert bundled()[0] in Path("run/provenance.json").read_text()
    assert predict(monkeypatch, "input=in.tif", "output=b.zarr", "checkpoint=a.ckpt", "trust=true") == 0
    assert len(given) == 1


def test_a_folder_goes_on_with_the_model_that_began_it(given, monkeypatch):
    for name in "abc":
        tif(f"in/{name}.tif", GREY)
    tif("in/d.tif", np.zeros((1, 2, 3, 4, 5), np.uint8))  # no volume: it fails when its turn comes
    assert predict(monkeypatch, "input=in", "output=out") == 1
    assert given == [[GREY.shape] * 3]
    tif("in/d.tif", GREY)
    assert predict(monkeypatch, "input=in", "output=out") == 0
    assert len(given) == 1


def test_the_most_promising_model_is_chosen(monkeypatch, caplog):
    caplog.set_level("INFO")
    promised = {name: np.array([5.0, 5.0, 5.0]) for name in bundled()} | {bundled()[-1]: np.array([9.0, 1.0, 1.0])}

    def examine(predictor):
        soft = promised[name_of[id(predictor.prediction.network)]]
        return iter([Field(predictor.volume.box, soft, np.array([1.0, 1.0]))])

    name_of, load = {}, suitable.load_model

    def loaded(path):
        model = load(path)
        name_of[id(model.network)] = path.parent.name
        kept.append(model)
        return model

    kept = []
    monkeypatch.setattr(suitable, "load_model", loaded)
    monkeypatch.setattr(suitable, "examine", examine)
    assert suitable.choose_model([ArrayVolume(GREY, (5.0, 5.0, 5.0))]) == bundled()[-1]
    assert f"{bundled()[-1]} 0.82" in caplog.text
    assert mitoseg.load(image=GREY, voxel_size=(5, 5, 5)).name == bundled()[-1]


def test_a_network_that_is_too_large_for_the_volume_promises_nothing(monkeypatch):
    def examine(predictor):
        raise UserError("the image is smaller than the network's window", None, "")
        yield

    monkeypatch.setattr(suitable, "examine", examine)
    assert suitable.choose_model([ArrayVolume(GREY)]) in bundled()
    assert suitable.choose_model([]) in bundled()


@pytest.mark.slow
def test_each_tissue_gets_the_model_that_knows_it(real_data):
    epfl = open_volume(real_data / "epfl_ca1" / "testing_z000-081.tif", voxel_size=(5, 5, 5))
    heart = open_volume(real_data / "tissues" / "cardiac_muscle_tem" / "image.tif", axes="zyx", voxel_size=(50, 8, 8))
    assert suitable.choose_model([epfl]) == "epfl-unet25d"
    cortex = open_volume(real_data / "tissues" / "snemi3d_uniem" / "image.tif", axes="zyx", voxel_size=(30, 6, 6))
    assert suitable.choose_model([heart]) == "generalist-muscle"
    assert suitable.choose_model([cortex]) == "generalist"
