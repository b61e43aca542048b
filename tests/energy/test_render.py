"""Numbers and units as they are printed."""

import math

import pytest

from mar_snn.energy.render import _bullets, _joules, _number, _signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.25, "0.25"),
        (999.0, "999"),
        (1000.0, "1k"),
        (16_777_216.0, "16.8M"),
        (2.5e9, "2.5G"),
        (3e12, "3T"),
    ],
)
def test_counts_have_three_digits_and_a_suffix(value, text):
    assert _number(value) == text


@pytest.mark.parametrize(
    ("energy_pj", "text"),
    [
        (0.0, "0 pJ"),
        (4.6, "4.6 pJ"),
        (1_000.0, "1 nJ"),
        (2.346e6, "2.35 µJ"),
        (6.48e9, "6.48 mJ"),
        (1.5e12, "1.5 J"),
    ],
)
def test_energies_have_three_digits_and_a_unit(energy_pj, text):
    assert _joules(energy_pj) == text


def test_a_balance_has_a_sign_or_is_missing():
    assert (_signed(0.5), _signed(-0.25), _signed(math.nan)) == ("+0.50", "-0.25", "-")


def test_nested_blocks_become_nested_lists():
    block = {"a": 1, "b": {"c": "x"}, "d": ["one", {"T": 4, "tau": None}], "e": []}
    assert _bullets(block) == [
        "- a: 1", "- b:", "  - c: x", "- d:", "  - one", "  - T 4", "- e: none",
    ]  # fmt: skip
