"""What neurons cost, and that their spikes reach the layer behind them."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.energy.counts import ByteCounts
from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.lif_coder import LIFCoder
from mar_snn.neurons.ops import atmn_code, atmn_multi_step
from tests.seed import SEED


def fresh(node):
    """The node in eval mode; a hook resets it, so that every pass starts from rest."""
    node.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    return node.eval()


#: [T, N, *] = [2, 1, 3]; from rest an IF neuron of threshold 1 fires at 1.5 and 2
X_SEQ = torch.tensor([[[1.5, -1.5, 0.0]], [[0.0, 0.0, 2.0]]])
SIZE = 6  # elements over all steps


@pytest.mark.parametrize(
    ("node", "add", "mul", "cmp", "pos", "neg"),
    [
        # hard reset: fires at 1.5, and at 2.0 in step 2
        (neuron.IFNode(step_mode="m"), 1, 0, 1, 2, 0),
        # v + (x - v) / 2: 0.75 and 1.0, only the last reaches 1
        (neuron.LIFNode(step_mode="m"), 1, 1, 1, 1, 0),
        (neuron.ParametricLIFNode(step_mode="m"), 1, 1, 1, 1, 0),
        # soft reset: the residual -0.5 of the second element stays below threshold
        (neuron.TernaryIFNode(v_reset=None, step_mode="m"), 1, 0, 2, 2, 1),
        (
            neuron.TernaryLIFNode(decay_input=False, v_reset=None, step_mode="m"),
            1,
            1,
            2,
            2,
            1,
        ),
        (ATMNNode(step_mode="m"), 1, 1, 2, 2, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_node_costs_its_charge_its_comparisons_and_a_reset_for_each_spike(
    count_model, node, add, mul, cmp, pos, neg
):
    counter = count_model(fresh(node), X_SEQ)
    spikes = pos + neg
    assert counter.total() == OpCounts(
        add=add * SIZE + spikes, mul=mul * SIZE, cmp=cmp * SIZE
    )
    (firing,) = counter.run().firing.values()
    assert (sum(firing.pos), sum(firing.neg)) == (pos, neg)
    assert firing.elements == (3, 3)
    (row,) = counter.rows()
    assert (row.group, row.dense_ops) == ("neuron", OpCounts())


def test_single_steps_cost_what_one_call_of_all_steps_costs():
    single, multi = neuron.IFNode(), neuron.IFNode(step_mode="m")
    with torch.no_grad(), SpikeOpCounter(single) as step_by_step:
        for x in X_SEQ:
            single(x)
    with torch.no_grad(), SpikeOpCounter(multi) as at_once:
        multi(X_SEQ)
    assert step_by_step.total() == at_once.total()
    # the calls of a single-step node are pooled as one step
    (firing,) = step_by_step.run().firing.values()
    assert (firing.pos, firing.elements, firing.time_steps) == ((2,), (6,), 1)


def test_single_steps_of_atmn_declare_unit_spikes(count_model):
    model = nn.Sequential(fresh(ATMNNode()), nn.Linear(3, 4, bias=False))
    row = count_model(model, X_SEQ[0]).rows()[-1]
    # +1 and -1, four outputs each; the dense layer: 3 · 4
    assert row.ops == OpCounts(dense_mac=12, ac_add=4, ac_sub=4, sop_unit=8)
    assert row.readout == "unit"


@pytest.mark.parametrize("cls", [neuron.IFNode, neuron.TernaryIFNode])
def test_an_analogue_surrogate_makes_no_spikes_and_has_no_price(cls):
    smooth = surrogate.Sigmoid(spiking=False)
    model = nn.Sequential(cls(surrogate_function=smooth), nn.Linear(3, 4, bias=False))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(X_SEQ[0])
    assert counter.total() == OpCounts(dense_mac=12, mac=12)
    assert counter.run().uncounted == {cls.__name__: 1}


def test_a_subclass_of_a_node_needs_a_rule_of_its_own():
    class Doubled(neuron.IFNode):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Doubled(), nn.Linear(3, 4, bias=False))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(X_SEQ[0])
    # the output is no unit spike: nothing may be counted as an accumulation
    assert counter.total().mac == 12
    assert counter.total().sop_unit == 0


def test_a_coder_pays_for_its_steps_and_its_projection_for_each_plane(count_model):
    coder = ATMNCoder(2, time_steps=3, tau=0.5, fire_ratio=1.0)
    model = nn.Sequential(coder, nn.Linear(2, 5, bias=False))
    # 1.5: fires (rest 0.5, doubled 1.0), fires (rest 0), silent: + + 0
    # -1.2: fires (rest -0.2, doubled -0.4), silent (-0.8), silent: - 0 0
    counter = count_model(model, torch.tensor([[1.5, -1.2]]))
    neuron_row, projection = counter.rows()
    # 2 elements: 2·3 comparisons, 3 - 1 leaks, and 3 spikes
    assert neuron_row.ops == OpCounts(cmp=12, mul=4, add=3)
    assert neuron_row.dense_ops == OpCounts()
    # 2 and 1 spikes of 5 outputs; 2 rescalings of 5; once 2·5 in the dense layer
    assert projection.ops == OpCounts(
        dense_mac=10, ac_add=10, ac_sub=5, sop_unit=15, mul=10
    )
    (firing,) = counter.run().firing.values()
    assert (firing.pos, firing.neg) == ((1, 1, 0), (1, 0, 0))
    assert (firing.tau, firing.readout) == (0.5, "geometric")


def test_a_binary_coder_is_fed_at_every_step_and_its_projection_only_adds(count_model):
    coder = LIFCoder(2, time_steps=4, v_threshold=2.0)
    model = nn.Sequential(coder, nn.Linear(2, 5, bias=False))
    # in thresholds 1.5 and 0.6: the first fires at each step, the second at the third
    counter = count_model(model, torch.tensor([[3.0, 1.2]]))
    neuron_row, projection = counter.rows()
    # 2 elements: 4 comparisons; at 3 steps a leak and an input; and 5 spikes
    assert neuron_row.ops == OpCounts(cmp=8, mul=6, add=11)
    assert neuron_row.dense_ops == OpCounts()
    # float32: the input at 4 steps, the membrane out and in 3 times, 2 thresholds
    assert neuron_row.moved.activation == 4 * 2 * 4
    assert neuron_row.moved.neuron_state == 2 * 3 * 2 * 4
    # 5 spikes of 5 outputs; V / T folds into the weights, nothing is rescaled
    assert projection.ops == OpCounts(dense_mac=10, ac_add=25, sop_unit=25)
    (firing,) = counter.run().firing.values()
    assert (firing.pos, firing.neg) == ((1, 1, 2, 1), (0, 0, 0, 0))
    assert (firing.tau, firing.readout) == (2.0, "sum")


def test_an_analogue_binary_coder_has_no_price():
    coder = LIFCoder(2, surrogate_function=surrogate.ATan(spiking=False))
    with torch.no_grad(), SpikeOpCounter(coder) as counter:
        coder(torch.ones(1, 2))
    assert counter.run().uncounted == {"LIFCoder": 1}


def test_counting_a_coder_changes_neither_its_value_nor_its_gradient():
    coder = ATMNCoder(5, time_steps=4)
    results = []
    for counting in (False, True):
        torch.manual_seed(SEED)
        x = torch.randn(3, 5, requires_grad=True)
        if counting:
            with SpikeOpCounter(coder):
                y = coder(x)
        else:
            y = coder(x)
        y.square().sum().backward()
        results.append((y, x.grad, coder.neuron.a.grad.clone()))
        coder.zero_grad()
    for plain, counted in zip(*results, strict=True):
        assert torch.equal(plain, counted)


def test_an_analogue_coder_has_no_price():
    smooth = surrogate.ATan(spiking=False)
    coder = ATMNCoder(2, surrogate_function=smooth, gradient="surrogate")
    with torch.no_grad(), SpikeOpCounter(coder) as counter:
        coder(torch.ones(1, 2))
    assert counter.run().uncounted == {"ATMNCoder": 1}


def test_a_spiking_network_over_time_is_counted_as_executed(count_model):
    time_steps, batch = 3, 2
    net = nn.Sequential(
        layer.Conv2d(1, 2, 3, padding=1, bias=False, step_mode="m"),
        layer.BatchNorm2d(2, step_mode="m"),
        neuron.IFNode(step_mode="m"),
        layer.MaxPool2d(2, step_mode="m"),
        layer.Flatten(step_mode="m"),
        layer.Linear(8, 3, step_mode="m"),
        neuron.LIFNode(step_mode="m"),
    ).eval()
    net.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    nn.init.ones_(net[0].weight)
    x_seq = torch.ones(time_steps, batch, 1, 4, 4)
    counter = count_model(net, x_seq)
    conv, norm, first, pool, linear, second = counter.rows()
    images = time_steps * batch
    # analogue input: 4 corners · 4 + 8 edges · 6 + 4 inner · 9 taps = 100, 2 channels
    assert conv.ops == OpCounts(dense_mac=200 * images, mac=200 * images)
    # 2 · 4 · 4 values an image
    assert norm.ops == OpCounts(mul=32 * images, add=32 * images)
    # every sum is at least 4 and the norm starts as the identity: all fire at all steps
    assert first.ops == OpCounts(add=64 * images, cmp=32 * images)
    # 8 windows of 4
    assert pool.ops == OpCounts(cmp=24 * images)
    # 8 spikes an image reaching 3 outputs, and 3 biases
    assert linear.ops == OpCounts(
        dense_mac=24 * images,
        ac_add=24 * images,
        sop_unit=24 * images,
        bias_add=3 * images,
    )
    assert linear.dense_ops.mac == 24 * images
    assert [row.group for row in counter.rows()] == [
        "Conv2d", "BatchNorm2d", "neuron", "MaxPool2d", "Linear", "neuron",
    ]  # fmt: skip
    assert second.ops.cmp == 3 * images


@pytest.mark.parametrize(("scale_reset", "mul"), [(False, 2), (True, 3)])
def test_a_klif_node_pays_for_its_gain_its_relu_and_its_scaled_reset(
    count_model, scale_reset, mul
):
    node = fresh(neuron.KLIFNode(scale_reset=scale_reset, step_mode="m"))
    # gain 1: 0.75 and 1.0 as LIF, one of which fires
    counter = count_model(node, X_SEQ)
    assert counter.total() == OpCounts(add=SIZE + 1, mul=mul * SIZE, cmp=2 * SIZE)


def test_an_integer_neuron_fires_as_many_spikes_as_its_number_says(count_model):
    model = nn.Sequential(
        fresh(neuron.ILIFNode(step_mode="m")), nn.Linear(3, 5, bias=False)
    )
    x_seq = torch.tensor([[[6.0, 1.6, -1.0]], [[0.0, 0.0, 0.0]]])
    # tau = 4/3 keeps a quarter. 6: 4 of at most 4 levels, rest 2 -> 0.5 rounds to 0.
    # 1.6: 2, rest -0.4. -1: 0
    node, projection = count_model(model, x_seq).rows()
    assert node.ops == OpCounts(add=6 + 6, mul=6, cmp=4 * 6)
    # 6 unit spikes and 2 graded ones of 5 outputs
    assert projection.ops == OpCounts(
        dense_mac=30, ac_add=30, sop_unit=30, sop_graded=10
    )
    # a byte an element where 2 bits do not hold it
    assert projection.moved.spike_bitmap == 6


# ---- our operations without a module


def test_steps_called_directly_cost_what_the_node_costs(count_dense):
    def run(x_seq):
        return atmn_multi_step(
            x_seq,
            torch.zeros(1, 3),
            torch.ones(1),
            tau=2.0,
            surrogate_function=surrogate.ATan(),
        )[0]

    # as ATMNNode above: two +1 and one -1
    assert count_dense(run, X_SEQ) == OpCounts(add=SIZE + 3, mul=SIZE, cmp=2 * SIZE)


def test_a_code_called_directly_costs_what_the_coder_costs(count_dense):
    def run(x):
        return atmn_code(
            x,
            torch.ones(2),
            (1.0, 0.5, 0.25),
            tau=0.5,
            surrogate_function=None,
        )

    # as the coder above: + + 0 and - 0 0
    assert count_dense(run, torch.tensor([[1.5, -1.2]])) == OpCounts(
        cmp=12, mul=4, add=3
    )


def test_a_subclass_of_our_node_is_counted_by_its_operation(count_model):
    class Named(ATMNNode):
        pass

    model = nn.Sequential(fresh(Named(step_mode="m")), nn.Linear(3, 4, bias=False))
    node, projection = count_model(model, X_SEQ).rows()
    assert node.ops.cmp == 2 * SIZE
    # it declares its spikes itself: two +1 and one -1 of 4 outputs
    assert (projection.ops.ac_add, projection.ops.ac_sub) == (8, 4)


# ---- bytes


def test_a_node_reads_its_input_writes_spikes_and_keeps_its_membrane(count_model):
    (row,) = count_model(fresh(neuron.IFNode(step_mode="m")), X_SEQ).rows()
    # 6 floats in; 2 planes of 3 elements, 6 bits each: a byte; 6 membranes read and
    # written
    assert row.moved == ByteCounts(activation=24, spike_bitmap=2, neuron_state=48)
    assert row.dense_moved == ByteCounts()


def test_a_coder_keeps_its_membrane_between_its_steps_only(count_model):
    x = torch.tensor([[1.5, -1.2, 0.0, 0.5, 0.1]], dtype=torch.bfloat16)
    row = count_model(ATMNCoder(5, time_steps=3), x).rows()[0]
    assert row.moved == ByteCounts(
        activation=5 * 2,
        # 10 bits a plane: 2 bytes
        spike_bitmap=3 * 2,
        # twice between three steps, in float32
        neuron_state=2 * 2 * 5 * 4,
        # the thresholds
        weight_dense=5 * 4,
        weight_touched=5 * 4,
    )
