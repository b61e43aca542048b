"""The node: its threshold, its state, its arguments, what it declares."""

import math

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons import ATMNCoder, ATMNNode, LIFCoder, listen_to_spikes

RECT = {"surrogate_function": surrogate.Rect()}


def test_the_threshold_is_the_live_exponential_of_a():
    node = ATMNNode(v_threshold=0.5)
    assert node.a.shape == (1,)
    assert node.a.item() == pytest.approx(math.log(0.5))
    assert node.v_threshold.item() == pytest.approx(0.5)
    with torch.no_grad():
        node.a.fill_(math.log(3.0))
    assert node.v_threshold.item() == pytest.approx(3.0)


def test_the_threshold_can_be_set_for_all_channels_or_for_each():
    node = ATMNNode(num_channels=3)
    node.v_threshold = 2.0
    torch.testing.assert_close(node.v_threshold, torch.full((3,), 2.0))
    node.v_threshold = torch.tensor([1.0, 0.5, 4.0])
    torch.testing.assert_close(node.v_threshold, torch.tensor([1.0, 0.5, 4.0]))
    assert isinstance(node.a, torch.nn.Parameter)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_threshold_that_has_no_logarithm_is_refused(value):
    node = ATMNNode(num_channels=2)
    with pytest.raises(ValueError, match="v_threshold must be finite and above zero"):
        node.v_threshold = torch.tensor([1.0, value])
    assert node.v_threshold.tolist() == [1.0, 1.0]


def test_it_is_built_without_memory_and_filled_later():
    with torch.device("meta"):
        node = ATMNNode(num_channels=3)
    assert node.a.is_meta
    node.to_empty(device="cpu")
    node.v_threshold = 2.0
    torch.testing.assert_close(node.v_threshold, torch.full((3,), 2.0))


def test_the_gradient_of_a_is_worked_out_by_hand():
    # Rect: at x = 0.75 and V = 1 nothing fires, ds/dV = -1 and dV/da = V = 1
    node = ATMNNode(**RECT)
    node(torch.tensor([0.75])).sum().backward()
    assert node.a.grad.tolist() == [-1.0]
    # at -0.75 the other threshold answers with the other sign
    node = ATMNNode(**RECT)
    node(torch.tensor([-0.75])).sum().backward()
    assert node.a.grad.tolist() == [1.0]


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("channel_dim", [0, 1, 2, 3, -1, -2, -3, -4])
def test_each_channel_has_its_own_threshold_on_its_own_axis(channel_dim, step_mode):
    node = ATMNNode(
        num_channels=3, channel_dim=channel_dim, step_mode=step_mode, **RECT
    )
    node.v_threshold = torch.tensor([0.5, 1.0, 2.0])
    # channels first, then where they belong
    x = torch.full((3, 2, 5, 5), 0.75).movedim(0, channel_dim)
    spike = node(x) if step_mode == "s" else node(x.unsqueeze(0)).squeeze(0)
    per_channel = spike.movedim(channel_dim, 0).flatten(1)
    assert per_channel.unique(dim=1).tolist() == [[1.0], [0.0], [0.0]]
    spike.sum().backward()
    # within half a unit of its threshold: channels 0 and 1, 2 * 5 * 5 values, dV/da = V
    torch.testing.assert_close(node.a.grad, torch.tensor([-25.0, -50.0, 0.0]))


def test_a_wrong_channel_axis_is_explained():
    node = ATMNNode(num_channels=3)
    with pytest.raises(ValueError, match=r"3 channels on axis 1.*\(4, 5\).*channel_di"):
        node(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"expected 3 channels.*\(4,\)"):
        node(torch.zeros(4))


def test_there_is_no_parameter_without_an_axis():
    assert [p.shape for p in ATMNNode().parameters()] == [(1,)]
    assert [p.shape for p in ATMNNode(num_channels=7).parameters()] == [(7,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tau": 0.0}, "tau must be a finite float above zero, got 0.0"),
        ({"tau": math.inf}, "tau must be a finite float above zero, got inf"),
        ({"fire_ratio": -1.0}, "fire_ratio must be a finite float above zero"),
        ({"v_threshold": 0.0}, "v_threshold must be a finite float above zero"),
        ({"v_threshold": math.nan}, "v_threshold must be a finite float above zero"),
        ({"v_reset": 0.0}, "no v_reset, got 0.0.*TernaryLIFNode"),
        ({"num_channels": 0}, "num_channels must be None or >= 1, got 0"),
        ({"tau": True}, "tau must be a finite float above zero, got True"),
        ({"surrogate_function": surrogate.ATan}, r"instance surrogate.ATan\(\), got"),
        ({"step_mode": "x"}, "step_mode"),
    ],
)
def test_bad_arguments_are_refused_in_words(arguments, message):
    with pytest.raises(ValueError, match=message):
        ATMNNode(**arguments)


