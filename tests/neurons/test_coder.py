"""The coder: its value, its spikes, its gradient, its memory."""

import math

import pytest
import torch
from spikingjelly.activation_based import functional, surrogate

from mar_snn.neurons import ATMNCoder, ATMNNode, listen_to_spikes
from mar_snn.neurons.reference import atmn_code
from tests.seed import SEED

LEAKS = [(0.5, 2 / 3), (0.5, 1.0), (1.0, 1.0), (2.0, 0.9), (1.3, 0.5)]


def coder_with_thresholds(num_channels=7, **settings):
    torch.manual_seed(SEED)
    coder = ATMNCoder(num_channels, **settings)
    coder.neuron.v_threshold = torch.rand(num_channels) + 0.3
    return coder


def value_and_gradients(run, x, a, grad):
    """What `run` makes of `x`, and its gradients for `x` and for the log-threshold."""
    x = x.detach().requires_grad_()
    decoded = run(x)
    return decoded, *torch.autograd.grad(decoded, (x, a), grad)


@pytest.mark.usefixtures("float64")
def test_four_binary_digits_worked_out_by_hand():
    # V = 2, rho = 1: 2.6 = 2 (1 + 1/4 + 0.05), -3.9 = -2 (1 + 1/2 + 1/4 + 1/8 + ...)
    coder = ATMNCoder(2, fire_ratio=1.0, v_threshold=2.0)
    x = torch.tensor([2.6, -3.9])
    assert coder.encode(x).T.tolist() == [[1.0, 0.0, 1.0, 0.0], [-1.0] * 4]
    assert coder(x).tolist() == pytest.approx([2.5, -3.75])


def test_the_sum_read_out_counts_spikes():
    # tau = 1: 2.6 pays three thresholds of 1 and stays silent after the second
    coder = ATMNCoder(2, tau=1.0, readout="sum", fire_ratio=1.0)
    assert coder(torch.tensor([2.6, -9.0])).tolist() == [2.0, -4.0]
    assert coder.weights == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("readout", ["geometric", "sum"])
@pytest.mark.parametrize(("tau", "fire_ratio"), LEAKS)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_the_value_is_the_decoded_spikes_to_the_bit(readout, tau, fire_ratio, dtype):
    coder = coder_with_thresholds(
        time_steps=5, tau=tau, fire_ratio=fire_ratio, readout=readout
    )
    x = (torch.randn(3, 11, 7) * 2).to(dtype)
    decoded, spike_seq = coder(x), coder.encode(x)
    assert decoded.dtype == spike_seq.dtype == dtype
    assert spike_seq.shape == (5, 3, 11, 7)
    assert spike_seq.unique().tolist() == [-1.0, 0.0, 1.0]
    assert torch.equal(decoded, coder.decode(spike_seq))


@pytest.mark.parametrize(("tau", "fire_ratio"), LEAKS)
def test_the_spikes_are_those_of_a_node_fed_once(tau, fire_ratio):
    coder = coder_with_thresholds(tau=tau, fire_ratio=fire_ratio)
    x = torch.randn(13, 7) * 2
    node = ATMNNode(
        tau, num_channels=7, channel_dim=-1, fire_ratio=fire_ratio, step_mode="m"
    )
    node.load_state_dict(coder.neuron.state_dict())
    x_seq = torch.cat([x[None], torch.zeros(3, 13, 7)])
    assert torch.equal(coder.encode(x), node(x_seq))


@pytest.mark.parametrize("fire_ratio", [0.5, 2 / 3, 1.0])
def test_a_finer_code_is_closer(fire_ratio):
    x = torch.linspace(-1.8, 1.8, 301)[:, None]
    errors = [
        (ATMNCoder(1, time_steps=t, fire_ratio=fire_ratio)(x) - x).abs().max().item()
        for t in (2, 4, 6, 8)
    ]
    # what is left over is at most rho of the last digit, where the code reaches
    assert errors[1:] == sorted(errors[1:], reverse=True)
    assert errors[-1] <= fire_ratio * 2.0**-7 + 1e-6


