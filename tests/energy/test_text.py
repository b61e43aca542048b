"""Numbers and units as they are printed."""

import math

import pytest

from mar_snn.energy.reporting.text import (
    data_size,
    interval,
    joules,
    number,
    percent,
    plain,
    signed,
    times,
)

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.25, "0.25"),
        (999.0, "999"),
        (999.9, "1k"),
        (1000.0, "1k"),
        (16_777_216.0, "16.8M"),
        (2.5e9, "2.5G"),
        (3e12, "3T"),
    ],
)
def test_counts_have_three_digits_and_a_suffix(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("energy_pj", "text"),
    [
        (0.0, "0 pJ"),
        (4.6, "4.6 pJ"),
        (1_000.0, "1 nJ"),
        (999_800.0, "1 µJ"),
        (2.346e6, "2.35 µJ"),
        (-2.346e6, "-2.35 µJ"),
        (6.48e9, "6.48 mJ"),
        (1.5e12, "1.5 J"),
        (math.nan, "-"),
    ],
)
def test_energies_have_three_digits_and_a_unit(energy_pj, text):
    assert joules(energy_pj) == text


def test_sizes_count_by_thousands():
    assert data_size(12.0) == "12 B"
    assert data_size(2_048.0) == "2.05 kB"
    assert data_size(2.5e9) == "2.5 GB"


def test_what_is_no_number_is_a_dash():
    assert (signed(0.5), signed(-0.25), signed(math.nan)) == ("+0.50", "-0.25", "-")
    assert (percent(0.125), percent(math.nan)) == ("12.5 %", "-")
    assert (times(2.5), times(math.inf), times(0.0)) == ("2.50x", "-", "-")
    assert (plain(5.11111), plain(math.nan)) == ("5.111", "-")


def test_an_interval_names_its_unit_once_and_is_a_number_where_it_has_no_width():
    assert interval("1.6 mJ", "1.8 mJ") == f"1.6{DASH}1.8 mJ"
    assert interval("900 nJ", "1.8 mJ") == f"900 nJ{DASH}1.8 mJ"
    assert interval("1.20x", "2.30x") == f"1.20{DASH}2.30x"
    assert interval("2", "3") == f"2{DASH}3"
    assert interval("5 pJ", "5 pJ") == "5 pJ"
