"""What stored values mean, and where the threshold comes from."""

import logging

import numpy as np
import pytest

from mitoseg.errors import UserError
from mitoseg.evaluation import decide
from mitoseg.volumes.base import ArrayVolume


def volume(values, dtype, **metadata):
    return ArrayVolume(np.array(values, dtype).reshape(1, 1, -1), metadata=metadata)


def foreground(v, **options):
    return decide(v, **options).foreground(v.read()).ravel().tolist()


def test_the_threshold_is_given_or_that_of_the_metadata_or_a_half_and_inclusive():
    v = volume([0.2, 0.4, 0.6], np.float32, kind="probability", threshold=0.3)
    assert foreground(v) == [False, True, True]
    assert decide(v).source == "the prediction's metadata"
    assert foreground(v, threshold=0.5) == [False, False, True]
    assert decide(v, threshold=0.5).source == "given"
    assert foreground(v, threshold=0.0) == [True, True, True]
    v = volume([0.49, 0.5, 1.0], np.float32)
    assert foreground(v) == [False, True, True]
    assert (decide(v).threshold, decide(v).source) == (0.5, "default")


def test_bytes_have_a_scale():
    v = volume([0, 76, 77, 255], np.uint8, kind="probability", threshold=0.3, scale=255)
    assert foreground(v) == [False, False, True, True]
    del v.info.metadata["scale"]
    assert foreground(v) == [False, False, True, True]
    wide = volume([0, 19660, 19661, 65535], np.uint16, kind="probability", threshold=0.3)
    assert foreground(wide) == [False, False, True, True]


@pytest.mark.parametrize("values", [[0, 1, 1], [0, 255, 255], [0, 7, 7]])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.9}])
def test_bytes_of_two_values_are_a_mask(values, options):
    v = volume(values, np.uint8)
    assert decide(v, **options).kind == "mask"
    assert foreground(v, **options) == [False, True, True]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, bool])
def test_wide_integers_are_instances_and_bool_a_mask(dtype):
    v = volume([0, 3, 300], dtype)
    assert decide(v).kind == ("mask" if dtype is bool else "instances")
    assert foreground(v) == [False, True, True]


def test_a_mask_needs_no_threshold_and_says_so(caplog):
    v = volume([0, 1], np.uint8, kind="mask", threshold=0.4)
    assert "not used" in decide(v).source
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert foreground(v, threshold=0.9) == [False, True]
    assert "not used" in caplog.text


def test_other_bytes_are_a_question_and_bad_options_one_line():
    v = volume([0, 100, 200], np.uint8)
    assert foreground(v, threshold=0.5) == [False, False, True]
    assert foreground(v, kind="instances") == [False, True, True]
    probable = volume([0.5], np.float32)
    for given, options, match in (
        (v, {}, "kind=probability"),
        (probable, {"threshold": 1.5}, "not a probability"),
        (probable, {"kind": "masks"}, "choose one of"),
    ):
        with pytest.raises(UserError, match=match):
            decide(given, **options)
    for values in ([0.5, 1.5], [-0.1, 0.5], [np.nan, 0.5], [0.5, np.inf]):
        with pytest.raises(UserError, match="no probabilities"):
            foreground(volume(values, np.float32))
