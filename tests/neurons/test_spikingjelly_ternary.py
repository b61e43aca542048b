"""At a frozen threshold the node is SpikingJelly's ternary neuron."""

import pytest
import torch
from spikingjelly.activation_based import neuron, surrogate

from mar_snn.neurons import ATMNNode
from tests.neurons.test_surrogate import ALL


def spikes_and_gradients(node, x_seq, v):
    """Spikes, membranes, and the gradients for the input and the first membrane."""
    x_seq, v = x_seq.clone().requires_grad_(), v.clone().requires_grad_()
    node.v = v
    spike_seq = node(x_seq)
    weights = torch.linspace(-1.0, 1.0, spike_seq.numel(), dtype=x_seq.dtype)
    loss = (spike_seq * weights.view_as(spike_seq)).sum() + node.v.square().sum()
    return spike_seq.detach(), node.v_seq, *torch.autograd.grad(loss, (x_seq, v))


def assert_same_as(twin, node):
    """Another formula of the leak, so in float64: no rounding decides over a spike."""
    x_seq = torch.randn(5, 3, 7, dtype=torch.float64) * 1.5
    v = torch.randn(3, 7, dtype=torch.float64)
    ours = spikes_and_gradients(node, x_seq, v)
    theirs = spikes_and_gradients(twin, x_seq, v)
    assert ours[0].unique().tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(ours[0], theirs[0])
    for mine, their in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(mine, their, rtol=0, atol=1e-12)


@pytest.mark.parametrize("surrogate_class", ALL)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("tau", [1.5, 2.0, 4.0])
@pytest.mark.parametrize("v_threshold", [0.7, 1.0])
def test_the_node_equals_ternary_lif(surrogate_class, detach_reset, tau, v_threshold):
    settings = {"detach_reset": detach_reset, "step_mode": "m", "store_v_seq": True}
    node = ATMNNode(tau, v_threshold, surrogate_function=surrogate_class(), **settings)
    twin = neuron.TernaryLIFNode(
        tau=tau / (tau - 1.0),
        decay_input=False,
        v_threshold=node.double().v_threshold.item(),
        v_reset=None,
        surrogate_function=surrogate_class(),
        **settings,
    )
    assert_same_as(twin, node.double())


def test_a_tau_of_one_is_ternary_if():
    settings = {"step_mode": "m", "store_v_seq": True, "v_reset": None}
    twin = neuron.TernaryIFNode(surrogate_function=surrogate.ATan(), **settings)
    node = ATMNNode(1.0, surrogate_function=surrogate.ATan(), **settings)
    assert_same_as(twin, node.double())


@pytest.mark.parametrize("surrogate_class", [surrogate.Sigmoid, surrogate.Rect])
def test_the_continuous_mode_is_the_same_too(surrogate_class):
    smooth = surrogate_class(spiking=False)
    settings = {"step_mode": "m", "v_reset": None, "surrogate_function": smooth}
    twin = neuron.TernaryLIFNode(tau=2.0, decay_input=False, **settings)
    node = ATMNNode(2.0, **settings)
    x_seq = torch.randn(4, 11, dtype=torch.float64)
    torch.testing.assert_close(node(x_seq), twin(x_seq), rtol=0, atol=1e-12)


def test_nan_and_infinity_fire_the_same():
    # one step only: SpikingJelly's v - v / tau makes NaN of an infinite membrane
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    twin = neuron.TernaryLIFNode(tau=2.0, decay_input=False, v_reset=None)
    node = ATMNNode(2.0)
    assert node(x).tolist() == twin(x).tolist() == [0.0, 1.0, -1.0]
    torch.testing.assert_close(node.v, twin.v, rtol=0, atol=0, equal_nan=True)
