"""Means and their intervals, against values of printed tables and by hand."""

import math
from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport, OpCounts
from mar_snn.energy.reporting.statistics import (
    batch_statistics,
    student_t,
    summarise,
    units_of_batches,
)
from tests.energy.energy_runs import FIRST, RUN


def report(run=RUN, **options):
    return EnergyReport.of(run, "horowitz-45nm-fp32", **options)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [
        # the 97.5 % column of any table of Student's t
        (1, 12.7062),
        (2, 4.30265),
        (3, 3.18245),
        (4, 2.77645),
        (7, 2.36462),
        (10, 2.22814),
        (30, 2.04227),
        (100, 1.98397),
        (1000, 1.96234),
    ],
)
def test_the_quantiles_are_those_of_the_tables(degrees, quantile):
    assert student_t(degrees) == pytest.approx(quantile, abs=5e-6 * quantile)


def test_no_degrees_of_freedom_have_no_quantile():
    with pytest.raises(ValueError, match="degrees must be at least 1, got 0"):
        student_t(0)


def test_three_values_have_a_mean_a_deviation_and_an_interval():
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, std √7
    found = summarise([1.0, 2.0, 6.0])
    half = 4.302653 * math.sqrt(7) / math.sqrt(3)
    assert (found.mean, found.std, found.n) == (3.0, pytest.approx(math.sqrt(7)), 3)
    assert found.ci95 == pytest.approx((3 - half, 3 + half), rel=1e-6)


def test_one_value_has_no_spread_and_none_no_mean():
    found = summarise([5.0])
    assert (found.mean, found.n) == (5.0, 1)
    assert all(map(math.isnan, (found.std, *found.ci95)))
    with pytest.raises(ValueError, match="a mean needs at least one value, got none"):
        summarise([])


def test_batches_are_priced_per_unit_of_their_own():
    # 268.9 and 261.4 pJ a token: mean 265.15, std 7.5 / √2, interval ± 12.7062 · 3.75
    found = batch_statistics(report())
    energy, ratio = found["energy_pj"], found["ratio"]
    assert energy.mean == pytest.approx(265.15)
    assert energy.std == pytest.approx(7.5 / math.sqrt(2))
    half = 12.706205 * 3.75
    assert energy.ci95 == pytest.approx((265.15 - half, 265.15 + half))
    assert found["baseline_pj"].mean == pytest.approx(690)
    assert found["baseline_pj"].std == pytest.approx(0, abs=1e-9)
    # the ratio of each batch, not the ratio of the means
    assert ratio.mean == pytest.approx((690 / 268.9 + 690 / 261.4) / 2)


def test_a_sample_is_an_equal_part_of_the_run():
    # 8 samples in 2 batches: 4 each, 1075.6 / 4 and 1568.4 / 4
    of_samples = report(per="sample", units=8)
    assert of_samples.batch_units == (4.0, 4.0)
    mean = batch_statistics(of_samples)["energy_pj"].mean
    assert mean == pytest.approx((268.9 + 392.1) / 2)
    assert mean == pytest.approx(of_samples.energy_pj)


def test_tokens_of_batches_are_used_only_where_they_are_those_of_the_run():
    assert units_of_batches(RUN, "token", 10) == (4.0, 6.0)
    assert units_of_batches(RUN, "token", 20) == (10.0, 10.0)
    assert units_of_batches(RUN, "run", 1) == (0.5, 0.5)
    assert units_of_batches(replace(RUN, batches=()), "run", 1) == ()


def test_without_batches_there_are_no_statistics():
    assert batch_statistics(report(replace(RUN, batches=()), units=10)) == {}


def test_a_baseline_of_other_batches_gives_no_spread_of_the_ratio():
    other = report(replace(RUN, batches=(FIRST,)), units=10)
    assert set(batch_statistics(report(baseline=other))) == {"energy_pj"}
    same = batch_statistics(report(baseline=report()))
    assert same["ratio"].mean == pytest.approx(1.0)


def test_a_batch_without_energy_has_no_ratio_to_average():
    silent = replace(FIRST, ops=OpCounts())
    found = batch_statistics(report(replace(RUN, batches=(silent, FIRST)), units=8))
    assert set(found) == {"energy_pj", "baseline_pj"}