@pytest.mark.parametrize("surrogate_class", [surrogate.ATan, surrogate.Sigmoid])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("readout", ["geometric", "sum"])
@pytest.mark.parametrize(("tau", "fire_ratio"), LEAKS)
def test_the_surrogate_gradient_is_autograd_through_the_steps(
    surrogate_class, detach_reset, readout, tau, fire_ratio
):
    coder = coder_with_thresholds(
        tau=tau,
        fire_ratio=fire_ratio,
        readout=readout,
        gradient="surrogate",
        detach_reset=detach_reset,
        surrogate_function=surrogate_class(),
    ).double()
    a = coder.neuron.a
    x = torch.randn(3, 5, 7, dtype=torch.float64) * 2
    grad = torch.randn_like(x)

    def slow_twin(x):
        return atmn_code(
            x,
            a.exp(),
            coder.weights,
            tau=tau,
            fire_ratio=fire_ratio,
            surrogate_function=surrogate_class(),
            detach_reset=detach_reset,
        )

    ours = value_and_gradients(coder, x, a, grad)
    expected = value_and_gradients(slow_twin, x, a, grad)
    by_spikes = value_and_gradients(lambda x: coder.decode(coder.encode(x)), x, a, grad)
    assert torch.equal(ours[0], expected[0])
    assert ours[1].abs().min() > 0
    torch.testing.assert_close(ours[1:], expected[1:], rtol=0, atol=1e-12)
    torch.testing.assert_close(by_spikes[1:], expected[1:], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "surrogate_class",
    [
        surrogate.PiecewiseQuadratic,
        surrogate.PiecewiseExp,
        surrogate.SoftSign,
        surrogate.SuperSpike,
        surrogate.Erf,
        surrogate.LeakyKReLU,
        surrogate.DeterministicPass,  # has a formula that cannot be called
        surrogate.S2NN,  # has none
    ],
)
def test_every_surrogate_gives_the_gradient_of_its_spikes(surrogate_class):
    coder = coder_with_thresholds(
        gradient="surrogate", surrogate_function=surrogate_class()
    ).double()
    x = torch.randn(5, 7, dtype=torch.float64)
    a, grad = coder.neuron.a, torch.randn_like(x)
    ours = value_and_gradients(coder, x, a, grad)
    expected = value_and_gradients(lambda x: coder.decode(coder.encode(x)), x, a, grad)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("float64")
def test_the_straight_through_gradient_worked_out_by_hand():
    # rho = 1, T = 2: digits 1 and 1/2, saturated beyond 1.5 + 1/2 = 2 thresholds.
    # V = 1: x = 0.75 -> 0.5, x = 1.9 -> 1.5 (inside), x = 2.5 -> 1.5 (saturated).
    # dy/dx = 1, 1, 0; dy/da = V (f - u f') = 0.5 - 0.75, 1.5 - 1.9, 1.5
    coder = ATMNCoder(1, time_steps=2, fire_ratio=1.0)
    for x, value, of_x, of_a in (
        (0.75, 0.5, 1.0, -0.25),
        (1.9, 1.5, 1.0, -0.4),
        (2.5, 1.5, 0.0, 1.5),
        (-2.5, -1.5, 0.0, -1.5),
    ):
        decoded, grad_x, grad_a = value_and_gradients(
            coder, torch.tensor([x]), coder.neuron.a, torch.ones(1)
        )
        assert decoded.item() == value
        assert grad_x.item() == of_x
        assert grad_a.item() == pytest.approx(of_a)


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({"time_steps": 4, "fire_ratio": 1.0}, 2.0),
        ({"time_steps": 4, "fire_ratio": 0.5}, 1.9375),
        ({"time_steps": 1, "fire_ratio": 0.75}, 1.75),
        ({"time_steps": 3, "tau": 1.0, "readout": "sum", "fire_ratio": 1.0}, 4.0),
    ],
)
def test_the_gradient_stops_where_one_more_digit_would_have_fired(settings, limit):
    coder = ATMNCoder(1, v_threshold=2.0, **settings)
    x = torch.tensor([-1.001, -0.999, 0.999, 1.001])[:, None] * limit * 2.0
    _, grad_x, _ = value_and_gradients(
        coder, x, coder.neuron.a, torch.full_like(x, 3.0)
    )
    assert grad_x.flatten().tolist() == [0.0, 3.0, 3.0, 0.0]


