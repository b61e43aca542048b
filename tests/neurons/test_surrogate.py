"""The two-sided surrogate and its derivative, for every surrogate of SpikingJelly."""

import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons.surrogate import emits_spikes, surrogate_backward, ternary_spike

ALL = [
    surrogate.PiecewiseQuadratic,
    surrogate.PiecewiseExp,
    surrogate.Sigmoid,
    surrogate.SoftSign,
    surrogate.SuperSpike,
    surrogate.ATan,
    surrogate.NonzeroSignLogAbs,
    surrogate.Erf,
    surrogate.PiecewiseLeakyReLU,
    surrogate.SquarewaveFourierSeries,
    surrogate.S2NN,
    surrogate.QPseudoSpike,
    surrogate.LeakyKReLU,
    surrogate.FakeNumericalGradient,
    surrogate.LogTailedReLU,
    surrogate.DeterministicPass,
    surrogate.Rect,
]
H = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


@pytest.mark.parametrize("surrogate_class", ALL)
def test_any_surrogate_fires_at_both_thresholds(surrogate_class):
    spike = ternary_spike(H, ONE, surrogate_class())
    assert spike.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("surrogate_class", ALL)
def test_the_derivative_is_the_one_that_autograd_uses(surrogate_class):
    torch.manual_seed(0)
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(50, dtype=torch.float64)
    surrogate_function = surrogate_class()
    (expected,) = torch.autograd.grad(surrogate_function(x), x, grad)
    with torch.no_grad():
        ours = surrogate_backward(surrogate_function, grad, x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert ours.abs().sum() > 0


def test_the_derivative_is_worked_out_by_hand():
    # Sigmoid: alpha / 4 at zero; Rect: alpha inside half a unit
    zero, grad = torch.zeros(1), torch.full((1,), 3.0)
    assert surrogate_backward(surrogate.Sigmoid(4.0), grad, zero).item() == 3.0
    assert surrogate_backward(surrogate.Rect(2.0), grad, zero).item() == 6.0


def test_the_continuous_primitive_is_differentiated_itself():
    # LeakyKReLU is 0.25 x below zero and 2 x above
    smooth = surrogate.LeakyKReLU(spiking=False, leak=0.25, k=2.0)
    x = torch.tensor([-1.0, 1.0])
    assert smooth(x).tolist() == [-0.25, 2.0]
    assert surrogate_backward(smooth, torch.ones(2), x).tolist() == [0.25, 2.0]
    # clip(h - 1 + 1/2) - clip(-h - 1 + 1/2) at h = 1
    spike = ternary_spike(ONE, ONE, surrogate.Rect(spiking=False))
    assert spike.item() == 0.5


def test_a_plain_function_is_a_surrogate():
    assert surrogate_backward(torch.square, torch.ones(2), torch.ones(2)).tolist() == [
        2.0,
        2.0,
    ]
    assert emits_spikes(torch.square)


def test_spiking_says_whether_spikes_come_out():
    surrogate_function = surrogate.ATan()
    assert emits_spikes(surrogate_function)
    surrogate_function.set_spiking_mode(False)
    assert not emits_spikes(surrogate_function)


@pytest.mark.parametrize("surrogate_class", [surrogate.Sigmoid, surrogate.ATan])
def test_the_gradient_is_even_in_the_membrane(surrogate_class):
    h = H.clone().requires_grad_()
    ternary_spike(h, ONE, surrogate_class()).sum().backward()
    torch.testing.assert_close(h.grad, h.grad.flip(0), rtol=0, atol=1e-12)
    assert h.grad[5] > h.grad[3] > 0
