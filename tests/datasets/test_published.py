import io
import logging
import zipfile

import imageio.v3 as imageio
import numpy as np
import pytest
import tifffile

from mitoseg.datasets import Lucchi, LucchiPP, Vnc
from mitoseg.datasets.published import Volumes
from mitoseg.errors import UserError

SHAPE = (40, 16, 24)
DEPTH = 12  # two-digit numbers: 10.png comes after 9.png
TRUTH = np.random.default_rng(0).random((DEPTH, 16, 24)) < 0.3
IMAGE = np.random.default_rng(1).integers(0, 256, (DEPTH, 16, 24), dtype=np.uint8)
VNC = (20, 16, 24)
NAMES = ("training.tif", "training_groundtruth.tif", "testing.tif", "testing_groundtruth.tif")


def write_set(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        label = np.eye(*SHAPE[1:], dtype=np.uint8)[None].repeat(SHAPE[0], 0) * 255
        tifffile.imwrite(folder / name, label, photometric="minisblack")
    return folder


@pytest.fixture
def small(publish, tmp_path):
    """Lucchi, with small files on the loopback server and a cache of its own."""
    written = write_set(tmp_path / "published")
    volumes = {"train": Volumes(*NAMES[:2], SHAPE), "test": Volumes(*NAMES[2:], SHAPE)}
    return publish(Lucchi, {name: (written / name).read_bytes() for name in NAMES}, **volumes)


def lucchi(**options):
    return Lucchi(**{"validation": {"slabs": [[0, 4], [36, 40]], "gap": 2}, **options})


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("recipe", [Lucchi, LucchiPP])
def test_facts(recipe):
    assert recipe.facts.voxel_size == (5.0, 5.0, 5.0)
    assert recipe.facts.train.shape == recipe.facts.test.shape == (165, 768, 1024)
    assert all(file.sha256 or file.size for file in recipe.facts.files)
    assert recipe().validation.ranges(0, 165) == ([(22, 143)], [(0, 14), (151, 165)])
    assert recipe().folder.name == recipe.name


def test_the_cache_is_filled_once(small, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        recipe = lucchi()
        with pytest.raises(UserError, match=r"folder of lucchi lacks .*data\.download=true"):
            recipe.splits()
        recipe.prepare()
        splits = recipe.splits()
        lucchi().prepare()
    assert [path for path, _ in small.behaviour.requests] == [f"/{name}" for name in NAMES]
    assert caplog.messages == []
    assert [r.box.shape[0] for r in (*splits.train, *splits.validation, *splits.test)] == [28, 4, 4, 40]
    assert splits.voxel_size == (5.0, 5.0, 5.0)
    assert splits.provenance["warnings"] == []
    assert splits.provenance["licence"] == Lucchi.facts.licence
    assert splits.train[0].image.path == str(tmp_path / "cache" / "mitoseg" / "lucchi" / "training.tif")


def test_a_root_that_is_given_is_only_read(small, tmp_path):
    root = write_set(tmp_path / "mine")
    before = snapshot(root)
    recipe = lucchi(root=str(root))
    recipe.prepare()
    assert recipe.splits().provenance["warnings"] == []
    part = lucchi(root=str(root), train={"box": "[0:40,:8,:]"}).splits()  # completed by the official names
    assert {r.box.shape[1] for r in (*part.train, *part.validation)} == {8}
    folds = Lucchi(root=str(root), folds=4, fold=1).splits()  # which leave the test volume alone
    assert [r.box.start[0] for r in folds.validation] == [10]
    assert [r.box.shape[0] for r in folds.test] == [40]
    assert snapshot(root) == before
    assert small.behaviour.requests == []


def test_a_root_that_lacks_files_is_not_filled_unasked(small, tmp_path):
    root = write_set(tmp_path / "mine")
    (root / "testing.tif").unlink()
    recipe = lucchi(root=str(root))
    recipe.prepare()
    with pytest.raises(UserError, match=r"lucchi lacks testing\.tif: '.*mine'; .* others with data\.train\.image="):
        recipe.splits()
    assert small.behaviour.requests == []
    asked = lucchi(root=str(root), download=True)
    asked.prepare()
    assert len(asked.splits().test) == 1
    assert [path for path, _ in small.behaviour.requests] == ["/testing.tif"]


def test_only_what_is_needed_and_wanted_is_downloaded(small, tmp_path):
    root = write_set(tmp_path / "mine")
    test = {"image": str(root / "testing.tif"), "label": str(root / "testing_groundtruth.tif")}
    lucchi(download=False).prepare()
    assert small.behaviour.requests == []
    lucchi(test=test).prepare()
    assert [path for path, _ in small.behaviour.requests] == ["/training.tif", "/training_groundtruth.tif"]


def test_other_files_give_one_warning_that_provenance_keeps(small, tmp_path, caplog):
    root = write_set(tmp_path / "mine")
    for name in ("testing.tif", "testing_groundtruth.tif"):
        half = tifffile.imread(root / name)[:20]
        tifffile.imwrite(root / f"half_{name}", half, compression="zlib", photometric="minisblack")
        (root / name).unlink()
    with caplog.at_level(logging.WARNING, "mitoseg"):
        recipe = lucchi(root=str(root), test={"image": "half_testing.tif", "label": "half_testing_groundtruth.tif"})
        splits = recipe.splits()
        recipe.splits()
    (warning,) = splits.provenance["warnings"]
    assert caplog.messages == [f"lucchi: {warning}"]
    assert "half_testing.tif has" in warning
    assert f"instead of {SHAPE}" in warning
    assert "training" not in warning
    assert [(f["role"], len(f["sha256"])) for f in splits.provenance["files"]][2] == ("test.image", 64)
    assert splits.test[0].box.shape == (20, 16, 24)


def test_real_hippocampus_with_other_names(real_data, caplog):
    root = real_data / "epfl_ca1"
    test = {"image": "testing_z000-081.tif", "label": "testing_z000-081_groundtruth.tif"}
    before = snapshot(root)
    with caplog.at_level(logging.WARNING, "mitoseg"):
        recipe = Lucchi(root=str(root), test=test)
        recipe.prepare()
        splits = recipe.splits()
    assert len(caplog.messages) == 1
    slices = [(r.box.start[0], r.box.stop[0]) for r in (*splits.train, *splits.validation)]
    assert slices == [(22, 143), (0, 14), (151, 165)]
    assert splits.test[0].box.shape == (82, 768, 1024)
    assert 0.08 < (splits.validation[0].read_label() == 1).mean() < 0.082
    assert snapshot(root) == before
    with pytest.raises(UserError, match=r"lucchi lacks testing\.tif, testing_groundtruth\.tif"):
        Lucchi(root=str(root)).splits()


def png(slice_yx, rgba):
    if rgba:
        alpha = np.full_like(slice_yx, 255)
        slice_yx = np.stack([slice_yx, slice_yx, slice_yx, alpha], axis=-1)
    return imageio.imwrite("<bytes>", slice_yx, extension=".png")


def lucchi_pp(prefix="Lucchi++/"):
    """A zip like the published one: images mask%04i.png, labels %i.png, some of them RGBA, and macOS clutter."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for part in ("Train", "Test"):
            for z in range(DEPTH):
                file.writestr(f"{prefix}{part}_In/mask{z:04d}.png", png(IMAGE[z], rgba=False))
                label_yx = TRUTH[z].astype(np.uint8) * 255
                file.writestr(f"{prefix}{part}_Out/{z}.png", png(label_yx, rgba=part == "Train" or z % 2 == 0))
        file.writestr(f"__MACOSX/{prefix}Train_In/._mask0000.png", b"clutter")
        file.writestr(f"{prefix}.DS_Store", b"clutter")
    return data.getvalue()


@pytest.mark.parametrize("prefix", ["Lucchi++/", "", "lucchi_pp/Lucchi++/"])
def test_slices_of_the_archive_become_volumes(publish, prefix):
    server = publish(LucchiPP, {"lucchi_pp.zip": lucchi_pp(prefix)})
    recipe = LucchiPP(validation={"share": 0.2, "gap": 1})
    recipe.prepare()
    LucchiPP().prepare()
    splits = recipe.splits()
    assert len(server.behaviour.requests) == 1
    (train,), (test,) = splits.train, splits.test
    np.testing.assert_array_equal(train.read_image(), IMAGE[: train.box.stop[0]])
    np.testing.assert_array_equal(train.read_label(), TRUTH[: train.box.stop[0]])
    np.testing.assert_array_equal(test.read_label(), TRUTH)
    assert "12, 16, 24" in splits.provenance["warnings"][0]  # the shape alone differs
    assert "stands for" not in splits.provenance["warnings"][0]


def test_an_archive_laid_out_otherwise_is_told(publish):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("else/a.png", png(IMAGE[0], rgba=False))
    publish(LucchiPP, {"lucchi_pp.zip": data.getvalue()})
    recipe = LucchiPP()
    recipe.prepare()
    with pytest.raises(UserError, match="Train_In, Train_Out, Test_In, Test_Out"):
        recipe.splits()


def vnc():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for z in range(VNC[0]):
            for stack in ("stack1", "stack2"):
                slice_tif = io.BytesIO()
                tifffile.imwrite(slice_tif, np.full(VNC[1:], z + 100 * (stack == "stack2"), np.uint8))
                file.writestr(f"groundtruth-drosophila-vnc-master/{stack}/raw/{z:02d}.tif", slice_tif.getvalue())
            label = png(np.eye(*VNC[1:], dtype=np.uint8) * 255, rgba=False)
            for kind in ("mitochondria", "synapses"):
                file.writestr(f"groundtruth-drosophila-vnc-master/stack1/{kind}/{z:02d}.png", label)
    return data.getvalue()


@pytest.fixture
def nerve_cord(publish, tmp_path):
    publish(Vnc, {"vnc.zip": vnc()}, train=Volumes("stack1/raw", "stack1/mitochondria", VNC))
    return tmp_path / "cache" / "mitoseg" / "vnc"


def test_the_first_stack_is_used(nerve_cord):
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
    cut = Vnc(padding="none", folds=5, fold=2, validation={"gap": 1}).splits()
    assert [r.read_image()[:, 0, 0].tolist() for r in cut.test] == [[8, 9, 10, 11]]
    assert [r.read_image()[:, 0, 0].tolist() for r in cut.validation] == [[13, 14, 15]]


@pytest.mark.parametrize("folder", ["", "vnc", "vnc/groundtruth-drosophila-vnc-master", "vnc/*/stack1"])
def test_a_copy_is_taken_however_deep_it_lies(nerve_cord, folder):
    Vnc(padding="none").prepare()
    root = next(nerve_cord.glob(folder)) if folder else nerve_cord
    assert Vnc(root=str(root), padding="none").splits().train[0].read_image()[3, 0, 0] == 3


def test_real_nerve_cord_with_other_names(real_data):
    train = {"image": "image_z00-14.tif", "label": "mitochondria_z00-14.tif"}
    splits = Vnc(root=str(real_data / "vnc_sstem"), train=train).splits()
    assert [(r.box.start[0], r.box.stop[0]) for r in (*splits.train, *splits.validation)] == [(0, 11), (13, 15)]
    assert "stands for stack1/raw" in splits.provenance["warnings"][0]
    assert set(np.unique(splits.validation[0].read_label())) == {0, 1}
