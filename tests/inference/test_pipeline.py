"""Stages overlap, keep their order, and pass errors on."""

import threading
import time

import pytest

from mitoseg.inference.predictor import run_overlapped


def test_items_go_through_in_order():
    seen = []
    run_overlapped(range(7), lambda i: i * 10, lambda i, s: s + i, lambda i, r: seen.append((i, r)))
    run_overlapped([], lambda i: i, lambda i, s: s, lambda i, r: None)
    assert seen == [(i, 11 * i) for i in range(7)]


def test_the_stages_work_at_the_same_time():
    """Each stage waits until the other two are at work too: one after the other they would never meet."""
    meeting = threading.Barrier(3, timeout=10)

    def stage(item, met):
        if item == met:
            meeting.wait()
        return item

    run_overlapped(range(5), lambda i: stage(i, 3), lambda i, s: stage(i, 2), lambda i, r: stage(i, 1) and None)


def test_few_items_are_in_memory():
    now, most, lock = [0], [0], threading.Lock()

    def read(item):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        return item

    def write(item, result):
        time.sleep(0.005)
        with lock:
            now[0] -= 1

    run_overlapped(range(40), read, lambda i, s: s, write)
    assert most[0] <= 4


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_an_error_ends_the_run(stage):
    written = []

    def failing(name):
        def work(item, *_):
            if name == stage and item == 3:
                raise ValueError(f"{name} failed")
            if name == "write":
                written.append(item)
            return item

        return work

    with pytest.raises(ValueError, match=f"{stage} failed"):
        run_overlapped(range(9), failing("read"), failing("compute"), failing("write"))
    assert written == [0, 1, 2]
