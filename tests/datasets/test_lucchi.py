import inspect
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile

from mitoseg.datasets import Lucchi, LucchiPP
from mitoseg.datasets.published import Published, Volumes
from mitoseg.errors import UserError

REAL = os.environ.get("MITOSEG_DATA")
SHAPE = (40, 16, 24)
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
    facts = recipe.facts
    assert facts.voxel_size == (5.0, 5.0, 5.0)
    assert facts.train.shape == facts.test.shape == (165, 768, 1024)
    assert all(file.sha256 or file.size for file in facts.files)
    assert recipe().validation.ranges(0, 165) == ([(22, 143)], [(0, 14), (151, 165)])
    assert recipe().folder.name == recipe.name
    assert inspect.getdoc(recipe)


def test_the_cache_is_filled_once(small, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        recipe = lucchi()
        with pytest.raises(UserError, match=r"lucchi is not downloaded.*data\.download=true"):
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
    assert Path(splits.train[0].image.path).parent == tmp_path / "cache" / "mitoseg" / "lucchi"


def test_a_root_that_is_given_is_only_read(small, tmp_path):
    root = write_set(tmp_path / "mine")
    before = snapshot(root)
    recipe = lucchi(root=str(root))
    recipe.prepare()
    assert recipe.splits().provenance["warnings"] == []
    assert snapshot(root) == before
    assert small.behaviour.requests == []


def test_a_root_that_lacks_files_is_not_filled_unasked(small, tmp_path):
    root = write_set(tmp_path / "mine")
    (root / "testing.tif").unlink()
    recipe = lucchi(root=str(root))
    recipe.prepare()
    with pytest.raises(
        UserError, match=r"lacks testing\.tif of lucchi: '.*mine'; name others with data\.train\.image="
    ):
        recipe.splits()
    assert small.behaviour.requests == []
    asked = lucchi(root=str(root), download=True)
    asked.prepare()
    assert len(asked.splits().test) == 1
    assert [path for path, _ in small.behaviour.requests] == ["/testing.tif"]


def test_nothing_is_downloaded_when_that_is_refused(small):
    recipe = lucchi(download=False)
    recipe.prepare()
    assert small.behaviour.requests == []


def test_only_what_is_needed_is_downloaded(small, tmp_path):
    root = write_set(tmp_path / "mine")
    test = {"image": str(root / "testing.tif"), "label": str(root / "testing_groundtruth.tif")}
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


def test_a_published_recipe_completes_what_is_named(small, tmp_path):
    root = write_set(tmp_path / "mine")
    named = lucchi(root=str(root), train={"box": "[0:40,:8,:]"}).splits()
    assert isinstance(lucchi(), Published)
    assert {r.box.shape[1] for r in (*named.train, *named.validation)} == {8}


@pytest.mark.skipif(not REAL, reason="MITOSEG_DATA names no folder of real data")
def test_real_data_with_other_names(caplog):
    root = Path(REAL) / "epfl_ca1"
    test = {"image": "testing_z000-081.tif", "label": "testing_z000-081_groundtruth.tif"}
    before = snapshot(root)
    with caplog.at_level(logging.WARNING, "mitoseg"):
        recipe = Lucchi(root=str(root), test=test)
        recipe.prepare()
        splits = recipe.splits()
    assert len(caplog.messages) == 1
    assert [(r.box.start[0], r.box.stop[0]) for r in (*splits.train, *splits.validation)] == [
        (22, 143),
        (0, 14),
        (151, 165),
    ]
    assert splits.test[0].box.shape == (82, 768, 1024)
    assert 0.08 < (splits.validation[0].read_label() == 1).mean() < 0.082
    assert snapshot(root) == before
    with pytest.raises(UserError, match=r"data\.root lacks testing\.tif, testing_groundtruth\.tif of lucchi"):
        Lucchi(root=str(root)).splits()


def test_official_addresses():
    base = "https://documents.epfl.ch/groups/c/cv/cvlab-unit/www/data/%20ElectronMicroscopy_Hippocampus/"
    assert [(f.url, f.size) for f in Lucchi.facts.files] == [(base + name, 129_919_357) for name in NAMES]


def test_folds_leave_the_test_volume_alone(small, tmp_path):
    splits = Lucchi(root=str(write_set(tmp_path / "mine")), folds=4, fold=1).splits()
    assert [r.box.start[0] for r in splits.validation] == [10]
    assert [r.box.shape[0] for r in splits.test] == [40]