def test_an_integer_is_a_number():
    two = 2
    node = ATMNNode(two, two, fire_ratio=two)
    assert (node.tau, node.fire_ratio, node.v_threshold.item()) == (2.0, 2.0, 2.0)
    assert type(node.tau) is type(node.fire_ratio) is float
    for coder in (
        ATMNCoder(1, tau=two, v_threshold=two, fire_ratio=two),
        LIFCoder(1, tau=two, v_threshold=two),
    ):
        assert type(coder.tau) is float
        assert coder.v_threshold.tolist() == pytest.approx([2.0])
        assert coder(torch.ones(1)).shape == (1,)


def test_every_node_has_a_surrogate_of_its_own():
    first, second = ATMNNode(), ATMNNode()
    assert isinstance(first.surrogate_function, surrogate.Sigmoid)
    assert first.surrogate_function is not second.surrogate_function


def test_the_state_is_a_float_then_a_tensor_then_a_float_again():
    node = ATMNNode(step_mode="m")
    assert node.v == 0.0
    node(torch.ones(2, 3, 5))
    assert node.v.shape == (3, 5)
    node.reset()
    assert node.v == 0.0
    assert isinstance(node.v, float)
    node(torch.ones(2, 7))
    assert node.v.shape == (7,)


def test_the_state_goes_on_from_call_to_call():
    # 0.75, then 0.375 + 0.75 fires and leaves 0.125
    node = ATMNNode()
    assert node(torch.tensor([0.75])).item() == 0.0
    assert node(torch.tensor([0.75])).item() == 1.0
    assert node.v.item() == 0.125


def test_a_new_shape_starts_at_rest():
    node = ATMNNode()
    node(torch.full((2,), 0.75))
    node(torch.full((3,), 0.75))
    assert node.v.tolist() == [0.75] * 3


def test_a_float_state_is_where_the_membrane_starts():
    node = ATMNNode()
    node.v = 0.5
    node(torch.zeros(2))
    assert node.v.tolist() == [0.25, 0.25]


@pytest.mark.parametrize("v", [1, np.float32(1), np.int64(1), torch.tensor(1)])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_any_number_is_a_membrane_for_all_neurons(v, step_mode):
    node = ATMNNode(step_mode=step_mode)
    node.v = v
    node(torch.tensor([[0.0, 0.25]]))
    # 1 / 2 and 1 / 2 + 1 / 4
    assert node.v.flatten().tolist() == [0.5, 0.75]


