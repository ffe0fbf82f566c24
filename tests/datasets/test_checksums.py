import hashlib
from dataclasses import asdict

from mitoseg.datasets import download as download_module
from mitoseg.datasets.download import Fingerprint, changed_files, fingerprint


def test_a_file_and_a_dataset_in_it(tmp_path):
    path = tmp_path / "a.h5"
    path.write_bytes(b"abc")
    for text in (str(path), f"{path}:/raw/x"):
        assert fingerprint(text) == Fingerprint(text, 3, hashlib.sha256(b"abc").hexdigest())


def test_a_folder_by_names_and_contents(tmp_path):
    folder = tmp_path / "slices"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.png").write_bytes(b"b")
    (folder / "deep" / "a.png").write_bytes(b"aa")
    lines = f"b.png {hashlib.sha256(b'b').hexdigest()}\ndeep/a.png {hashlib.sha256(b'aa').hexdigest()}\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert fingerprint(str(folder)) == Fingerprint(str(folder), 3, expected)
    (folder / "b.png").rename(folder / "c.png")
    assert fingerprint(str(folder)).sha256 != expected


def test_huge_volumes_are_not_hashed(tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "HASH_LIMIT_BYTES", 2)
    (tmp_path / "a.tif").write_bytes(b"abc")
    assert fingerprint(str(tmp_path / "a.tif")).sha256 is None


def test_what_a_run_has_learnt_from_is_compared(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.tif", "b.tif", "c.tif")]
    for path in paths:
        path.write_bytes(b"abc")
    roles = ["train.image", "train.image", "test.image"]
    about = {"files": [{"role": r, **asdict(fingerprint(str(p)))} for r, p in zip(roles, paths, strict=True)]}
    known = hashlib.sha256(b"abc").hexdigest()
    assert download_module.checksums(about) == {f"{role} {i}": known for i, role in enumerate(roles, 1)}
    assert download_module.checksums(about, "train") == {"train.image 1": known, "train.image 2": known}
    assert changed_files(about) == changed_files({}) == []
    paths[1].write_bytes(b"abd")
    paths[2].unlink()
    assert changed_files(about) == [str(paths[1])]
    unknown = {"files": [{**file, "sha256": None} for file in about["files"][:1]]}
    before = download_module.checksums(unknown)
    paths[0].write_bytes(b"abcd")
    assert before != download_module.checksums(unknown)
