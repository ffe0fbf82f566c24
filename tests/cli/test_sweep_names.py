"""Folder names of sweeps and jobs: safe on every file system, the same for the same words, different for others."""

import re

from hypothesis import given
from hypothesis import strategies as st

from mitoseg.cli.sweeps.plan import LONGEST_JOB, LONGEST_SWEEP, job_name, safe_name, sweep_name

VALUES = st.text(min_size=1, max_size=140).filter(lambda text: "\n" not in text)
WORDS = st.dictionaries(st.sampled_from(["seed", "data.root", "optimizer.lr", "network"]), VALUES, min_size=1)
SAFE = re.compile(r"[a-z0-9._+=,-]+")


def words_of(values):
    return [f"{key}={value}" for key, value in values.items()]


@given(WORDS, WORDS)
def test_job_names(one, other):
    first, second = job_name(words_of(one)), job_name(words_of(other))
    assert SAFE.fullmatch(first)
    assert len(first) <= LONGEST_JOB
    assert first[-1] != "."
    assert first == job_name(words_of(one)[::-1])
    if one != other and {k: v.strip("\"'") for k, v in one.items()} != {k: v.strip("\"'") for k, v in other.items()}:
        assert first.lower() != second.lower()


@given(WORDS)
def test_sweep_names(values):
    words = words_of(values)
    name = sweep_name(words, words)
    assert SAFE.fullmatch(name)
    assert len(name) <= LONGEST_SWEEP
    assert "," not in name
    assert name == sweep_name(words[::-1], words)


def test_names_to_read():
    assert job_name(["network=patch_cnn", "seed=1"]) == "network=patch_cnn,seed=1"
    assert sweep_name(["seed=1,2", "name=mine"], ["seed=1,2"]) == "mine"
    assert sweep_name(["experiment=paper", "seed=1,2"], ["seed=1,2"]).startswith("paper_seed=1+2_")
    assert safe_name("con", "con", 60) != "con"
    assert job_name(["a=X"]) != job_name(["a=x"])
