"""Energy with traffic, worked out by hand at 45 nm.

A byte costs 1.25 to 12.5 pJ in SRAM and 162.5 to 325 pJ in DRAM; the arithmetic costs
264.4 pJ a token, that of the dense model 690.
"""

from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.counts import ByteCounts
from mar_snn.energy.reporting.memory import ASSUMPTIONS, traffic
from tests.energy.energy_runs import RUN
from tests.energy.test_profiles import own_profile


@pytest.fixture
def lines():
    report = EnergyReport.of(RUN, "horowitz-45nm-fp32")
    return {(line.assumption, line.memory): line for line in traffic(report)}


def test_every_assumption_meets_every_memory(lines):
    assert list(lines) == [(a, m) for a in ASSUMPTIONS for m in ("sram", "dram")]


def test_weights_once_a_call_cost_both_sides_the_same(lines):
    line = lines["weights once a call", "sram"]
    # 1200 bytes, 10 tokens: 120 · 1.25 = 150, 120 · 12.5 = 1500
    assert (line.moved_bytes, line.baseline_bytes) == (120, 120)
    assert line.energy_pj == pytest.approx((414.4, 1764.4))
    assert line.baseline_pj == pytest.approx((840, 2190))
    # the dearer the memory, the nearer to 1
    assert line.ratio == pytest.approx((2190 / 1764.4, 840 / 414.4))


def test_dram_leaves_little_of_the_ratio(lines):
    line = lines["weights once a call", "dram"]
    # 120 · 162.5 = 19500, 120 · 325 = 39000
    assert line.energy_pj == pytest.approx((19764.4, 39264.4))
    assert line.ratio == pytest.approx((39690 / 39264.4, 20190 / 19764.4))


def test_touched_weights_are_fewer_than_the_dense_model_reads(lines):
    line = lines["touched weights", "sram"]
    # (600 + 400) / 10 against (800 + 400) / 10; 100 · 1.25 = 125
    assert (line.moved_bytes, line.baseline_bytes) == (100, 120)
    assert line.energy_pj[0] == pytest.approx(389.4)
    assert line.ratio == pytest.approx((2190 / 1514.4, 840 / 389.4))


def test_all_traffic_has_activations_and_spikes_too(lines):
    line = lines["all traffic", "dram"]
    # 600 + 400 + 100 + 40 against 800 + 400 + 160 + 100
    assert (line.moved_bytes, line.baseline_bytes) == (114, 146)


def test_without_bytes_or_prices_there_are_no_lines():
    assert traffic(EnergyReport.of(RUN, own_profile())) == []
    bare = [replace(r, moved=ByteCounts(), dense_moved=ByteCounts()) for r in RUN.rows]
    report = EnergyReport.of(replace(RUN, rows=tuple(bare)), "horowitz-45nm-fp32")
    assert traffic(report) == []


def test_another_report_is_a_baseline_with_its_own_bytes():
    twice = [replace(r, moved=r.moved + r.moved) for r in RUN.rows]
    other = EnergyReport.of(replace(RUN, rows=tuple(twice)), "horowitz-45nm-fp32")
    report = EnergyReport.of(RUN, "horowitz-45nm-fp32", baseline=other)
    first = traffic(report)[0]
    assert (first.moved_bytes, first.baseline_bytes) == (120, 240)
