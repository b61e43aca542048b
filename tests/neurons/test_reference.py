"""The equations, on numbers worked out by hand."""

import math

import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons.reference import (
    atmn_code,
    atmn_decode,
    atmn_encode,
    atmn_multi_step,
    atmn_step,
    membrane_dtype,
    readout_weights,
)

STEP = surrogate.ATan()
ONE = torch.ones(1)


def step(x, v=0.0, v_threshold=1.0, **settings):
    spike, v = atmn_step(
        torch.tensor([x]),
        torch.tensor([v]),
        torch.tensor([v_threshold]),
        **{"tau": 2.0, "surrogate_function": STEP} | settings,
    )
    return spike.item(), v.item()


def test_a_spike_spends_one_threshold_and_keeps_the_rest():
    assert step(1.75) == (1.0, 0.75)


def test_a_negative_spike_pays_one_threshold_back():
    assert step(-1.75) == (-1.0, -0.75)


def test_a_step_keeps_one_part_in_tau_of_the_membrane():
    assert step(0.5, v=1.0, tau=4.0) == (0.0, 0.75)


def test_a_tau_below_one_grows_the_membrane():
    assert step(0.0, v=0.25, tau=0.5) == (0.0, 0.5)


def test_both_thresholds_are_inclusive():
    assert step(0.5, v_threshold=0.5) == (1.0, 0.0)
    assert step(-0.5, v_threshold=0.5) == (-1.0, 0.0)


def test_the_fire_ratio_moves_the_threshold_but_not_the_price():
    assert step(0.5, fire_ratio=0.5) == (1.0, -0.5)
    assert step(0.25, fire_ratio=0.5) == (0.0, 0.25)
    assert step(-0.75, fire_ratio=0.5) == (-1.0, 0.25)


def test_nan_fires_nothing_and_infinity_fires_its_sign():
    spike, v = step(math.nan)
    assert spike == 0.0
    assert math.isnan(v)
    assert step(math.inf) == (1.0, math.inf)
    assert step(-math.inf) == (-1.0, -math.inf)


def test_the_steps_follow_one_another():
    # h = 1.5 | 0.5/0.5 - 3 = -2 | -1/0.5 + 0.5 = -1.5
    spike_seq, v, v_seq = atmn_multi_step(
        torch.tensor([[1.5], [-3.0], [0.5]]),
        torch.zeros(1),
        ONE,
        tau=0.5,
        surrogate_function=STEP,
        store_v_seq=True,
    )
    assert spike_seq.tolist() == [[1.0], [-1.0], [-1.0]]
    assert v_seq.tolist() == [[0.5], [-1.0], [-0.5]]
    assert v.tolist() == [-0.5]


def test_the_membranes_are_kept_only_on_demand():
    _, _, v_seq = atmn_multi_step(
        torch.ones(2, 1), torch.zeros(1), ONE, tau=2.0, surrogate_function=STEP
    )
    assert v_seq is None


