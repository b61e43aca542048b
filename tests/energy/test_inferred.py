"""Spikes known by their values only: what is taken for them, and what is not."""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.energy.counts import ByteCounts
from mar_snn.energy.rules import registry

WEIGHTS = nn.Linear(4, 3, bias=False)


def infer(model, *batches, **settings):
    with torch.no_grad(), SpikeOpCounter(model, spikes="inferred", **settings) as c:
        for batch in batches:
            model(torch.as_tensor(batch))
    return c


def row_of(counter):
    (row,) = counter.rows()
    return row


DENSE = OpCounts(dense_mac=12, mac=12)


@pytest.mark.parametrize(
    ("values", "add", "sub"),
    [
        ([1.0, 0, 0, 1], 6, 0),
        ([1.0, -1, 0, 0], 3, 3),
        ([0.25, -0.25, 0, 0.25], 6, 3),  # scaled: the scale folds into the weights
        ([-3e-4, 0, 0, -3e-4], 0, 6),
        ([3.0, 0, 0, 3], 6, 0),  # one level is one spike, whatever its height
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_of_one_size_and_zeros_are_unit_spikes(values, add, sub, dtype):
    layer = nn.Linear(4, 3, bias=False, dtype=dtype)
    row = row_of(infer(layer, torch.tensor([values], dtype=dtype)))
    assert row.ops == OpCounts(dense_mac=12, ac_add=add, ac_sub=sub, sop_unit=add + sub)
    assert row.dense_ops == DENSE
    assert (row.detection, row.readout, row.time_steps) == ("inferred", "unit", 1)


@pytest.mark.parametrize(
    "values",
    [
        [0.3, 0.7, 0.3, 0.7],
        [0.0, 1.5, 0.0, 1],
        [1.0, 1, -1, 1],  # no zero: whatever it is, it does not skip anything
        [0.0, 0, 0, 0],  # nothing fired: nothing is known
        [17.0, 0, 3, 2],  # integers, but no level of a spike is that high
        [0.5, 1, 0, 0],
        [float("inf"), 0, 0, 0],
        [float("nan"), 0, 1, 0],
    ],
)
def test_other_values_are_dense(values):
    row = row_of(infer(WEIGHTS, [values]))
    assert row.ops == row.dense_ops == DENSE
    assert (row.detection, row.readout, row.time_steps) == ("", "", 0)


@pytest.mark.parametrize(
    ("values", "fired", "add", "sub"),
    [
        ([3.0, 0, 2, 0], 2, 5, 0),
        ([16.0, 0, 0, 1], 2, 17, 0),
        ([1.0, 0, -4, 2], 3, 3, 4),
    ],
)
def test_small_integers_of_several_levels_are_graded_spikes(values, fired, add, sub):
    row = row_of(infer(WEIGHTS, [values]))
    # three outputs of every input
    assert row.ops == OpCounts(
        dense_mac=12,
        ac_add=3 * add,
        ac_sub=3 * sub,
        sop_unit=3 * (add + sub),
        sop_graded=3 * fired,
    )
    assert (row.detection, row.readout) == ("inferred", "graded")


SPIKES, GRADED, DENSE_VALUES = [1.0, 0, 0, 0], [2.0, 1, 0, 0], [0.5, 1.5, 0, 0]


@pytest.mark.parametrize("order", [1, -1])
def test_an_input_that_was_dense_in_one_batch_is_dense_in_all(order):
    counter = infer(WEIGHTS, *[[SPIKES], [DENSE_VALUES], [SPIKES]][::order])
    row = row_of(counter)
    assert row.ops == OpCounts(dense_mac=36, mac=36)
    assert row.detection == ""
    assert [batch.ops for batch in counter.run().batches] == [DENSE] * 3


@pytest.mark.parametrize("order", [1, -1])
def test_an_input_that_was_graded_in_one_batch_is_graded_in_all(order):
    counter = infer(WEIGHTS, *[[SPIKES], [GRADED]][::order])
    one, three = (
        OpCounts(dense_mac=12, ac_add=3 * n, sop_unit=3 * n, sop_graded=3 * fired)
        for n, fired in ((1, 1), (3, 2))
    )
    assert [b.ops for b in counter.run().batches] == [one, three][::order]
    row = row_of(counter)
    assert (row.readout, row.ops) == ("graded", one + three)


@pytest.mark.parametrize("other", [[1.0, 1, 1, 1], [0.0, 0, 0, 0]])
@pytest.mark.parametrize("order", [1, -1])
def test_a_batch_that_tells_nothing_follows_the_others(other, order):
    # all fired, or none: spikes, since another batch showed what the values are
    counter = infer(WEIGHTS, *[[SPIKES], [other]][::order])
    assert row_of(counter).ops.mac == 0
    assert row_of(counter).ops.ac_add == 3 + 3 * int(sum(other))


def test_spikes_that_are_scaled_differently_are_spikes_in_both():
    assert row_of(infer(WEIGHTS, [SPIKES], [[0.0, 0.5, 0, -0.5]])).ops.ac_add == 6


def test_integers_after_scaled_spikes_leave_nothing_that_fits_both():
    assert row_of(infer(WEIGHTS, [[0.5, 0, 0, 0]], [GRADED])).ops.mac == 24


def test_a_batch_of_nothing_changes_nothing():
    counter = infer(WEIGHTS, torch.empty(0, 4), [SPIKES])
    assert row_of(counter).ops == OpCounts(dense_mac=12, ac_add=3, sop_unit=3)


def test_the_verdict_is_that_of_all_phases():
    counter = SpikeOpCounter(WEIGHTS, spikes="inferred")
    with torch.no_grad(), counter:
        with counter.phase("prefill"):
            WEIGHTS(torch.tensor([SPIKES]))
        with counter.phase("decode"):
            WEIGHTS(torch.tensor([DENSE_VALUES]))
    assert [row.ops for row in counter.rows()] == [DENSE, DENSE]


def test_weights_are_never_spikes():
    layer = nn.Linear(4, 3, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    with torch.no_grad():
        layer.weight[0, 0] = 0.5
    x = torch.rand(1, 4)
    assert row_of(infer(layer, x)).ops == DENSE


def test_weights_that_are_quantised_on_the_fly_are_never_spikes(call):
    layer = nn.Linear(4, 3, bias=False)
    nn.init.uniform_(layer.weight, -1, 1)

    class Ternary(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            return F.linear(x, (2 * self.inner.weight).round().sign() * 0.1)

    counter = infer(Ternary(), torch.rand(1, 4))
    (row,) = [row for row in counter.rows() if row.ops.dense_mac]
    assert (row.ops.mac, row.ops.sop_unit) == (12, 0)


def test_a_projection_keeps_its_bias_and_its_columns():
    row = row_of(infer(nn.Linear(4, 3), [SPIKES], [[0.0, 1, 0, 1]]))
    assert row.ops == OpCounts(dense_mac=24, ac_add=9, sop_unit=9, bias_add=6)
    assert (row.columns_touched, row.columns) == (1 + 2, 8)
    # 48 bytes of weights and 12 of biases a batch; 1 and 2 columns of 12 bytes
    assert row.moved.weight_dense == 120
    assert row.moved.weight_touched == 36 + 24
    assert row.dense_moved.weight_touched == 120


def test_a_convolution_is_exact_at_its_borders():
    x = torch.zeros(1, 1, 3, 3)
    x[0, 0, 0, 0] = 0.5
    row = row_of(infer(nn.Conv2d(1, 2, 3, padding=1, bias=False), x))
    # the corner reaches 4 outputs of each of 2 channels
    assert row.ops.ac_add == 8


def test_each_call_of_a_module_is_judged_by_itself(call):
    # the first product is of spikes, the second of dense values, in one module
    eye = torch.eye(4)
    model = call(lambda x: (x @ WEIGHTS.weight.t().detach(), (x + 0.5) @ eye))
    total = infer(model, [SPIKES]).total()
    # x @ W: 3; the second: 4 · 4, and the identity is spikes as far as one can see
    assert (total.ac_add, total.dense_mac) == (3 + 4, 12 + 16)


def test_spikes_that_meet_spikes_are_coincidences_until_one_of_them_is_not(call):
    class Attend(nn.Module):
        def forward(self, q, k):
            return q @ k.t()

    spikes = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    model = Attend()
    counter = SpikeOpCounter(model, spikes="inferred")
    with torch.no_grad(), counter:
        model(spikes, spikes.flip(1))
    # q fires in (0, 0), (0, 2), (1, 1), k in (0, 0), (0, 2), (1, 1): 1·1 + 1·1 + 1·1
    assert counter.total() == OpCounts(dense_mac=12, ac_coincidence=3, sop_unit=3)
    with torch.no_grad(), counter:
        model(spikes, torch.full((2, 3), 0.5) + spikes / 3)
    # k is dense after all: each of the 3 spikes of q adds 2 values, in both batches
    assert counter.total() == OpCounts(dense_mac=24, ac_add=12, sop_unit=12)


def test_one_tensor_on_both_sides_is_one_question(call):
    x = torch.tensor([[1.0, 0], [0, 1]])
    total = infer(call(lambda x: x @ x), x).total()
    assert total == OpCounts(dense_mac=8, ac_coincidence=2, sop_unit=2)


def test_declarations_are_not_used_and_not_mixed_in(decode, fire):
    # two planes decoded to {0, 1, 3}: seen as a value it is graded
    planes = torch.tensor([[[1.0, 1, 0, 0]], [[0.0, 1, 0, 0]]])
    model = nn.Sequential(decode("geometric", 2.0), WEIGHTS)
    with torch.no_grad(), SpikeOpCounter(model, spikes="inferred") as counter:
        model(planes)
    row = counter.rows()[-1]
    assert (row.detection, row.readout, row.ops.sop_graded) == ("inferred", "graded", 6)
    # its firing is still the neuron's own account
    assert counter.run().firing["0"].pos == (2, 1)
    assert counter.run().settings["spikes"] == "inferred"


def test_declared_spikes_are_never_looked_at():
    # zeros and ones that nobody declared
    with torch.no_grad(), SpikeOpCounter(WEIGHTS) as counter:
        WEIGHTS(torch.tensor([SPIKES]))
    assert counter.total() == DENSE
    assert counter.rows()[0].detection == ""


def test_a_module_made_on_the_way_shares_the_count_of_calls(call):
    # two functional products by throw-away modules: different places
    def forward(x):
        first, second = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        return first(x), second(x + 0.25)

    total = infer(call(forward), [[1.0, 0, 0, 0]], [[0.0, 0, 1, 0]]).total()
    # the weights are no parameters of the model, but not spikes either
    assert (total.ac_add, total.mac) == (6, 24)


def test_neurons_of_spikingjelly_are_found_without_their_declarations():
    model = nn.Sequential(neuron.IFNode(step_mode="m"), WEIGHTS)
    x = torch.tensor([[[1.5, 0, 2, 0]], [[0.0, 0, 0, 1.5]]])
    inferred = infer(model, x)
    with torch.no_grad(), SpikeOpCounter(model) as declared:
        model[0].reset()
        model(x)
    one, other = (counter.rows()[-1] for counter in (inferred, declared))
    assert one.ops == other.ops
    assert one.moved == other.moved != ByteCounts()
    assert (one.detection, other.detection) == ("inferred", "declared")


def test_an_operation_whose_rule_has_no_answer_is_listed(call, unpriced, monkeypatch):
    monkeypatch.setattr(registry, "_op_rules", dict(registry._op_rules))
    twist = torch.ops.mar_snn_tests.twist.default
    registry.register_op_rule(twist)(lambda call: call.spikes(call.args[0]))
    counter = infer(call(unpriced), [SPIKES])
    assert counter.run().uncounted == {str(twist): 1}


@pytest.mark.parametrize("spikes", ["declared", "inferred"])
def test_the_other_settings_reach_the_rules_all_the_same(spikes):
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    x = torch.rand(1, 1, 3, 3)
    with torch.no_grad(), SpikeOpCounter(layer, spikes=spikes, padding="include") as c:
        layer(x)
    assert c.total().mac == 81
