"""How often neurons fired: by step, by sign, by channel, exactly."""

import pytest
import torch
from torch import nn

from mar_snn.energy.firing import FiringTally
from mar_snn.energy.spike_trains import SpikeTrain, count_by_sign
from mar_snn.neurons.spikes import SpikeEvent


def in_steps(spike_seq, neuron=None):
    """A call that hands on the spikes themselves, [T, ...]."""
    return SpikeEvent(neuron, spike_seq, spike_seq)


@pytest.fixture
def neuron():
    return nn.Identity()


@pytest.fixture
def tally(neuron):
    return FiringTally(neuron)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_more_spikes_than_a_float_can_count_are_counted_exactly(tally, dtype):
    # 4097 · 4097 = 16785409 > 2 ** 24, odd, and beyond every sum in the spikes' dtype
    ones = torch.ones((), dtype=dtype).expand(1, 4097, 4097)
    events = tally.add(in_steps(-ones)).events
    assert (int(events.pos), int(events.neg)) == (0, 16_785_409)
    assert tally.read().neg == (16_785_409,)
    train = SpikeTrain([ones[0], ones[0]], "sum")
    assert int(train.events.pos) == 2 * 16_785_409


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_one_channel_can_fire_more_often_than_a_float_can_count(tally, dtype):
    # a column of 2 ** 24 + 1 spikes of either sign: float32 would lose the last one
    column = torch.ones((), dtype=dtype).expand(1, 2**24 + 1, 1)
    tally.add(in_steps(column))
    tally.add(in_steps(-column))
    firing = tally.read()
    assert firing.pos == firing.neg == (2**24 + 1,)
    assert firing.saturated_channels == 1


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.int8, torch.int64]
)
@pytest.mark.parametrize("dims", [[], [0], [1], [0, 1]])
def test_signs_are_counted_apart_in_any_dtype_along_any_axes(dtype, dims):
    spikes = torch.tensor([[1, -1, 0], [1, 1, -1]], dtype=dtype)
    pos, neg = count_by_sign(spikes, dims)
    as_bool = (spikes > 0).long(), (spikes < 0).long()
    expected = [signs.sum(dims) if dims else signs for signs in as_bool]
    assert torch.equal(pos, expected[0])
    assert torch.equal(neg, expected[1])
    assert pos.dtype == neg.dtype == torch.int64


def test_spikes_that_are_booleans_are_counted_too():
    spikes = torch.tensor([[True, False], [True, True]])
    assert count_by_sign(spikes, [0]).tolist() == [[2, 1], [0, 0]]
    assert count_by_sign(spikes, []).tolist() == [[[1, 0], [1, 1]], [[0, 0], [0, 0]]]


def test_graded_values_count_their_size():
    # +3 and +2 units, -4 units
    pos, neg = count_by_sign(torch.tensor([3.0, 0, 2, -4]), [0], graded=True)
    assert (int(pos), int(neg)) == (5, 4)


def test_a_neuron_that_never_fired_has_no_steps(tally):
    firing = tally.read()
    assert firing.pos == firing.neg == firing.elements == ()
    assert (firing.tau, firing.readout) == (None, "unit")
    assert (firing.channels, firing.silent_channels) == (0, 0)


def test_a_spike_sequence_without_neurons_is_a_sequence_of_nothing(tally):
    tally.add(in_steps(torch.ones(3, 0, 5)))
    firing = tally.read()
    assert firing.elements == (0, 0, 0)
    # five channels that nobody asked to fire: silent, and none of them saturated
    assert (firing.channels, firing.silent_channels) == (5, 5)
    assert firing.saturated_channels == 0


def test_a_sequence_of_single_numbers_has_one_element_a_step(tally):
    tally.add(in_steps(torch.tensor([1.0, -1, 0])))
    firing = tally.read()
    assert (firing.pos, firing.neg) == ((1, 0, 0), (0, 1, 0))
    assert firing.elements == (1, 1, 1)
    assert firing.channels == 1


#: [T, N, C] = [2, 2, 4]: channel 0 always fires, 1 sometimes, 2 never, 3 only as -1
SPIKES = torch.tensor(
    [
        [[1.0, 1, 0, -1], [-1, 0, 0, -1]],
        [[1.0, 0, 0, -1], [1, 0, 0, -1]],
    ]
)


def test_channels_that_never_and_that_always_fire_are_told_apart(tally):
    tally.add(in_steps(SPIKES))
    firing = tally.read()
    assert (firing.pos, firing.neg) == ((2, 2), (3, 2))
    # 2 is silent; 0 and 3 fire at every step of every sample
    assert firing.channels == 4
    assert (firing.silent_channels, firing.saturated_channels) == (1, 2)


