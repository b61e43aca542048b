"""Running sums: exact, additive, and read only at the end."""

import pytest
import torch
from torch import nn

from mar_snn.energy import OpCounts
from mar_snn.energy.accumulate import FiringTally, RowTally
from mar_snn.energy.counts import Cost
from mar_snn.energy.spike_trains import SpikeTrain


def int64(value):
    return torch.tensor(value, dtype=torch.int64)


def test_numbers_and_device_numbers_add_up_in_one_field():
    tally = RowTally("a.b", nn.Linear(1, 1))
    tally.add(Cost({"mac": 3, "ac_add": int64(4)}, dense={"mac": 7}))
    tally.add(Cost({"mac": int64(2**40), "ac_add": 1}))
    row = tally.read()
    assert row.ops == OpCounts(mac=2**40 + 3, ac_add=5)
    assert row.dense_ops == OpCounts(mac=2**40 + 7, ac_add=1)
    assert (row.name, row.type, row.group) == ("a.b", "Linear", "Linear")
    assert row.time_steps == row.calls == 0


def test_reading_twice_gives_the_same():
    tally = RowTally("", nn.Linear(1, 1))
    tally.add(Cost({"add": int64(4)}))
    assert tally.read() == tally.read()


def test_a_row_remembers_the_longest_spike_train_it_was_fed():
    tally = RowTally("", nn.Linear(1, 1))
    plane = torch.ones(1)
    tally.note_input(SpikeTrain([plane] * 3, "sum"))
    tally.note_input(SpikeTrain([plane] * 2, "sum"))
    row = tally.read()
    assert (row.time_steps, row.readout) == (3, "sum")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_more_spikes_than_a_float_can_count_are_counted_exactly(dtype):
    # 4097 · 4097 = 16785409 > 2 ** 24, odd, and beyond every sum in the spikes' dtype
    ones = torch.ones((), dtype=dtype).expand(1, 4097, 4097)
    tally = FiringTally(nn.Identity())
    events = tally.add(-ones)
    assert (int(events.pos), int(events.neg)) == (0, 16_785_409)
    assert tally.read().neg == (16_785_409,)
    train = SpikeTrain([ones[0], ones[0]], "sum")
    assert int(train.events.pos) == 2 * 16_785_409


def test_a_neuron_that_never_fired_has_no_steps():
    firing = FiringTally(nn.Identity()).read()
    assert firing.pos == firing.neg == firing.elements == ()
    assert (firing.tau, firing.readout) == (None, "unit")


def test_a_spike_sequence_without_neurons_is_a_sequence_of_nothing():
    tally = FiringTally(nn.Identity())
    tally.add(torch.ones(3, 0, 5))
    assert tally.read().elements == (0, 0, 0)


def test_a_sequence_of_single_numbers_has_one_element_a_step():
    tally = FiringTally(nn.Identity())
    tally.add(torch.tensor([1.0, -1, 0]))
    firing = tally.read()
    assert (firing.pos, firing.neg) == ((1, 0, 0), (0, 1, 0))
    assert firing.elements == (1, 1, 1)
