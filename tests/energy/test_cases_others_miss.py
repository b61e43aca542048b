"""Cases that released counters are known to get wrong, worked by hand.

The counters: syops 0.0.5, SpikingJelly 2.0.0's op_counter, NeuroBench 2.3, sinabs 3.1.
"""

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.neurons.coder import ATMNCoder


def restarting(net):
    """The net in eval mode, its neurons at rest before every call."""
    net.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
    return net.eval()


def test_the_time_axis_is_not_taken_for_the_batch(count_model):
    # T = 4, one sample, x = [2.2, 0.6] at every step, tau = 2: h = v + (x - v) / 2.
    # Neuron 0: 1.1 fires, resets to 0, so it fires at every step.
    # Neuron 1: 0.3, 0.45, 0.525, 0.5625: silent.
    net = restarting(
        nn.Sequential(
            neuron.LIFNode(tau=2.0, step_mode="m"),
            layer.Linear(2, 3, bias=False, step_mode="m"),
        )
    )
    counter = count_model(net, torch.tensor([[[2.2, 0.6]]]).repeat(4, 1, 1))
    nodes, linear = counter.rows()
    # 4 spikes of 3 outputs: 12, not 12 / T
    assert linear.ops == OpCounts(dense_mac=24, ac_add=12, sop_unit=12)
    # 8 elements over the steps: 8 mul, 8 add, 8 cmp, and 4 resets
    assert nodes.ops == OpCounts(mul=8, add=12, cmp=8)


def test_a_rate_is_over_all_steps_and_samples_and_not_the_first(count_model):
    # IF, threshold 1, x = 0.6: h = 0.6, 1.2 (fires, to 0), 0.6, 1.2 (fires)
    net = restarting(neuron.IFNode(step_mode="m"))
    counter = count_model(net, torch.full((4, 1, 1), 0.6))
    (firing,) = counter.run().firing.values()
    assert firing.rate_by_step == [0.0, 1.0, 0.0, 1.0]
    assert firing.rate == 0.5


def test_outputs_that_happen_to_be_zero_or_one_do_not_change_their_class(count_dense):
    relu_and_project = nn.Sequential(nn.ReLU(), nn.Linear(4, 3, bias=False))
    for x in ([0.0, 1.0, 0.0, 1.0], [0.0, 1.5, 0.0, 1.0], [0.3, 0.7, 0.3, 0.7]):
        counts = count_dense(relu_and_project, torch.tensor([x]))
        assert counts == OpCounts(dense_mac=12, mac=12, cmp=4)


def test_scaled_spikes_that_nobody_declares_are_multiplied(count_dense):
    x = 0.25 * torch.tensor([[1.0, -1, 0, 0]])
    assert count_dense(nn.Linear(4, 3, bias=False), x).mac == 12


def test_the_threshold_of_a_coder_folds_into_the_next_layer(count_model):
    # V = 0.25 for each channel; x = ±V fires once, in the first step, tau = 1
    coder = ATMNCoder(4, time_steps=1, v_threshold=0.25, fire_ratio=1.0)
    model = nn.Sequential(coder, nn.Linear(4, 3, bias=False))
    x = 0.25 * torch.tensor([[1.0, -1, 0, 0]])
    row = count_model(model, x).rows()[-1]
    # two spikes of three outputs, and no multiplication
    assert row.ops == OpCounts(dense_mac=12, ac_add=3, ac_sub=3, sop_unit=6)


def test_every_sample_of_a_batch_adds_its_bias_and_its_interpolation(count_dense):
    layer = nn.Linear(4, 3)
    one = count_dense(layer, torch.rand(1, 4))
    four = count_dense(layer, torch.rand(4, 4))
    assert (one.bias_add, four.bias_add) == (3, 12)


def test_a_projection_used_by_its_weight_and_not_by_its_call_is_counted(count_model):
    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.dt_proj = nn.Linear(4, 3, bias=False)

        def forward(self, x):
            return x @ self.dt_proj.weight.T

    (row,) = count_model(Bypass(), torch.rand(2, 4)).rows()
    assert (row.name, row.ops) == ("", OpCounts(dense_mac=24, mac=24))


def test_a_cancelling_pair_of_planes_is_not_collapsed_before_it_is_counted(
    decode, count_model
):
    # 4 inputs of 8 outputs over 2 planes: 7 spikes, of which 3 pairs would cancel
    planes = torch.tensor([[[1.0, 1, -1, 1]], [[-1.0, -1, 1, 0]]])
    model = nn.Sequential(decode("sum"), nn.Linear(4, 8, bias=False))
    total = count_model(model, planes).total()
    assert (total.ac_add, total.ac_sub) == (4 * 8, 3 * 8)
    collapsed = planes.sum(0)
    assert int(collapsed.abs().sum()) * 8 == 8  # what a look at the value would say


def test_layers_are_weighted_by_their_fan_out_and_not_by_a_mean_rate(count_spikes):
    # 10 of 100 inputs fire into 10 outputs, 5 of 10 into 1000: 100 + 5000
    first = count_spikes(nn.Linear(100, 10, bias=False), [[1.0] * 10 + [0.0] * 90])
    second = count_spikes(nn.Linear(10, 1000, bias=False), [[1.0] * 5 + [0.0] * 5])
    assert first.sop_unit + second.sop_unit == 5100


def test_attention_of_spikes_is_counted_without_any_module(fire, call, count_model):
    def attend(x):
        return F.linear(x, torch.eye(3)) @ torch.ones(3, 2)

    # the identity projects 2 spikes to 3 outputs; its result is a sum, no spike: 2·3·2
    model = nn.Sequential(fire(), call(attend))
    total = count_model(model, torch.tensor([[1.0, 0, 0], [0, 0, -1]])).total()
    assert total == OpCounts(dense_mac=18 + 12, mac=12, ac_add=3, ac_sub=3, sop_unit=6)


class NoReading(TorchDispatchMode):
    """Fails where a value is read from a device, or a size depends on values."""

    WAITS = frozenset(
        getattr(torch.ops.aten, name)
        for name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2")
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in self.WAITS:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_read_from_the_device_before_the_report(mode):
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, stride=2),
        neuron.TernaryLIFNode(),
        layer.Conv2d(4, 4, 3, padding=1, groups=2),
        layer.BatchNorm2d(4),
        neuron.IFNode(),
        layer.MaxPool2d(2),
        layer.Flatten(),
        ATMNCoder(4, time_steps=3),
        layer.Linear(4, 2),
    ).eval()
    x = 20 * torch.randn(3, 2, 4, 4)
    with pytest.raises(AssertionError, match="waits for the device"), NoReading():
        x.sum().item()
    with mode(), NoReading(), SpikeOpCounter(net) as counter:
        net(x)
    assert counter.total().sop_unit > 0


def test_counting_runs_few_operations_of_its_own():
    class Executed(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.calls += 1
            return func(*args, **kwargs or {})

    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(10)))
    with torch.no_grad(), Executed() as plain:
        model(torch.rand(2, 4))
    with torch.no_grad(), Executed() as counted, SpikeOpCounter(model):
        model(torch.rand(2, 4))
    # what holds no spikes is counted from shapes alone
    assert counted.calls == plain.calls
