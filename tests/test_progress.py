"""Where there is no terminal, progress is plain lines; on one it is a bar."""

import io
import logging
import sys
import time

import pytest

from mitoseg import progress as module
from mitoseg.progress import clock, on_terminal, progress, waiting


@pytest.fixture
def quick(monkeypatch, caplog):
    """A line every twenty milliseconds instead of every thirty seconds."""
    monkeypatch.setattr(module, "SECONDS", 0.02)
    caplog.set_level(logging.INFO, logger="mitoseg.progress")
    return caplog


def until_told(caplog, count=1):
    deadline = time.monotonic() + 10
    while len(caplog.messages) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"total": 4e6, "unit": "voxels"}, "at work: 1 tiles, 25 %"),
        ({"total": 4e6, "unit": "bytes"}, "at work: 25 %"),
        ({"unit": "bytes"}, "at work: 1 MB"),
        ({"total": 4e6}, "at work: 25 %"),
    ],
)
def test_a_line_says_how_far_it_is(quick, capsys, options, line):
    with progress("at work", **options) as task:
        task.advance(1e6)
        until_told(quick, 2)
    assert quick.messages[-1].startswith(line)
    assert quick.messages[-1].endswith((" left", " so far"))
    told = len(quick.messages)
    time.sleep(0.06)
    assert len(quick.messages) == told, "it goes on after its end"
    assert "\r" not in "".join(capsys.readouterr())


def test_a_step_without_end_and_without_a_total_is_told_as_well(quick):
    with progress("fitting"):
        until_told(quick)
    assert quick.messages[0] == "fitting: 0:00:00 so far"
    with progress("scoring", 40, unit="blocks", done=12):
        until_told(quick, len(quick.messages) + 1)
    assert quick.messages[-1].startswith("scoring: 12 of 40 blocks, 30 %")
    told = len(quick.messages)
    with progress("at work", 2, show=False) as task:
        task.advance()
        time.sleep(0.05)
    assert len(quick.messages) == told


def test_a_terminal_gets_a_bar(quick, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress("at [work]", 2, unit="blocks") as task:
        task.advance()
    assert "at [work]" in terminal.getvalue()
    assert quick.messages == []
    monkeypatch.setenv("TERM", "dumb")
    assert not on_terminal()


def test_what_takes_long_is_told_soon_and_again(quick, monkeypatch):
    monkeypatch.setattr(module, "SOON", 0.01)
    monkeypatch.setattr(module, "SECONDS", 0.3)
    with waiting("opening"):
        until_told(quick, 2)
    assert quick.messages[0] == "opening ..."
    assert quick.messages[-1].startswith("opening: 0:00:00")
    monkeypatch.setattr(module, "SECONDS", 30.0)
    told = len(quick.messages)
    with progress("at work", 2):
        until_told(quick, told + 1)
    with waiting("nothing"):
        pass
    assert quick.messages[told + 1 :] == []
    assert clock(200.7) == "0:03:20"
