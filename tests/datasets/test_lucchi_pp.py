import io
import zipfile
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest

from mitoseg.datasets import LucchiPP
from mitoseg.errors import UserError

DEPTH = 12  # two-digit numbers: 10.png comes after 9.png
TRUTH = np.random.default_rng(0).random((DEPTH, 16, 24)) < 0.3
IMAGE = np.random.default_rng(1).integers(0, 256, (DEPTH, 16, 24), dtype=np.uint8)


def png(slice_yx, rgba):
    if rgba:
        alpha = np.full_like(slice_yx, 255)
        slice_yx = np.stack([slice_yx, slice_yx, slice_yx, alpha], axis=-1)
    return imageio.imwrite("<bytes>", slice_yx, extension=".png")


def archive(prefix="Lucchi++/"):
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
    server = publish(LucchiPP, {"lucchi_pp.zip": archive(prefix)})
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


def test_a_wrong_sum_leaves_nothing_behind(publish, tmp_path, monkeypatch):
    publish(LucchiPP, {"lucchi_pp.zip": archive()})
    (file,) = LucchiPP.facts.files
    monkeypatch.setattr(LucchiPP, "facts", replace(LucchiPP.facts, files=(replace(file, sha256="0" * 64),)))
    with pytest.raises(UserError, match=r"has sha256 .* instead of 0{12}\.\.\. and was removed"):
        LucchiPP().prepare()
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] in ([], [".download.lock"])
