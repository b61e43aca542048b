"""The two-sided surrogate of every surrogate of SpikingJelly."""

import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons.surrogate import (
    KERNEL_SURROGATES,
    emits_spikes,
    kernel_surrogate,
    ternary_spike,
)

#: all that have a gradient and stand for a step function
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
#: one fires by chance, from probabilities; the other counts, and not to one
OTHERS = [surrogate.PoissonPass, surrogate.MultiLevelSpikeCount]
H = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
ONE = torch.ones(1, dtype=torch.float64)


def test_no_surrogate_of_spikingjelly_is_left_out():
    base = surrogate.SurrogateFunctionBase
    found = {
        kind
        for kind in vars(surrogate).values()
        if isinstance(kind, type) and issubclass(kind, base) and kind is not base
    }
    assert found == {*ALL, *OTHERS}
    assert {kind.__name__ for kind in ALL} > set(KERNEL_SURROGATES)


@pytest.mark.parametrize("surrogate_class", ALL)
def test_any_surrogate_fires_at_both_thresholds(surrogate_class):
    spike = ternary_spike(H, ONE, surrogate_class())
    assert spike.tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("surrogate_class", ALL)
def test_any_surrogate_passes_a_gradient_to_the_membrane_and_the_threshold(
    surrogate_class,
):
    h, threshold = H.clone().requires_grad_(), ONE.clone().requires_grad_()
    (ternary_spike(h, threshold, surrogate_class()) * H).sum().backward()
    assert h.grad.isfinite().all()
    assert h.grad.abs().sum() > 0
    assert threshold.grad.isfinite().all()


def test_the_continuous_primitive_is_differentiated_itself():
    # clip(h - 1 + 1/2) - clip(-h - 1 + 1/2) at h = 1
    spike = ternary_spike(ONE, ONE, surrogate.Rect(spiking=False))
    assert spike.item() == 0.5


@pytest.mark.parametrize("name", KERNEL_SURROGATES)
def test_kernels_know_these_surrogates_by_name_and_width(name):
    surrogate_function = getattr(surrogate, name)(alpha=3)
    assert kernel_surrogate(surrogate_function) == (name, 3.0)
    surrogate_function.set_spiking_mode(False)
    assert kernel_surrogate(surrogate_function) is None


def test_kernels_know_no_subclass_no_other_width_and_no_plain_function():
    class ATan(surrogate.ATan):
        """Might do anything."""

    learnable = surrogate.ATan()
    learnable.alpha = torch.ones(1)
    for unknown in (ATan(), learnable, surrogate.Rect(), torch.square):
        assert kernel_surrogate(unknown) is None


def test_a_plain_function_is_a_surrogate():
    assert ternary_spike(ONE, ONE, lambda x: (x >= 0).to(x.dtype)).item() == 1.0
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
