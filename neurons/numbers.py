"""What counts as a number where one is asked for."""

import math
from typing import Any

import numpy as np

__all__ = ["above_zero", "is_number", "is_whole", "whole"]


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, of Python or of NumPy; a bool is none."""
    kinds = (float, int, np.floating, np.integer)
    return isinstance(value, kinds) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether `value` is one of 1, 2, 3, ..."""
    return is_number(value) and isinstance(value, int | np.integer) and int(value) >= 1


def above_zero(name: str, value: Any) -> float:
    """`value` as a float, when it is a finite number above zero.

    Raises:
        ValueError: for anything else, with the name of the argument.
    """
    if not (is_number(value) and math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} must be a finite float above zero, got {value!r}")
    return float(value)


def whole(name: str, value: Any) -> int:
    """`value` as an int, when it is a whole number from 1 on.

    Raises:
        ValueError: for anything else, with the name of the argument.
    """
    if not is_whole(value):
        raise ValueError(f"{name} must be at least 1, got {value!r}: a whole number")
    return int(value)
