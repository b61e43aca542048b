"""The integers of a report and the rates that follow from them."""

import math

import pytest
import torch

import mar_snn.energy
from mar_snn.energy import OpCounts
from mar_snn.energy.counts import Cost, CountedRun, Firing, ModuleRow


def test_the_package_offers_ten_names():
    assert set(mar_snn.energy.__all__) == {
        "EnergyMeter", "EnergyProfile", "EnergyReport", "Measurement", "OpCounts",
        "SpikeOpCounter", "TrialPlan", "register_module_rule",
        "register_op_rule", "register_profile",
    }  # fmt: skip
    for name in mar_snn.energy.__all__:
        assert hasattr(mar_snn.energy, name)


def test_counts_have_the_fields_of_the_schema_in_its_order():
    assert list(OpCounts().as_dict()) == [
        "dense_mac", "mac", "ac_add", "ac_sub", "ac_coincidence", "sop_unit",
        "sop_graded", "add", "mul", "cmp", "special", "lookup", "bias_add",
    ]  # fmt: skip


def test_counts_add_up_field_by_field_beyond_64_bits():
    huge = 2**70
    total = OpCounts(mac=huge, cmp=1) + OpCounts(mac=huge, add=2)
    assert total == OpCounts(mac=2**71, cmp=1, add=2)
    assert OpCounts.sum([total, total]) == OpCounts(mac=2**72, cmp=2, add=4)
    assert OpCounts.sum([]) == OpCounts()


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="mac counts operations, got -1"):
        OpCounts(mac=-1)


def test_a_cost_is_the_same_dense_unless_said():
    assert Cost({"add": 3}).dense == {"add": 3}
    assert Cost({"add": torch.tensor(3)}, dense={}).dense == {}


FIRING = Firing(pos=(3, 0), neg=(1, 2), elements=(10, 20), tau=0.5)


def test_rates_are_spikes_for_each_element_and_step():
    # 4 of 10 and 2 of 20; 3 and 3 of 30; balance (3 - 3) / 6
    assert FIRING.rate_by_step == [0.4, 0.1]
    assert FIRING.rate == 6 / 30
    assert (FIRING.p_pos, FIRING.p_neg) == (3 / 30, 3 / 30)
    assert FIRING.sign_balance == 0.0
    assert FIRING.time_steps == 2


def test_neurons_are_pooled_by_their_elements_and_not_by_their_rates():
    # 6 of 30 and 30 of 30: 36 of 60, balance (33 - 3) / 36
    busy = Firing(pos=(30,), neg=(0,), elements=(30,))
    pooled = Firing.pooled([FIRING, busy])
    assert pooled.rate == 0.6
    assert pooled.sign_balance == pytest.approx(30 / 36)


def test_a_rate_of_nothing_is_not_a_number():
    nothing = Firing.pooled([])
    assert math.isnan(nothing.rate)
    assert math.isnan(Firing(pos=(0,), neg=(0,), elements=(5,)).sign_balance)


def test_tokens_are_the_look_ups_of_the_first_embedding():
    def row(**ops):
        counts = OpCounts(**ops)
        return ModuleRow(
            name="", type="", group="", calls=1, ops=counts, dense_ops=counts
        )

    rows = (row(mac=1), row(lookup=7), row(lookup=14))
    run = CountedRun(rows=rows, firing={}, calls=3, uncounted={}, model={})
    assert run.tokens == 7
    assert run.total == OpCounts(mac=1, lookup=21)
    empty = CountedRun(rows=rows[:1], firing={}, calls=1, uncounted={}, model={})
    assert empty.tokens == 0