@pytest.mark.usefixtures("float64")
def test_the_threshold_gradient_sums_over_everything_but_its_channel():
    coder = coder_with_thresholds()
    x, grad = torch.randn(2, 3, 5, 7), torch.randn(2, 3, 5, 7)
    _, _, together = value_and_gradients(coder, x, coder.neuron.a, grad)
    apart = [
        value_and_gradients(coder, row, coder.neuron.a, of_row)[2]
        for row, of_row in zip(x.view(-1, 7), grad.view(-1, 7), strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(apart).sum(0))


def test_the_threshold_learns_to_fit_the_values():
    x = torch.randn(4096, 1) * 5
    coder = ATMNCoder(1)
    optimiser = torch.optim.SGD(coder.parameters(), lr=0.3)
    errors = []
    for _ in range(60):
        loss = (coder(x) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert errors[0] > 10
    assert errors[-1] < 0.5


@pytest.mark.parametrize("gradient", ["straight_through", "surrogate"])
def test_only_the_input_and_the_threshold_are_kept_for_backward(gradient):
    kept = {}
    for time_steps in (2, 32):
        coder = ATMNCoder(7, time_steps=time_steps, gradient=gradient)
        x = torch.randn(11, 7, requires_grad=True)
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            decoded = coder(x)
        kept[time_steps] = sum(saved.values())
        assert x.data_ptr() in saved
        decoded.sum().backward()
    assert kept == {2: 11 * 7 + 7, 32: 11 * 7 + 7}


def test_backward_twice_gives_the_same_bits():
    coder, x = coder_with_thresholds(), torch.randn(64, 7)
    grad = torch.randn(64, 7)
    first = value_and_gradients(coder, x, coder.neuron.a, grad)
    second = value_and_gradients(coder, x, coder.neuron.a, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("frozen", ["x", "a"])
def test_what_is_frozen_gets_no_gradient(frozen):
    coder = ATMNCoder(3)
    x = torch.full((2, 3), 0.7, requires_grad=frozen != "x")
    coder.neuron.a.requires_grad_(frozen != "a")
    coder(x).sum().backward()
    assert (x.grad is None) == (frozen == "x")
    assert (coder.neuron.a.grad is None) == (frozen == "a")


def test_nan_becomes_zero_and_infinity_the_largest_code():
    coder = ATMNCoder(3, fire_ratio=1.0)
    x = torch.tensor([math.nan, math.inf, -math.inf])
    decoded, grad_x, grad_a = value_and_gradients(
        coder, x, coder.neuron.a, torch.ones(3)
    )
    assert decoded.tolist() == [0.0, 1.875, -1.875]
    assert grad_x.tolist() == [0.0, 0.0, 0.0]
    assert grad_a.tolist() == [0.0, 1.875, -1.875]


def test_an_empty_batch_stays_empty():
    coder = ATMNCoder(3)
    x = torch.zeros(0, 3, requires_grad=True)
    coder(x).sum().backward()
    assert x.grad.shape == (0, 3)
    assert coder.neuron.a.grad.tolist() == [0.0, 0.0, 0.0]
    assert coder.encode(x).shape == (4, 0, 3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(5, 6, 7),
        lambda x: x[0, 0],
    ],
)
def test_any_layout_gives_the_same_value_and_gradients(view):
    coder = coder_with_thresholds()
    x = view(torch.randn(5, 6, 7))
    grad = torch.randn(x.shape)
    ours = value_and_gradients(coder, x, coder.neuron.a, grad)
    plain = value_and_gradients(coder, x.contiguous(), coder.neuron.a, grad)
    for mine, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, expected)


def test_the_input_is_left_alone():
    x = torch.randn(5, 7)
    kept = x.clone()
    coder_with_thresholds()(x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("gradient", ["straight_through", "surrogate"])
def test_a_16_bit_model_keeps_its_thresholds_and_arithmetic_in_float32(dtype, gradient):
    wide = coder_with_thresholds(gradient=gradient)
    narrow = coder_with_thresholds(gradient=gradient).to(dtype)
    x, grad = torch.randn(5, 7).to(dtype), torch.randn(5, 7).to(dtype)
    ours = value_and_gradients(narrow, x, narrow.neuron.a, grad)
    expected = value_and_gradients(wide, x.float(), wide.neuron.a, grad.float())
    assert [t.dtype for t in ours] == [dtype, dtype, torch.float32]
    assert torch.equal(ours[0], expected[0].to(dtype))
    assert torch.equal(ours[1], expected[1].to(dtype))
    torch.testing.assert_close(ours[2], expected[2])


def test_no_state_is_kept_between_calls():
    coder, x = coder_with_thresholds(), torch.randn(5, 7)
    first = coder(x)
    assert torch.equal(coder(x), first)
    assert coder.neuron.v == 0.0
    functional.reset_net(coder)
    assert torch.equal(coder(x[:2]), first[:2])
    assert list(coder.state_dict()) == ["neuron.a"]


def test_a_continuous_surrogate_gives_continuous_values_and_declares_nothing():
    heard = []
    smooth = surrogate.Sigmoid(spiking=False)
    coder = coder_with_thresholds(surrogate_function=smooth).double()
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    with listen_to_spikes(heard.append):
        decoded = coder(x)
    assert torch.equal(decoded, coder.decode(coder.encode(x)))
    assert decoded.unique().numel() == decoded.numel()
    assert heard == []
    assert torch.autograd.gradcheck(coder, (x,))


def test_each_coder_has_a_surrogate_of_its_own():
    first, second = ATMNCoder(1), ATMNCoder(1)
    assert isinstance(first.neuron.surrogate_function, surrogate.ATan)
    assert first.neuron.surrogate_function is not second.neuron.surrogate_function


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"time_steps": 0}, "time_steps must be at least 1, got 0"),
        ({"tau": -0.5}, "tau must be a finite float above zero, got -0.5"),
        ({"fire_ratio": 0.0}, "fire_ratio must be a finite float above zero"),
        ({"readout": "mean"}, "readout must be 'geometric' or 'sum', got 'mean'"),
        ({"gradient": "ste"}, "'straight_through' or 'surrogate', got 'ste'"),
        ({"num_channels": 0}, "num_channels must be None or >= 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        ATMNCoder(**{"num_channels": 3} | arguments)


def test_wrong_shapes_are_explained():
    coder = ATMNCoder(3)
    with pytest.raises(ValueError, match=r"expected 3 channels.*\(2, 4\)"):
        coder(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"expected 3 channels.*\(4,\)"):
        coder.encode(torch.zeros(4))
    with pytest.raises(ValueError, match=r"spikes of 4 time steps.*\(3, 3\)"):
        coder.decode(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"expected 3 channels.*\(4, 2\)"):
        coder.decode(torch.zeros(4, 2))


def test_whole_numbers_are_not_coded():
    # a ValueError, or the shape checker's TypeError where it runs
    coder = ATMNCoder(3)
    with pytest.raises((ValueError, TypeError), match=r"int64|Float"):
        coder(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"floating-point tensor, got torch.int64"):
        coder._check_channels(torch.ones(2, 3, dtype=torch.int64))
    # 3 / 4 of an int8 spike would be 0
    with pytest.raises((ValueError, TypeError), match=r"int8|Float"):
        coder.decode(torch.ones(4, 3, dtype=torch.int8))


def test_the_representation_says_how_it_codes():
    assert "2, time_steps=4, tau=0.5, readout=geometric, fire_ratio=0.6667" in repr(
        ATMNCoder(2)
    )
