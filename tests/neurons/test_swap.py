"""Swapping neurons: what is carried over, converted, refused and left alone."""

import copy
import gc

import pytest
import torch
from spikingjelly.activation_based import (
    functional,
    layer,
    memopt,
    monitor,
    neuron,
    surrogate,
)
from torch import nn

from mar_snn.neurons import ATMNNode, replace_neurons

SOFT = {"v_reset": None}


def swapped(node, **settings):
    model = nn.Sequential(node)
    assert replace_neurons(model, **settings) == 1
    return model[0]


def test_the_retained_fraction_is_the_same():
    # SpikingJelly's LIF keeps 1 - 1/4, an IF everything, a PLIF 1 - 1/3
    lif = swapped(neuron.LIFNode(tau=4.0, **SOFT))
    assert 1.0 / lif.tau == pytest.approx(0.75)
    assert swapped(neuron.IFNode(**SOFT)).tau == 1.0
    plif = swapped(neuron.ParametricLIFNode(init_tau=3.0, **SOFT))
    assert 1.0 / plif.tau == pytest.approx(2 / 3)


def test_a_decayed_input_is_folded_into_the_threshold():
    settings = {"tau": 4.0, "v_threshold": 0.5, **SOFT}
    decayed = swapped(neuron.LIFNode(decay_input=True, **settings))
    assert decayed.v_threshold.item() == pytest.approx(2.0)
    plain = swapped(neuron.LIFNode(decay_input=False, **settings))
    assert plain.v_threshold.item() == pytest.approx(0.5)
    plif = neuron.ParametricLIFNode(init_tau=4.0, v_threshold=0.5, **SOFT)
    assert swapped(plif).v_threshold.item() == pytest.approx(2.0)


@pytest.mark.parametrize(
    "node",
    [
        neuron.IFNode(v_threshold=0.8, **SOFT),
        neuron.LIFNode(tau=2.0, decay_input=True, v_threshold=0.5, **SOFT),
        neuron.LIFNode(tau=4.0, decay_input=True, v_threshold=0.3, **SOFT),
        neuron.LIFNode(tau=1.5, decay_input=False, v_threshold=0.7, **SOFT),
        neuron.ParametricLIFNode(init_tau=3.0, v_threshold=0.5, **SOFT),
    ],
    ids=lambda node: type(node).__name__,
)
def test_positive_spikes_are_identical_while_nothing_falls_below_minus_v(node):
    x_seq = torch.rand(12, 3, 7) * 1.4 - 0.1
    model = nn.Sequential(copy.deepcopy(node))
    functional.set_step_mode(model, "m")
    expected = model(x_seq)
    assert replace_neurons(model) == 1
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(model(x_seq), expected)


def test_everything_else_is_carried_over():
    node = neuron.LIFNode(
        surrogate_function=surrogate.ATan(alpha=3.0),
        detach_reset=True,
        step_mode="m",
        store_v_seq=True,
        **SOFT,
    ).eval()
    new = swapped(node)
    assert isinstance(new, ATMNNode)
    assert new.surrogate_function is node.surrogate_function
    assert (new.detach_reset, new.step_mode, new.store_v_seq) == (True, "m", True)
    assert not new.training
    assert new.v == 0.0


def test_the_device_is_carried_over():
    model = nn.Sequential(nn.Linear(2, 2), neuron.IFNode(**SOFT)).to("meta")
    replace_neurons(model)
    assert model[1].a.device.type == "meta"


def test_arguments_override_what_is_carried_over():
    new = swapped(
        neuron.LIFNode(**SOFT), tau=0.5, v_threshold=3.0, num_channels=2, fire_ratio=0.5
    )
    assert (new.tau, new.fire_ratio, new.num_channels) == (0.5, 0.5, 2)
    assert new.v_threshold.tolist() == pytest.approx([3.0, 3.0])


