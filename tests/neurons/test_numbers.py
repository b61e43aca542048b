"""What is a number, and what is said of what is none."""

import math

import numpy as np
import pytest

from mar_snn.neurons.numbers import above_zero, whole


@pytest.mark.parametrize("two", [2, 2.0, np.float32(2), np.float64(2), np.int64(2)])
def test_every_kind_of_number_becomes_one_of_python(two):
    assert type(above_zero("tau", two)) is float
    assert above_zero("tau", two) == 2.0


@pytest.mark.parametrize("four", [4, np.int32(4), np.uint8(4)])
def test_every_kind_of_whole_number_becomes_one_of_python(four):
    assert type(whole("time_steps", four)) is int
    assert whole("time_steps", four) == 4


@pytest.mark.parametrize(
    "other", [0, -1.0, math.nan, math.inf, True, np.True_, "2", None, 2j, np.ones(1)]
)
def test_what_is_no_number_above_zero_is_refused_by_name(other):
    with pytest.raises(
        ValueError, match=r"^tau must be a finite float above zero, got"
    ):
        above_zero("tau", other)


@pytest.mark.parametrize("other", [0, -3, 2.0, np.float32(2), True, "4", None])
def test_what_is_not_whole_is_refused_by_name(other):
    sentence = r"^time_steps must be at least 1, got .*: a whole number$"
    with pytest.raises(ValueError, match=sentence):
        whole("time_steps", other)