def test_no_time_step_is_refused_in_words():
    with pytest.raises(ValueError, match=r"holds no time step.*\(0, 3\)"):
        atmn_multi_step(
            torch.ones(0, 3), torch.zeros(3), ONE, tau=2.0, surrogate_function=STEP
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_membrane_of_16_bit_inputs_is_float32(dtype):
    fine = 2.0**-14
    spike, v = atmn_step(
        torch.full((3,), 0.5, dtype=dtype),
        torch.full((3,), fine),
        ONE,
        tau=1.0,
        surrogate_function=STEP,
    )
    assert spike.dtype == dtype
    assert v.dtype == torch.float32
    assert v.tolist() == [0.5 + fine] * 3


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_the_membrane_is_never_narrower_than_float32(dtype, expected):
    assert membrane_dtype(dtype) == expected


def test_float64_is_computed_in_float64():
    x = torch.tensor([1.0 + 2.0**-40], dtype=torch.float64)
    _, v = atmn_step(x, torch.zeros_like(x), ONE, tau=2.0, surrogate_function=STEP)
    assert v.item() == 2.0**-40


def test_the_gradient_of_two_steps_is_the_chain_rule():
    # Rect's derivative is 1 within half a threshold of +-V, 0 elsewhere. h = 1.25 fires
    # and leaves 0.25; h = 0.25 / 2 + 0.75 = 0.875 does not fire.
    # ds0/dx0 = ds1/dx1 = 1, dv0/dx0 = 1 - 1 = 0, so x0 does not reach s1:
    # d(s0 + 3 s1)/dx = [1, 3]; with the reset detached dv0/dx0 = 1: [1 + 3/2, 3].
    # ds0/dV = -1, dv0/dV = -s0 + 1 = 0, ds1/dV = -1: -1 - 3 = -4; detached
    # dv0/dV = -1, ds1/dV = -1 - 1/2: -1 - 4.5 = -5.5.
    for detach_reset, of_x, of_v in (
        (False, [1.0, 3.0], -4.0),
        (True, [2.5, 3.0], -5.5),
    ):
        x_seq = torch.tensor([[1.25], [0.75]], requires_grad=True)
        v_threshold = torch.ones(1, requires_grad=True)
        spike_seq, _, _ = atmn_multi_step(
            x_seq,
            torch.zeros(1),
            v_threshold,
            tau=2.0,
            surrogate_function=surrogate.Rect(),
            detach_reset=detach_reset,
        )
        assert spike_seq.tolist() == [[1.0], [0.0]]
        (spike_seq * torch.tensor([[1.0], [3.0]])).sum().backward()
        assert x_seq.grad.flatten().tolist() == of_x
        assert v_threshold.grad.item() == of_v


def test_the_continuous_primitive_passes_gradcheck():
    smooth = surrogate.Sigmoid(spiking=False)
    x_seq = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    v_threshold = torch.rand(5, dtype=torch.float64).add(0.5).requires_grad_()

    def run(x_seq, v, v_threshold):
        spike_seq, v, v_seq = atmn_multi_step(
            x_seq,
            v,
            v_threshold,
            tau=1.5,
            fire_ratio=0.7,
            surrogate_function=smooth,
            store_v_seq=True,
        )
        return spike_seq, v, v_seq

    assert torch.autograd.gradcheck(run, (x_seq, v, v_threshold))


def test_the_backward_graph_unbinds_time_and_never_indexes_it():
    x_seq = torch.randn(7, 3, requires_grad=True)
    spike_seq, _, _ = atmn_multi_step(
        x_seq, torch.zeros(3), ONE, tau=2.0, surrogate_function=STEP
    )
    names, todo = set(), [spike_seq.grad_fn]
    while todo:
        node = todo.pop()
        names.add(node.name())
        todo += [parent for parent, _ in node.next_functions if parent is not None]
    assert "UnbindBackward0" in names
    assert "SelectBackward0" not in names


def test_the_read_out_weights_undo_the_dynamics_or_count():
    assert readout_weights("geometric", 0.5, 4) == (1.0, 0.5, 0.25, 0.125)
    assert readout_weights("geometric", 3.0, 3) == (1.0, 3.0, 9.0)
    assert readout_weights("sum", 0.5, 3) == (1.0, 1.0, 1.0)


def test_an_unknown_read_out_is_named():
    with pytest.raises(ValueError, match="'geometric' or 'sum', got 'mean'"):
        readout_weights("mean", 0.5, 4)


def test_decoding_weighs_the_spikes_and_multiplies_by_the_threshold():
    # 2 * (1 - 1/2 + 1/4) and 3 * (-1 - 1/4)
    spike_seq = torch.tensor([[1.0, -1.0], [-1.0, 0.0], [1.0, -1.0]])
    decoded = atmn_decode(spike_seq, torch.tensor([2.0, 3.0]), (1.0, 0.5, 0.25))
    assert decoded.tolist() == [1.5, -3.75]


def test_decoding_16_bit_spikes_adds_in_float32():
    # 1 + 2**-10 - 1 is 0 in bfloat16, which has 8 bits, and 2**-10 in float32
    spike_seq = torch.ones(3, 1, dtype=torch.bfloat16)
    decoded = atmn_decode(spike_seq, ONE * 1024, (1.0, 2.0**-10, -1.0))
    assert decoded.dtype == torch.bfloat16
    assert decoded.item() == 1.0


def test_a_value_becomes_binary_digits():
    # tau = 1/2, rho = 1: 1.3 = 1 + 0.3 -> 0.6 -> 1.2 = 1 + 0.2 -> 0.4
    spike_seq = atmn_encode(
        torch.tensor([1.3, -1.3]),
        ONE,
        time_steps=4,
        tau=0.5,
        surrogate_function=STEP,
    )
    assert spike_seq.T.tolist() == [[1.0, 0.0, 1.0, 0.0], [-1.0, 0.0, -1.0, 0.0]]


def test_a_fire_ratio_of_two_thirds_lets_later_spikes_correct_earlier_ones():
    # 0.7 fires, -0.3 -> -0.6 waits, -> -1.2 pays back, -0.2 -> -0.4: 1 - 1/4
    settings = {"tau": 0.5, "fire_ratio": 2 / 3, "surrogate_function": STEP}
    x = torch.tensor([0.7])
    spike_seq = atmn_encode(x, ONE, time_steps=4, **settings)
    assert spike_seq.flatten().tolist() == [1.0, 0.0, -1.0, 0.0]
    assert atmn_code(x, ONE, (1.0, 0.5, 0.25, 0.125), **settings).item() == 0.75


def test_the_surrogate_of_the_code_is_as_wide_as_the_threshold():
    # Rect is 1 within half a unit: at V = 4 that is 2 around +-4, with height 1 / 4
    x = torch.tensor([1.5, 2.5, 5.5, 6.5], requires_grad=True)
    spike_seq = atmn_encode(
        x, ONE * 4, time_steps=1, tau=0.5, surrogate_function=surrogate.Rect()
    )
    spike_seq.sum().backward()
    assert spike_seq.tolist() == [[0.0, 0.0, 1.0, 1.0]]
    assert x.grad.tolist() == [0.0, 0.25, 0.25, 0.0]