def test_a_surrogate_given_once_is_not_shared():
    model = nn.Sequential(neuron.IFNode(**SOFT), neuron.IFNode(**SOFT))
    replace_neurons(model, surrogate_function=surrogate.ATan())
    assert model[0].surrogate_function is not model[1].surrogate_function


def test_another_class_can_be_put_in():
    class Mine(ATMNNode):
        pass

    assert type(swapped(neuron.IFNode(**SOFT), neuron_class=Mine)) is Mine


def test_nodes_are_found_at_any_depth_and_counted():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fire = neuron.IFNode(**SOFT)
            self.spare = None
            self.layers = nn.ModuleList([neuron.LIFNode(**SOFT)])
            self.by_name = nn.ModuleDict({"x": neuron.ParametricLIFNode(**SOFT)})
            self.container = layer.MultiStepContainer(neuron.IFNode(**SOFT))
            self.register_module("empty", None)

    model = nn.Sequential(Block(), nn.ReLU(), Block())
    assert replace_neurons(model) == 8
    kinds = {type(module) for module in model.modules()}
    assert not kinds & {neuron.IFNode, neuron.LIFNode, neuron.ParametricLIFNode}
    assert replace_neurons(model) == 0


def test_a_shared_node_is_replaced_once_and_stays_shared():
    shared = neuron.IFNode(**SOFT)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential(shared)})
    assert replace_neurons(model) == 1
    assert model["a"] is model["b"] is model["c"][0]
    assert isinstance(model["a"], ATMNNode)


def test_monitors_that_were_attached_before_go_on():
    net = nn.Sequential(layer.Linear(3, 2), neuron.LIFNode(**SOFT))
    functional.set_step_mode(net, "m")
    kind = neuron.LIFNode
    monitors = [
        monitor.OutputMonitor(net, kind),
        monitor.InputMonitor(net, kind),
        monitor.AttributeMonitor("v", False, net, kind),
        monitor.GradOutputMonitor(net, kind),
        monitor.GradInputMonitor(net, kind),
    ]
    replace_neurons(net)
    x_seq = torch.randn(4, 1, 3)
    spike_seq = net(x_seq)
    spike_seq.sum().backward()
    output, fed, v, grad_output, grad_input = (m.records[0] for m in monitors)
    assert torch.equal(output, spike_seq)
    assert torch.equal(fed, net[0](x_seq))
    assert torch.equal(v, net[1].v)
    assert torch.equal(grad_output, torch.ones_like(spike_seq))
    assert grad_input.shape == fed.shape
    for each in monitors:
        each.close()
    functional.reset_net(net)
    net(x_seq).sum().backward()
    assert [len(each.records) for each in monitors] == [1] * 5


def test_hooks_of_every_kind_are_those_of_the_new_node():
    node, called = neuron.IFNode(**SOFT), []

    def note(name):
        return lambda module, *_: called.append((name, type(module).__name__))

    node.register_forward_pre_hook(note("before"), with_kwargs=True)
    handle = node.register_forward_hook(note("after"), with_kwargs=True)
    node.register_forward_hook(note("always"), always_call=True)
    node.register_state_dict_pre_hook(note("saving"))
    node.register_state_dict_post_hook(note("saved"))
    node.register_load_state_dict_pre_hook(note("loading"))
    node.register_load_state_dict_post_hook(note("loaded"))
    net = nn.ModuleDict({"a": node, "b": node})
    del node  # torch remembers the module of a hook weakly
    replace_neurons(net)
    gc.collect()
    net["b"](torch.ones(1))
    net["a"].load_state_dict(net["a"].state_dict())
    handle.remove()
    net["a"](torch.ones(1))
    forward = ["before", "after", "always"]
    saved = ["saving", "saved", "loading", "loaded"]
    expected = [*forward, *saved, "before", "always"]
    assert called == [(name, "ATMNNode") for name in expected]


