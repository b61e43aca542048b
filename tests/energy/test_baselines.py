"""The three baselines and the break-even, worked out by hand at 45 nm.

1000 dense MACs are replaced by 200 accumulations at T = 4; the model costs 264.4 pJ a
token, the dense one 690, of which 460 are the MACs that are replaced.
"""

import math
from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport, OpCounts
from mar_snn.energy.reporting.baselines import (
    baselines,
    baselines_by_group,
    break_even,
    matched_bits,
)
from tests.energy.energy_runs import LM_HEAD, NEURON, RUN, UP_PROJ
from tests.energy.test_profiles import own_profile


def report(*rows, profile="horowitz-45nm-fp32", **options):
    return EnergyReport.of(replace(RUN, rows=rows or RUN.rows), profile, **options)


def named(found):
    return {baseline.name: baseline for baseline in found}


@pytest.mark.parametrize(
    ("time_steps", "bits"),
    # 3, 5, 7, 9, 17 and 255 values
    [(1, 2), (2, 3), (3, 3), (4, 4), (8, 5), (127, 8), (128, 9)],
)
def test_the_sum_of_t_ternary_spikes_says_so_many_bits(time_steps, bits):
    assert matched_bits(time_steps) == bits
    assert matched_bits(time_steps) == math.ceil(math.log2(2 * time_steps + 1))


def test_the_dense_model_multiplies_everywhere():
    dense = named(baselines(report()))["dense"]
    assert dense.energy_pj == pytest.approx((690, 690))
    assert dense.ratio == pytest.approx((690 / 264.4, 690 / 264.4))


def test_the_quantised_model_has_four_bits_and_is_held_against_eight_bit_weights():
    found = named(baselines(report()))["quantised dense, 4 bits"]
    # 1000 · (0.2 · 4 / 8 + 0.1) = 200 and 1000 · (0.2 + 0.1) = 300, 10 tokens, + 230
    assert found.energy_pj == pytest.approx((250, 260))
    # 200 accumulations at 0.1 and not at 0.9: 16 pJ a token less
    assert found.model_pj == pytest.approx(248.4)
    assert found.ratio == pytest.approx((250 / 248.4, 260 / 248.4))
    assert "4-bit inputs" in found.definition


def test_a_model_of_eight_bits_is_held_against_itself():
    found = baselines(report(profile="horowitz-45nm-int8"))[1]
    assert found.model_pj == report(profile="horowitz-45nm-int8").energy_pj


def test_the_zero_skipping_model_multiplies_where_an_input_fired():
    found = named(baselines(report()))["zero-skipping dense"]
    # 200 spikes are 50 inputs that fired four times, or 200 that fired once:
    # 690 - 950 · 0.46 and 690 - 800 · 0.46
    assert found.energy_pj == pytest.approx((253, 322))
    assert found.ratio == pytest.approx((253 / 264.4, 322 / 264.4))


def test_one_step_leaves_no_doubt_about_the_inputs_that_fired():
    found = baselines(report(replace(UP_PROJ, time_steps=1)))[2]
    # 460 - 800 · 0.46
    assert found.energy_pj == pytest.approx((92, 92))


def test_spikes_meet_spikes_in_as_few_as_t_squared_coincidences():
    met = replace(
        UP_PROJ, ops=OpCounts(dense_mac=1000, ac_coincidence=160, sop_unit=160)
    )
    # 160 / 16 = 10 products at least, 160 at most
    assert baselines(report(met))[2].energy_pj == pytest.approx((4.6, 73.6))


def test_graded_spikes_are_counted_one_by_one_and_have_eight_bits():
    # 50 spikes of 3 each: 150 accumulations, one product each where zeros are skipped
    ops = OpCounts(dense_mac=1000, ac_add=150, sop_unit=150, sop_graded=50)
    graded = report(replace(UP_PROJ, ops=ops, readout="graded", time_steps=1))
    assert graded.energy_pj == pytest.approx(13.5)
    _, quantised, skipping = baselines(graded)
    assert skipping.energy_pj == pytest.approx((23, 23))
    # 1000 · (0.2 + 0.1)
    assert quantised.name == "quantised dense, 8 bits"
    assert quantised.energy_pj == pytest.approx((30, 30))