def test_a_membrane_of_another_dtype_is_taken_by_its_values():
    node = ATMNNode()
    for dtype in (torch.int64, torch.bool, torch.float64):
        node.v = torch.tensor([1, 0]).to(dtype)
        node(torch.zeros(2))
        assert node.v.dtype == torch.float32
        assert node.v.tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("v", "got"),
    [
        (None, "None"),
        (True, "True"),
        ("rest", "'rest'"),
        (torch.ones(2, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_what_is_no_membrane_is_refused(v, got):
    node = ATMNNode()
    node.v = v
    with pytest.raises(ValueError, match=rf"tensor of them, got {got}.*node\.reset"):
        node(torch.zeros(2))


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn],
)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_an_input_without_room_for_spikes_is_refused_and_changes_nothing(
    dtype, step_mode
):
    node = ATMNNode(step_mode=step_mode)
    x = torch.ones(2, 3).to(dtype)
    sentence = rf"floating-point tensor, got {dtype}.*\.float\(\)"
    with pytest.raises(ValueError, match=sentence):
        node.functional_forward((x,), (0.0,))
    with pytest.raises((ValueError, TypeError)):  # of the shape checker, where it runs
        node(x)
    assert node.v == 0.0


def test_detach_cuts_the_past_out_of_the_graph():
    node = ATMNNode(store_v_seq=True)
    x = torch.full((1,), 0.25, requires_grad=True)
    node(x)
    node.detach()
    assert not node.v.requires_grad
    assert not node.v_seq.requires_grad
    node(torch.zeros(1)).sum().backward()
    assert x.grad is None


def test_v_seq_of_many_steps_is_the_membrane_after_each_reset():
    node = ATMNNode(step_mode="m", store_v_seq=True)
    node(torch.tensor([[1.5], [0.25], [0.5]]))
    assert node.v_seq.tolist() == [[0.5], [0.5], [0.75]]
    assert torch.equal(node.v, node.v_seq[-1])
    node.store_v_seq = False
    assert node.v_seq is None
    node(torch.ones(2, 1))
    assert node.v_seq is None


def test_v_seq_of_single_steps_grows_until_reset():
    node = ATMNNode(store_v_seq=True)
    for x in (1.5, 0.25, 0.5):
        node(torch.tensor([x]))
    assert node.v_seq.tolist() == [[0.5], [0.5], [0.75]]
    node.reset()
    assert node.v_seq is None


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_single_steps_and_one_multi_step_call_agree_to_the_bit(dtype):
    x_seq = torch.randn(6, 3, 5).to(dtype)
    single, multi = ATMNNode(1.7, 0.9), ATMNNode(1.7, 0.9, step_mode="m")
    spikes = torch.stack([single(x) for x in x_seq])
    spike_seq = multi(x_seq)
    assert spike_seq.dtype == dtype
    assert torch.equal(spikes, spike_seq)
    assert torch.equal(single.v, multi.v)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert single.v.dtype == wanted


def test_a_16_bit_membrane_handed_in_is_taken():
    node = ATMNNode()
    node.v = torch.tensor([0.5], dtype=torch.bfloat16)
    node(torch.zeros(1, dtype=torch.bfloat16))
    assert node.v.tolist() == [0.25]


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
def test_16_bit_casts_leave_the_log_thresholds_in_float32(cast):
    node = ATMNNode(v_threshold=0.7)
    node(torch.full((1,), 0.5)).sum().backward()
    log_threshold, gradient = node.a.item(), node.a.grad.item()
    getattr(node, cast)()
    assert (node.a.dtype, node.a.grad.dtype) == (torch.float32, torch.float32)
    assert (node.a.item(), node.a.grad.item()) == (log_threshold, gradient)


def test_double_is_followed_and_a_16_bit_default_is_not():
    assert ATMNNode().double().v_threshold.dtype == torch.float64
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert ATMNNode().a.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_16_bit_log_threshold_is_exponentiated_in_float32():
    node = ATMNNode()
    node.a = torch.nn.Parameter(torch.full((1,), 0.5, dtype=torch.bfloat16))
    assert node.v_threshold.dtype == torch.float32
    assert node.v_threshold.item() == pytest.approx(math.exp(0.5), rel=1e-6)


def test_the_state_dict_holds_the_threshold_and_not_the_membrane():
    node = ATMNNode(num_channels=2)
    node(torch.ones(3, 2))
    assert list(node.state_dict()) == ["a"]


def test_the_representation_shows_the_live_threshold():
    node = ATMNNode(v_threshold=0.25)
    assert "v_threshold=0.25, tau=2, fire_ratio=1" in repr(node)
    node.v_threshold = 4.0
    assert "v_threshold=4, " in repr(node)
    node = ATMNNode(num_channels=2)
    node.v_threshold = torch.tensor([0.5, 2.0])
    assert "v_threshold=0.5..2, " in repr(node)
    assert "v_threshold=on meta" in repr(node.to("meta"))


def test_a_single_step_declares_one_plane_and_many_steps_all_of_theirs():
    heard = []
    node = ATMNNode()
    with listen_to_spikes(heard.append):
        spike = node(torch.tensor([1.5, -1.5, 0.0]))
        node.reset()
        node.step_mode = "m"
        spike_seq = node(torch.ones(2, 3))
    assert [event.neuron for event in heard] == [node, node]
    assert heard[0].spike_seq.tolist() == [[1.0, -1.0, 0.0]]
    assert heard[0].output is spike
    assert heard[1].spike_seq is spike_seq
    assert heard[1].output is spike_seq


def test_continuous_values_are_not_declared_as_spikes():
    heard = []
    node = ATMNNode(surrogate_function=surrogate.ATan(spiking=False))
    with listen_to_spikes(heard.append):
        value = node(torch.ones(1))
        node.step_mode = "m"
        node(torch.ones(2, 1))
    assert value.item() not in (-1.0, 0.0, 1.0)
    assert heard == []


def test_backward_accumulates_over_a_shared_node():
    node = ATMNNode(**RECT)
    for _ in range(2):
        node(torch.tensor([0.75])).sum().backward()
        node.reset()
    assert node.a.grad.tolist() == [-2.0]
