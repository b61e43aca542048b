import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons import ATMNCoder


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_firing_rate_counts_the_encoded_spikes(tau):
    coder = ATMNCoder(3, time_steps=4, tau=tau, v_threshold=0.7)
    x = torch.randn(5, 2, 3)
    rate = coder.firing_rate(x)
    torch.testing.assert_close(rate, coder.encode(x).abs().mean((0, -1)))
    assert 0 < rate.min() < rate.max() < 1


def test_the_gradient_of_the_firing_rate_is_the_surrogates():
    """One step at threshold V: d rate/dx = sign(x) g(|x|/V - ρ) / (V C), for one V."""
    coder = ATMNCoder(2, time_steps=1, fire_ratio=1.0, v_threshold=2.0)
    coder.neuron.surrogate_function = surrogate.PiecewiseQuadratic(1.0)
    x = torch.tensor([[1.5, -2.5]], requires_grad=True)
    coder.firing_rate(x).sum().backward()
    # both are a quarter of V from the threshold: g(1/4) = 1 - 1/4; the far threshold
    # lies beyond the surrogate's reach
    torch.testing.assert_close(x.grad, torch.tensor([[0.75, -0.75]]) / (2 * 2))
    # in units of the threshold da moves x/V by -x/V: 0.75 (-0.75 - 1.25) / 2
    torch.testing.assert_close(coder.neuron.a.grad, torch.tensor([-0.28125, -0.46875]))


def test_the_firing_rate_refuses_other_channels():
    with pytest.raises(ValueError, match="expected 3 channels"):
        ATMNCoder(3).firing_rate(torch.ones(2))
