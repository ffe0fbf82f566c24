"""What is asked of workers before the work: what they are, and whether they see what we see."""

from dataclasses import replace
from pathlib import Path

import pytest

from mitoseg.errors import UserError
from mitoseg.workflows.session import check_shared_storage, compare_workers, find_files, worker_info


class Elsewhere:
    """An engine whose worker sees other files: something is changed while it looks, and changed back."""

    def __init__(self, change=lambda: None, undo=lambda: None):
        self.change, self.undo = change, undo

    def ask(self, function):
        self.change()
        try:
            return [function(), function()]
        finally:
            self.undo()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "stage").mkdir()
    (tmp_path / "in.tif").write_bytes(b"image")
    return tmp_path


def check(place, engine, patience=0.05):
    check_shared_storage(engine, {"input": place / "in.tif"}, place / "stage", patience)


def test_all_is_seen_and_nothing_is_left(place):
    check(place, Elsewhere())
    assert list((place / "stage").iterdir()) == []


def test_a_worker_does_not_see_the_input_or_another_one(place):
    image = place / "in.tif"
    engine = Elsewhere(lambda: image.rename(place / "x"), lambda: (place / "x").rename(image))
    with pytest.raises(UserError, match=r"a worker on .* does not see the input: .*in\.tif'; put it on storage"):
        check(place, engine)
    engine = Elsewhere(lambda: image.write_bytes(b"another"), lambda: image.write_bytes(b"image"))
    with pytest.raises(UserError, match="sees a different input"):
        check(place, engine)


def moved(place):
    stage = place / "stage"

    def away():
        stage.rename(place / "ours")
        stage.mkdir()

    def back():
        stage.rename(place / "theirs")
        (place / "ours").rename(stage)

    return away, back


def test_a_worker_does_not_see_the_stage(place, monkeypatch):
    monkeypatch.setattr("mitoseg.workflows.session.wait_for", lambda file, patience: None)
    with pytest.raises(UserError, match=r"does not see the output folder: .*stage'; put it on storage"):
        check(place, Elsewhere(*moved(place)))
    assert list((place / "stage").iterdir()) == []


def test_what_a_worker_writes_is_not_seen_here(place):
    stage = place / "stage"

    def take_away():
        for path in stage.glob("token.*.*"):
            path.unlink()

    what = r"a worker on .* writes beside the output do not appear here: .*stage"
    with pytest.raises(UserError, match=what):
        check(place, Elsewhere(undo=take_away))


def test_a_worker_may_not_write(place, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    text = "abc"
    (place / "stage" / "token").write_text(text)
    monkeypatch.setattr(Path, "write_text", refuse)
    _, answer = find_files({}, place / "stage" / "token", text)
    assert "cannot write (Permission denied)" in str(answer)


FACTS = replace(worker_info(), machine="a", cores=8, devices=("cpu", "cuda"), bf16=("cuda",))


@pytest.mark.parametrize(
    ("workers", "accelerator", "team"),
    [
        ([FACTS], "auto", ("cuda", True, 8, 1)),
        ([FACTS], "gpu", ("cuda", True, 8, 1)),
        ([FACTS, FACTS], "cpu", ("cpu", False, 4, 2)),
        ([FACTS, replace(FACTS, machine="b", devices=("cpu",), bf16=())], "auto", ("cpu", False, 8, 1)),
        ([FACTS, FACTS, replace(FACTS, machine="b", cores=3)], "auto", ("cuda", True, 3, 2)),
        ([FACTS, replace(FACTS, machine="b", bf16=())], "auto", ("cuda", False, 8, 1)),
        ([replace(FACTS, cores=1)] * 3, "auto", ("cuda", True, 1, 3)),
    ],
)
def test_what_all_have_in_common(workers, accelerator, team):
    found = compare_workers(workers, accelerator)
    assert (found.device, found.bf16, found.threads, found.neighbours) == team


def test_workers_that_do_not_fit():
    with pytest.raises(UserError, match=r"a worker on b has other versions .*'0\.0'.*install the same everywhere"):
        compare_workers([FACTS, replace(FACTS, machine="b", versions=("0.0", "1.0"))], "auto")
    lacks = "1 of 2 workers lack the accelerator cuda, among them one on: 'b'; use accelerator=auto"
    with pytest.raises(UserError, match=lacks):
        compare_workers([FACTS, replace(FACTS, machine="b", devices=("cpu",))], "cuda")
    with pytest.raises(UserError, match="no such accelerator here: 'tpu'"):
        compare_workers([FACTS], "tpu")
