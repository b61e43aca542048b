"""The binary LIF coder: by hand, against SpikingJelly step by step, its contract."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron, surrogate

from mar_snn.neurons import LIFCoder, listen_to_spikes
from tests.seed import SEED

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def coder_with_thresholds(num_channels=7, **settings):
    torch.manual_seed(SEED)
    coder = LIFCoder(num_channels, **settings)
    coder.v_threshold = torch.rand(num_channels) + 0.3
    return coder


def test_half_of_the_membrane_leaks_at_each_step():
    # V = 2, tau = 2; in thresholds: 0.6; 0.3 + 0.6 = 0.9; 1.05 fires, 0.05 is left;
    # 0.625. And 1.5 fires; 0.25 + 1.5 fires; 0.375 + 1.5 fires; 0.4375 + 1.5 fires
    coder = LIFCoder(3, v_threshold=2.0)
    x = torch.tensor([1.2, 3.0, -3.0])
    assert coder.encode(x).T.tolist() == [[0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]]
    assert coder(x).tolist() == [0.5, 2.0, 0.0]


def test_without_a_leak_the_rate_counts_whole_thresholds():
    # tau = 1, in thresholds: 0.6; 1.2 fires, 0.2 is left; 0.8; 1.4 fires
    coder = LIFCoder(1, tau=1.0, v_threshold=2.0)
    assert coder.encode(torch.tensor([1.2])).flatten().tolist() == [0, 1, 0, 1]
    assert coder(torch.tensor([1.2])).tolist() == [1.0]


def test_at_the_threshold_the_gradient_is_half_of_atans_alpha():
    # one step: y = V sg(x / V - 1), dy / dx = sg'(0) = alpha / 2 for any V
    for alpha in (2.0, 3.0):
        coder = LIFCoder(
            1,
            time_steps=1,
            v_threshold=0.25,
            surrogate_function=surrogate.ATan(alpha=alpha),
        )
        x = torch.tensor([0.25], requires_grad=True)
        coder(x).backward()
        assert x.grad.item() == alpha / 2


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("tau", [2.0, 4.0])
def test_it_is_spikingjellys_neuron_step_by_step_with_its_gradient(tau, detach_reset):
    coder = coder_with_thresholds(
        time_steps=5, tau=tau, detach_reset=detach_reset
    ).double()
    node = neuron.LIFNode(
        tau=tau / (tau - 1),  # keeps 1 - 1 / tau
        decay_input=False,
        v_reset=None,
        surrogate_function=surrogate.ATan(),
        detach_reset=detach_reset,
        step_mode="s",
    )
    x = (2 * torch.randn(3, 7, dtype=torch.float64)).requires_grad_()
    grad = torch.randn(3, 7, dtype=torch.float64)
    spikes = [node(x / coder.v_threshold) for _ in range(5)]
    expected = coder.v_threshold * torch.stack(spikes).mean(0)
    assert torch.equal(coder.encode(x), torch.stack(spikes))
    torch.testing.assert_close(coder(x), expected)
    (wanted,) = torch.autograd.grad(expected, x, grad)
    (found,) = torch.autograd.grad(coder(x), x, grad)
    assert wanted.abs().max() > 0.1
    torch.testing.assert_close(found, wanted)
    functional.reset_net(node)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_the_value_is_the_decoded_spikes_to_the_bit(tau, dtype):
    coder = coder_with_thresholds(time_steps=5, tau=tau)
    x = (torch.randn(3, 11, 7) * 2).to(dtype)
    decoded, spike_seq = coder(x), coder.encode(x)
    assert decoded.dtype == spike_seq.dtype == dtype
    assert spike_seq.shape == (5, 3, 11, 7)
    assert spike_seq.unique().tolist() == [0.0, 1.0]
    assert torch.equal(decoded, coder.decode(spike_seq))


@pytest.mark.usefixtures("float64")
def test_the_read_out_is_the_weighted_sum_that_the_counter_is_told():
    coder = coder_with_thresholds(time_steps=3)
    x = torch.randn(5, 7)
    planes = sum(w * s for w, s in zip(coder.weights, coder.encode(x), strict=True))
    torch.testing.assert_close(coder(x), coder.v_threshold * planes)
    assert coder.readout == "sum"


def test_a_code_at_other_thresholds_is_that_of_a_coder_that_has_them():
    coder, other = LIFCoder(7), coder_with_thresholds()
    x = torch.randn(5, 7)
    assert torch.equal(coder.code(x, other.v_threshold), other(x))
    assert not torch.equal(coder(x), other(x))


def test_calls_do_not_see_each_other():
    coder = coder_with_thresholds()
    x = torch.randn(5, 7)
    first = coder(x)
    coder(torch.randn(2, 7))
    assert torch.equal(coder(x), first)


def test_the_thresholds_are_saved_and_do_not_train():
    coder = coder_with_thresholds()
    assert not list(coder.parameters())
    other = LIFCoder(7)
    other.load_state_dict(coder.state_dict())
    assert torch.equal(other.v_threshold, coder.v_threshold)


def test_the_spikes_are_declared_while_somebody_listens():
    coder, heard = coder_with_thresholds(), []
    x = torch.randn(5, 7, requires_grad=True)
    with listen_to_spikes(heard.append):
        decoded = coder(x)
    coder(x)
    (event,) = heard
    assert event.neuron is coder
    assert event.output is decoded
    assert torch.equal(event.spike_seq, coder.encode(x))
    assert not event.spike_seq.requires_grad


def test_an_analogue_surrogate_declares_nothing():
    coder, heard = LIFCoder(2, surrogate_function=surrogate.ATan(spiking=False)), []
    with listen_to_spikes(heard.append):
        assert coder(torch.ones(2)).unique().item() not in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert not heard


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"time_steps": 0}, "time_steps must be at least 1, got 0"),
        ({"tau": 0.5}, "tau must be at least 1, got 0.5; 1 keeps all"),
        ({"tau": float("nan")}, "tau must be at least 1, got nan"),
        ({"v_threshold": 0.0}, "v_threshold must be above zero, got 0.0"),
    ],
)
def test_what_no_lif_neuron_can_be_is_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        LIFCoder(3, **wrong)


def test_input_and_spikes_that_do_not_fit_are_refused():
    coder = LIFCoder(3)
    with pytest.raises(
        ValueError, match=r"3 channels on the last axis, got .*\(2, 4\)"
    ):
        coder(torch.ones(2, 4))
    with pytest.raises((ValueError, TypeError), match=r"int64|Float"):
        coder(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"floating-point .* got torch.int64"):
        coder._encode(torch.ones(2, 3, dtype=torch.int64), coder.v_threshold)
    with pytest.raises(ValueError, match=r"spikes of 4 time steps .*\(3, 2, 3\)"):
        coder.decode(torch.ones(3, 2, 3))


def test_its_line_says_what_it_is():
    assert repr(LIFCoder(3, tau=1.0)).startswith(
        "LIFCoder(\n  3, time_steps=4, tau=1\n"
    )
