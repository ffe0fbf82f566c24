import pytest

from mitoseg.datasets.files import Named, find, resolve
from mitoseg.errors import UserError


@pytest.mark.parametrize(
    ("box", "boxes"),
    [
        (None, (None, None)),
        (["[0:20,:,:]", None], ("[0:20,:,:]", None)),
        ([["0:20", ":", ":"], "[0:3,:,:]"], (["0:20", ":", ":"], "[0:3,:,:]")),
    ],
)
def test_a_box_for_each_volume(box, boxes):
    named = Named.of({"image": ["a", "b"], "label": ["c", "d"], "box": box}, "train")
    assert (named.image, named.label, named.boxes("train")) == (("a", "b"), ("c", "d"), boxes)


@pytest.mark.parametrize("box", ["[0:20,:,:]", ["0:20", ":", ":"], ["[0:20,:,:]"], [["0:20", ":", ":"]]])
def test_one_box_in_any_writing(box):
    (only,) = Named.of({"image": "a", "label": "b", "box": box}, "train").boxes("train")
    assert only in ("[0:20,:,:]", ("0:20", ":", ":"), ["0:20", ":", ":"])


@pytest.mark.parametrize(
    ("label", "given", "entries"),
    [
        ("b", None, (None,)),
        ("b", 2, (2,)),
        ("b", [3, 4], ([3, 4],)),
        ("b", [[3, 4]], ([3, 4],)),
        (["b", "c"], "#ff0000", ("#ff0000", "#ff0000")),
        (["b", "c"], [[3, 4], None], ([3, 4], None)),
        (["b", "c"], [3, 4], (3, 4)),
    ],
)
def test_the_values_of_mitochondria_for_each_volume(label, given, entries):
    image = "a" if isinstance(label, str) else ["a"] * len(label)
    named = Named.of({"image": image, "label": label, "foreground": given}, "train")
    assert named.foreground_labels("train") == entries


def test_values_for_another_number_of_volumes():
    named = Named.of({"image": ["a", "b"], "label": ["c", "d"], "foreground": [1, 2, 3]}, "train")
    with pytest.raises(UserError, match=r"3 entries of foreground.*data\.train\.foreground="):
        named.foreground_labels("train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": ["a", "b"], "label": "c"}, "2 images but 1 labels"),
        ({"images": "a"}, r"unknown keys in data\.train: \['images'\]"),
        ({"image": "a", "label": "b", "box": ["[0:1,:,:]"] * 2}, "2 boxes for 1 volumes"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        Named.of(options, "train").boxes("train")


def test_named_volumes_lie_in_root_or_here(tmp_path, monkeypatch):
    root, here = tmp_path / "root", tmp_path / "here"
    for folder in (root, here):
        folder.mkdir()
        (folder / "both.h5").touch()
    (here / "here.tif").touch()
    monkeypatch.chdir(here)
    assert resolve("both.h5:/raw", root) == str(root / "both.h5:/raw")
    assert resolve("here.tif", root) == "here.tif"
    assert resolve(str(here / "here.tif"), root) == str(here / "here.tif")
    assert resolve("both.h5", None) == "both.h5"
    for where in (root, None):
        with pytest.raises(UserError, match=r"no such volume: 'none\.tif'"):
            resolve("none.tif", where)


def test_official_names_are_found_where_archives_leave_them(tmp_path):
    for name in ("set/Set-Master/Stack1/Raw", "set/Set-Master/stack2/raw", "set/.hidden/stack3/raw"):
        (tmp_path / name).mkdir(parents=True)
    assert find(tmp_path, "stack1/raw", deep=True) == str(tmp_path / "set/Set-Master/Stack1/Raw")
    assert find(tmp_path, "stack1/raw", deep=False) is None
    assert find(tmp_path, "stack3/raw", deep=True) is None
    assert find(tmp_path / "set/Set-Master/stack2", "stack1/raw", deep=False) is not None  # right in root
    assert find(tmp_path / "none", "a.tif", deep=True) is None
