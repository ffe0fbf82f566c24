import io
import os
import zipfile

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from mitoseg.datasets import Vnc
from mitoseg.datasets.published import Volumes

REAL = os.environ.get("MITOSEG_DATA")
SHAPE = (20, 16, 24)


def archive():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for z in range(SHAPE[0]):
            for stack in ("stack1", "stack2"):
                slice_tif = io.BytesIO()
                tifffile.imwrite(slice_tif, np.full(SHAPE[1:], z + 100 * (stack == "stack2"), np.uint8))
                file.writestr(f"groundtruth-drosophila-vnc-master/{stack}/raw/{z:02d}.tif", slice_tif.getvalue())
            label = imageio.imwrite("<bytes>", np.eye(*SHAPE[1:], dtype=np.uint8) * 255, extension=".png")
            file.writestr(f"groundtruth-drosophila-vnc-master/stack1/mitochondria/{z:02d}.png", label)
            file.writestr(f"groundtruth-drosophila-vnc-master/stack1/synapses/{z:02d}.png", label)
    return data.getvalue()


@pytest.fixture
def published(publish, tmp_path):
    publish(Vnc, {"vnc.zip": archive()}, train=Volumes("stack1/raw", "stack1/mitochondria", SHAPE))
    return tmp_path / "cache" / "mitoseg" / "vnc"


def test_the_first_stack_is_used(published):
    recipe = Vnc(padding="none")
    recipe.prepare()
    splits = recipe.splits()
    (train,), (held,) = splits.train, splits.validation
    assert train.read_image()[:, 0, 0].tolist() == list(range(15))
    assert held.read_image()[:, 0, 0].tolist() == [17, 18, 19]
    assert held.read_label().sum() == 3 * 16
    assert splits.test == ()
    assert splits.voxel_size == (50.0, 4.6, 4.6)
    assert splits.provenance["warnings"] == []
    assert "BY-NC-SA 3.0" in splits.provenance["licence"]


@pytest.mark.parametrize("folder", ["", "vnc", "vnc/groundtruth-drosophila-vnc-master", "vnc/*/stack1"])
def test_a_copy_is_taken_however_deep_it_lies(published, folder):
    Vnc(padding="none").prepare()
    root = next(published.glob(folder)) if folder else published
    assert Vnc(root=str(root), padding="none").splits().train[0].read_image()[3, 0, 0] == 3


@pytest.mark.skipif(not REAL, reason="MITOSEG_DATA names no folder of real data")
def test_real_data_with_other_names():
    train = {"image": "image_z00-14.tif", "label": "mitochondria_z00-14.tif"}
    splits = Vnc(root=os.path.join(REAL, "vnc_sstem"), train=train).splits()
    assert [(r.box.start[0], r.box.stop[0]) for r in (*splits.train, *splits.validation)] == [(0, 11), (13, 15)]
    assert "stands for stack1/raw" in splits.provenance["warnings"][0]
    assert set(np.unique(splits.validation[0].read_label())) == {0, 1}


def test_folds_give_test_slabs(published):
    recipe = Vnc(padding="none", folds=5, fold=2, validation={"gap": 1})
    recipe.prepare()
    splits = recipe.splits()
    assert [r.read_image()[:, 0, 0].tolist() for r in splits.test] == [[8, 9, 10, 11]]
    assert [r.read_image()[:, 0, 0].tolist() for r in splits.validation] == [[13, 14, 15]]