def test_a_subclass_with_the_same_dynamics_is_replaced_and_others_are_left():
    class Named(neuron.LIFNode):
        def extra_repr(self):
            return "mine"

    model = nn.Sequential(
        Named(**SOFT), neuron.ILIFNode(), neuron.TernaryLIFNode(), neuron.KLIFNode()
    )
    assert replace_neurons(model) == 1
    assert [type(module).__name__ for module in model] == [
        "ATMNNode",
        "ILIFNode",
        "TernaryLIFNode",
        "KLIFNode",
    ]


def test_a_hard_reset_is_refused_and_nothing_is_changed():
    model = nn.Sequential(neuron.IFNode(**SOFT), neuron.LIFNode())
    with pytest.raises(
        ValueError,
        match=r"'1' of Sequential is a LIFNode that resets to v_reset=0.0.*"
        r"v_reset=None.*soft_reset=True",
    ):
        replace_neurons(model)
    assert type(model[0]) is neuron.IFNode


def test_a_hard_reset_is_given_up_on_request():
    new = swapped(neuron.LIFNode(), soft_reset=True)
    assert isinstance(new, ATMNNode)
    assert new.v_reset is None


def test_a_node_alone_cannot_be_replaced_inside_itself():
    with pytest.raises(ValueError, match=r"net is itself a LIFNode.*contains it"):
        replace_neurons(neuron.LIFNode(**SOFT))


def test_reset_net_finds_the_new_nodes():
    # SpikingJelly remembers which modules to reset, of the model and of its parts
    model = nn.Sequential(nn.Sequential(neuron.IFNode(**SOFT)))
    old = model[0][0]
    functional.reset_net(model)
    functional.reset_net(model[0])
    replace_neurons(model)
    for part in (model, model[0]):
        model(torch.ones(2))
        assert isinstance(model[0][0].v, torch.Tensor)
        functional.reset_net(part)
        assert model[0][0].v == 0.0
    assert old.v == 0.0


def test_a_swapped_model_trains():
    model = nn.Sequential(layer.Linear(5, 3), neuron.LIFNode(**SOFT))
    functional.set_step_mode(model, "m")
    replace_neurons(model)
    model(torch.randn(4, 2, 5)).sum().backward()
    assert model[1].a.grad.abs().item() > 0
    assert model[0].weight.grad.abs().sum() > 0


def wrapped_by_memopt(*inner, compressor=None):
    wrapped = memopt.checkpoint_module(nn.Sequential(*inner), compressor=compressor)
    return nn.Sequential(neuron.IFNode(**SOFT), wrapped)


def test_a_binary_tool_in_the_model_is_warned_of():
    model = wrapped_by_memopt(
        nn.Linear(2, 2), compressor=memopt.BooleanSpikeCompressor()
    )
    with pytest.warns(
        UserWarning, match=r"BooleanSpikeCompressor does not give.*\(at '1'\)"
    ):
        assert replace_neurons(model) == 1


@pytest.mark.filterwarnings("error")
def test_nothing_is_warned_of_while_no_neuron_becomes_ternary():
    model = nn.Sequential(neuron.IFNode(**SOFT), layer.SpikeCountToBinary(num_slots=2))
    assert replace_neurons(model, lambda **_: neuron.ILIFNode()) == 1
    assert replace_neurons(model) == 0


@pytest.mark.parametrize("node", [neuron.IFNode(**SOFT), neuron.LIFNode(**SOFT)])
def test_a_node_inside_a_checkpoint_is_refused_and_nothing_is_changed(node):
    # SpikingJelly binds the node itself: it would go on running
    model = wrapped_by_memopt(nn.Linear(2, 2), node)
    with pytest.raises(
        ValueError, match="replace the neurons first, then call optimize_memory"
    ):
        replace_neurons(model)
    assert type(model[0]) is neuron.IFNode
    assert [module for module in model.modules() if module is node]


def test_a_checkpoint_around_replaced_neurons_runs_them():
    model = nn.Sequential(neuron.IFNode(**SOFT))
    replace_neurons(model)
    model[0] = memopt.checkpoint_module(model[0])
    assert model(torch.tensor([-5.0])).tolist() == [-1.0]