def test_more_spikes_than_inputs_are_all_the_inputs():
    ops = OpCounts(dense_mac=1000, ac_add=3000, sop_unit=3000)
    # 3000 / 4 = 750 at least, 1000 at most
    found = baselines(report(replace(UP_PROJ, ops=ops)))[2]
    assert found.energy_pj == pytest.approx((345, 460))


def test_without_prices_or_bits_the_quantised_model_says_why():
    bare = baselines(report(profile=own_profile()))[1]
    assert (bare.energy_pj, bare.ratio) == (None, None)
    assert bare.missing == "own has no int8_mul and int32_add"
    long = baselines(report(replace(UP_PROJ, time_steps=128)))[1]
    assert (long.name, long.energy_pj) == ("quantised dense, 9 bits", None)
    assert long.missing.startswith("more than 8 bits")


def test_layers_of_unlike_t_have_unlike_bits():
    other = replace(UP_PROJ, name="b", time_steps=1)
    found = baselines(report(UP_PROJ, other))[1]
    assert found.name == "quantised dense, 2 or 4 bits"
    # 200 + 1000 · (0.2 · 2 / 8 + 0.1) = 350, 300 + 300
    assert found.energy_pj == pytest.approx((35, 60))


def test_a_dense_model_is_its_own_baseline():
    found = named(baselines(report(LM_HEAD)))
    assert set(found) == {"dense", "quantised dense", "zero-skipping dense"}
    for baseline in found.values():
        assert baseline.energy_pj == pytest.approx((230, 230))


def test_a_report_as_baseline_comes_first():
    teacher = report(LM_HEAD)
    first, *others = baselines(report(baseline=teacher))
    assert (first.name, first.energy_pj) == ("Tiny", pytest.approx((230, 230)))
    assert "report of Tiny" in first.definition
    assert others[0].name == "dense"


def test_the_parts_of_the_groups_add_up_to_the_baselines():
    whole, parts = baselines(report()), baselines_by_group(report())
    assert list(parts) == ["neuron", "ffn", "lm_head"]
    for index, baseline in enumerate(whole):
        low = sum(found[index].energy_pj[0] for found in parts.values())
        high = sum(found[index].energy_pj[1] for found in parts.values())
        assert (low, high) == pytest.approx(baseline.energy_pj)


def test_the_model_stands_where_its_spikes_put_it():
    found = break_even(report())
    assert found.spikes_per_synapse == 0.2  # 200 of 1000
    assert found.compute == pytest.approx(4.6 / 0.9)
    # neurons and head cost 2464, the dense model 6900: 4436 / (1000 · 0.9)
    assert found.whole_model == pytest.approx(4436 / 900)
    assert found.matched_bit == pytest.approx((2, 3))
    assert found.ceiling == pytest.approx(6900 / 2464)
    assert found.slope == pytest.approx(900 / 6900)


def test_the_ratio_follows_the_spikes_and_is_one_at_the_break_even():
    found = break_even(report())
    assert found.ratio_at(0.2) == pytest.approx(report().ratio)
    assert found.ratio_at(found.whole_model) == pytest.approx(1.0)
    assert found.ratio_at(0.0) == pytest.approx(found.ceiling)


def test_neurons_that_cost_more_than_the_dense_model_never_break_even():
    busy = replace(NEURON, ops=OpCounts(mul=10_000))
    assert break_even(report(busy, UP_PROJ)).whole_model < 0


def test_without_spikes_there_is_nothing_to_break_even():
    found = break_even(report(LM_HEAD))
    assert math.isnan(found.spikes_per_synapse)
    assert math.isnan(found.whole_model)
    assert found.matched_bit is None
    assert break_even(report(profile=own_profile())).matched_bit is None