def test_one_call_is_enough_to_be_silent_or_saturated_no_more(tally):
    tally.add(in_steps(SPIKES))
    tally.add(in_steps(torch.tensor([[[0.0, 0, 1, 1]]])))
    firing = tally.read()
    # now 0 has missed a step and 2 has fired; 3 still always fires
    assert (firing.silent_channels, firing.saturated_channels) == (0, 1)
    # calls of 2 steps and of 1 add up by step
    assert (firing.pos, firing.neg) == ((4, 2), (3, 2))
    assert firing.elements == (12, 8)


def test_a_shorter_call_after_a_longer_one_adds_up_too(tally):
    for steps in (1, 3, 2):
        tally.add(in_steps(-torch.ones(steps, 5)))
    firing = tally.read()
    assert firing.neg == firing.elements == (15, 10, 5)
    assert (firing.pos, firing.saturated_channels) == ((0, 0, 0), 5)


def test_calls_of_different_widths_have_different_channels(tally):
    tally.add(in_steps(torch.ones(1, 2, 3)))
    tally.add(in_steps(torch.zeros(1, 2, 4)))
    firing = tally.read()
    assert (firing.channels, firing.silent_channels) == (7, 4)
    assert firing.saturated_channels == 3
    assert (firing.pos, firing.elements) == ((6,), (14,))


def test_the_channels_of_images_stand_on_axis_1_of_a_step(tally):
    # [T, N, C, H, W]: of three channels the second fires at one pixel
    spike_seq = torch.zeros(1, 2, 3, 4, 5)
    spike_seq[0, 1, 1, 2, 3] = -1
    tally.add(in_steps(spike_seq))
    firing = tally.read()
    assert (firing.channels, firing.silent_channels) == (3, 2)


@pytest.mark.parametrize(
    ("channel_dim", "silent"),
    # [T, N, C, L] = [1, 2, 3, 4] with one spike at n = 0, c = 1, l = 2; an axis that a
    # step does not have is not believed
    [(0, 1), (1, 2), (-1, 3), (-2, 2), (5, 3)],
)
def test_a_neuron_with_channels_says_where_they_are(neuron, channel_dim, silent):
    neuron.num_channels, neuron.channel_dim = 3, channel_dim
    spike_seq = torch.zeros(1, 2, 3, 4)
    spike_seq[0, 0, 1, 2] = 1
    tally = FiringTally(neuron)
    tally.add(in_steps(spike_seq))
    assert tally.read().silent_channels == silent


def test_the_channel_axis_of_a_neuron_without_channels_is_not_asked(neuron):
    neuron.num_channels, neuron.channel_dim = None, 0
    tally = FiringTally(neuron)
    tally.add(in_steps(torch.ones(1, 2, 3)))
    assert tally.read().channels == 3


def test_integers_fire_once_each_and_count_their_units(tally):
    # 3 and 2 at step 0, 0 and 4 at step 1
    train = tally.add(in_steps(torch.tensor([[[3.0, 2]], [[0, 4]]])), "graded")
    firing = tally.read()
    assert (firing.pos, firing.readout) == ((2, 1), "graded")
    assert firing.rate == 3 / 4
    assert (int(train.events.pos), int(train.events.neg)) == (9, 0)
    assert int(train.fired()) == 3
    assert train.fired(-1).tolist() == [1, 2]


def test_a_neuron_keeps_its_time_constant_and_its_readout(neuron):
    neuron.tau, neuron.readout = 2.0, "geometric"
    tally = FiringTally(neuron)
    train = tally.add(SpikeEvent(neuron, torch.ones(1, 2), torch.ones(2)))
    firing = tally.read()
    assert (firing.tau, firing.readout) == (2.0, "geometric")
    assert train.readout == "unit"  # of a single plane


def test_a_time_constant_that_is_learnt_is_no_number(neuron):
    neuron.tau = nn.Parameter(torch.ones(1))
    assert FiringTally(neuron).read().tau is None


def test_spikes_have_to_fit_the_output_that_carries_them(neuron, tally):
    event = SpikeEvent(neuron, torch.ones(2, 3), torch.ones(4))
    with pytest.raises(
        ValueError, match=r"Identity declares .* shape \(2, 3\) for an output .*\(4,\)"
    ):
        tally.add(event)


@pytest.mark.parametrize(
    ("spike_seq", "readout", "match"),
    [
        (torch.ones(2, 3), None, r"several spike planes.*'sum' or 'geometric'.*None"),
        (torch.ones(2, 3), "graded", r"several spike planes.*got 'graded'"),
        (torch.ones(1, 3), "sum", r"one spike plane .*'unit' or 'graded'.*got 'sum'"),
    ],
)
def test_a_readout_has_to_fit_the_number_of_planes(
    neuron, tally, spike_seq, readout, match
):
    with pytest.raises(ValueError, match=match):
        tally.add(SpikeEvent(neuron, spike_seq, torch.ones(3)), readout)
