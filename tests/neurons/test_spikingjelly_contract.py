"""What SpikingJelly's own tools expect of a neuron."""

import pytest
import torch
from spikingjelly.activation_based import (
    base,
    functional,
    layer,
    monitor,
    neuron,
    surrogate,
)
from torch import nn

from mar_snn.neurons import ATMNNode


def net(step_mode="m"):
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Linear(5, 7), ATMNNode(), layer.Linear(7, 3), ATMNNode(1.5, 0.5)
    )
    functional.set_step_mode(model, step_mode)
    return model


def test_it_is_a_base_node():
    assert isinstance(ATMNNode(), neuron.BaseNode)
    assert ATMNNode().supported_step_mode() == ("s", "m")


def test_reset_net_puts_every_node_to_rest():
    model = net()
    first = model(torch.ones(4, 2, 5))
    functional.reset_net(model)
    assert [m.v for m in model if isinstance(m, ATMNNode)] == [0.0, 0.0]
    assert torch.equal(model(torch.ones(4, 2, 5)), first)


def test_step_modes_are_set_from_outside_and_agree():
    x_seq = torch.randn(4, 2, 5)
    many = net("m")(x_seq)
    model = net("s")
    assert torch.equal(torch.stack([model(x) for x in x_seq]), many)


def test_detach_net_allows_truncated_backward():
    model = net()
    for _ in range(2):
        model(torch.randn(2, 3, 5)).sum().backward()
        functional.detach_net(model)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_the_functional_forward_is_pure(step_mode):
    node = ATMNNode(num_channels=5, step_mode=step_mode)
    x = torch.randn(3, 2, 5) if step_mode == "m" else torch.randn(2, 5)
    v = torch.randn(2, 5)
    kept = v.clone()
    (spikes,), (v_next,) = node.functional_forward((x,), (v,))
    assert node.v == 0.0
    assert torch.equal(v, kept)
    assert not torch.equal(v_next, kept)
    node.v = kept
    assert torch.equal(node(x), spikes)
    assert torch.equal(node.v, v_next)


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_a_node_and_a_net_become_functions_of_their_state(step_mode):
    for module in (ATMNNode(step_mode=step_mode), net(step_mode)):
        x = torch.randn(3, 2, 5) if step_mode == "m" else torch.randn(2, 5)
        run = base.to_functional_forward(module)
        resting = base.extract_memories(module)
        (spikes,), states = run((x,), tuple(resting))
        assert base.extract_memories(module) == resting
        assert torch.equal(module(x), spikes)
        for ours, theirs in zip(base.extract_memories(module), states, strict=True):
            assert torch.equal(ours, theirs)


def test_memories_are_listed_and_loaded_back():
    node = ATMNNode()
    assert list(base.named_memories(node)) == [("v", 0.0)]
    base.load_memories(node, [torch.tensor([0.5])])
    node(torch.zeros(1))
    assert node.v.tolist() == [0.25]


def test_the_membrane_moves_with_the_module():
    node = ATMNNode()
    node(torch.ones(2))
    node.double()
    assert node.v.dtype == torch.float64
    node.reset()
    assert node.v == 0.0


def test_monitors_record_spikes_and_membranes():
    model = net()
    with (
        monitor.OutputMonitor(model, ATMNNode) as spikes,
        monitor.AttributeMonitor("v", False, model, ATMNNode) as membranes,
    ):
        out = model(torch.randn(4, 2, 5))
    assert torch.equal(spikes.records[1], out)
    assert torch.equal(spikes["3"][0], out)
    assert membranes.records[0].shape == (2, 7)


def test_a_single_step_container_unrolls_it():
    x_seq = torch.randn(4, 2, 5)
    node = ATMNNode(store_v_seq=True)
    spike_seq = functional.multi_step_forward(x_seq, node)
    assert torch.equal(spike_seq, ATMNNode(step_mode="m")(x_seq))
    assert node.v_seq.shape == (4, 2, 5)


def test_models_of_the_zoo_build_and_train_with_it():
    from spikingjelly.activation_based.model import spiking_resnet

    model = spiking_resnet.spiking_resnet18(
        spiking_neuron=ATMNNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        num_classes=3,
    )
    functional.set_step_mode(model, "m")
    model(torch.rand(2, 1, 3, 32, 32)).sum().backward()
    nodes = [module for module in model.modules() if isinstance(module, ATMNNode)]
    assert len(nodes) == 17
    assert all(node.a.grad is not None for node in nodes)
    assert len({id(node.a) for node in nodes}) == 17
