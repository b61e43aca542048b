"""The Triton kernels, interpreted where there is no GPU: the reference's bits forward,
and every gradient.
"""

from unittest import mock

import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons import ops, reference
from mar_snn.neurons.backends import Dynamics, kernels_for
from mar_snn.neurons.reference import membrane_dtype, readout_weights
from mar_snn.neurons.surrogate import KERNEL_SURROGATES
from tests.neurons.gradients import assert_gradients, of_each_neuron

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ATAN = surrogate.ATan()


def make(name):
    """The surrogate of that name, with a width that is not its default."""
    return None if name is None else getattr(surrogate, name)(alpha=1.3)


def compare_multi_step(x_seq, v, v_threshold, **how):
    """Spikes and membranes bit for bit; the gradients of all three inputs.

    The reference gets the values of x in the membrane's dtype and gives unrounded
    gradients: that 16-bit gradients are rounded twice there is no concern of kernels.
    """
    how = {"tau": 1.7, "surrogate_function": ATAN} | how
    wide = membrane_dtype(x_seq.dtype)
    inputs = [t.detach().requires_grad_() for t in (x_seq, v, v_threshold)]
    ours, expected = (
        [output for output in outputs if output is not None]
        for outputs in (
            ops.atmn_multi_step(*inputs, **how, backend="triton"),
            reference.atmn_multi_step(inputs[0].to(wide), *inputs[1:], **how),
        )
    )
    assert [output.dtype for output in ours[:2]] == [x_seq.dtype, wide]
    for mine, other in zip(ours, expected, strict=True):
        assert torch.equal(mine, other.to(mine.dtype))
    cotangents = [torch.randn_like(output) for output in ours]
    gradients = torch.autograd.grad(ours, inputs, cotangents)
    widened = inputs[0].detach().to(wide).requires_grad_()

    def loss(v, v_threshold):
        outputs = reference.atmn_multi_step(widened, v, v_threshold, **how)
        outputs = [output for output in outputs if output is not None]
        return sum(map(torch.sum, map(torch.mul, outputs, cotangents)))

    expected_gradients = torch.autograd.grad(loss(*inputs[1:]), (widened, *inputs[1:]))
    of_neurons = of_each_neuron(lambda own: loss(inputs[1], own), v_threshold, v.shape)
    assert_gradients(gradients, expected_gradients, of_neurons, len(x_seq))


def compare_code(x, v_threshold, surrogate_function, steps, **how):
    """Codes bit for bit; the gradients of x and of the thresholds."""
    how = {"tau": 0.7, "fire_ratio": 2 / 3} | how
    weights = readout_weights("geometric", how["tau"], steps)
    how["surrogate_function"] = surrogate_function
    wide = membrane_dtype(x.dtype)
    inputs = [t.detach().requires_grad_() for t in (x, v_threshold)]
    code = ops.atmn_code(*inputs, weights, **how, backend="triton")
    expected = reference.atmn_code(inputs[0].to(wide), inputs[1], weights, **how)
    assert code.dtype == x.dtype
    assert torch.equal(code, expected.to(x.dtype))
    cotangent = torch.randn_like(code)
    gradients = torch.autograd.grad(code, inputs, cotangent)
    widened = inputs[0].detach().to(wide).requires_grad_()

    def loss(v_threshold):
        return (
            reference.atmn_code(widened, v_threshold, weights, **how) * cotangent
        ).sum()

    expected_gradients = torch.autograd.grad(loss(inputs[1]), (widened, inputs[1]))
    of_neurons = of_each_neuron(loss, v_threshold, x.shape)
    assert_gradients(gradients, expected_gradients, of_neurons, steps)


def some(device, *shape, dtype=torch.float32):
    """Values wide enough to reach both thresholds."""
    return (1.5 * torch.randn(*shape)).to(device, dtype)


def thresholds(device, *shape, dtype=torch.float32):
    return (torch.rand(*shape) + 0.5).to(device, membrane_dtype(dtype))


# ---- steps


def test_three_steps_worked_by_hand(triton_device):
    # V = 1, tau = 2: h = 1.5, then 0.5 / 2 - 2 = -1.75, then -0.75 / 2 + 0.25 = -0.125
    x_seq = torch.tensor([[1.5], [-2.0], [0.25]], device=triton_device)
    spike_seq, v, v_seq = ops.atmn_multi_step(
        x_seq,
        torch.zeros(1, device=triton_device),
        torch.ones(1, device=triton_device),
        tau=2.0,
        surrogate_function=ATAN,
        store_v_seq=True,
        backend="triton",
    )
    assert spike_seq.flatten().tolist() == [1.0, -1.0, 0.0]
    assert v_seq.flatten().tolist() == [0.5, -0.75, -0.125]
    assert v.tolist() == [-0.125]


def test_both_thresholds_are_inclusive(triton_device):
    x = torch.tensor([[0.5, -0.5, 0.499, -0.499]], device=triton_device)
    at_rest, v_threshold = (torch.full_like(x[0], value) for value in (0.0, 0.5))
    how = {"tau": 2.0, "surrogate_function": ATAN, "backend": "triton"}
    spikes, v, _ = ops.atmn_multi_step(x, at_rest, v_threshold, **how)
    code = ops.atmn_code(x, v_threshold, (1.0,), **how)
    assert spikes.tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert v[:2].tolist() == [0.0, 0.0]
    assert code.tolist() == [[0.5, -0.5, 0.0, 0.0]]


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", KERNEL_SURROGATES)
def test_steps_of_every_surrogate_and_dtype(triton_device, name, dtype, detach_reset):
    compare_multi_step(
        some(triton_device, 9, 3, 5, dtype=dtype),
        some(triton_device, 3, 5, dtype=membrane_dtype(dtype)),
        thresholds(triton_device, 5, dtype=dtype),
        surrogate_function=make(name),
        detach_reset=detach_reset,
        fire_ratio=0.8,
    )


@pytest.mark.parametrize("store_v_seq", [False, True])
@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("neurons", [1, 7, 1025])
def test_any_number_of_neurons_and_steps(triton_device, neurons, steps, store_v_seq):
    compare_multi_step(
        some(triton_device, steps, neurons),
        some(triton_device, neurons),
        thresholds(triton_device, neurons),
        store_v_seq=store_v_seq,
    )


@pytest.mark.parametrize("shape", [(1,), (3, 1, 1), (5,), (2, 1, 1, 1)])
def test_thresholds_along_any_axis(triton_device, shape):
    compare_multi_step(
        some(triton_device, 3, 2, 3, 7, 5),
        some(triton_device, 2, 3, 7, 5),
        thresholds(triton_device, *shape),
    )


def one_element_off(x):
    """The values of x at an address that no wide access can start from."""
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)


STRIDED = {
    "channels last": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every other step": lambda x: x.repeat_interleave(2, 0)[::2],
    "sliced": lambda x: torch.cat([x, x], -1)[..., 3:8],
    "one step for all": lambda x: x[:1].expand(x.shape),
    "misaligned": one_element_off,
}


@pytest.mark.parametrize("layout", STRIDED)
def test_steps_and_codes_of_any_layout(triton_device, layout):
    x = STRIDED[layout](some(triton_device, 4, 3, 7, 5))
    v = some(triton_device, 3, 7, 5)
    compare_multi_step(x, v, thresholds(triton_device, 3, 1, 1))
    for surrogate_function in (None, ATAN):
        compare_code(x, thresholds(triton_device, 5), surrogate_function, 3)


def test_rows_may_lie_farther_apart_than_they_are_long(triton_device):
    x = some(triton_device, 6, 11)[:, 2:7]
    assert x.stride() == (11, 1)
    compare_multi_step(x, some(triton_device, 5), thresholds(triton_device, 5))
    compare_code(x, thresholds(triton_device, 5), ATAN, 4)


def test_wide_blocks_and_int64_indices_change_nothing(triton_device, monkeypatch):
    kernels = kernels_for("triton", triton_device.type)
    monkeypatch.setattr(kernels, "_THREADS_OF_A_DEVICE", 128)
    monkeypatch.setattr(kernels, "_INT64_NEURONS", 0)
    launched = mock.Mock(wraps=kernels._block)
    monkeypatch.setattr(kernels, "_block", launched)
    assert kernels._block(torch.zeros(1025)) == 512
    assert kernels._block(torch.zeros(1025, dtype=torch.float64)) == 256
    for store_v_seq in (False, True):
        compare_multi_step(
            some(triton_device, 3, 41, 25),
            some(triton_device, 41, 25),
            thresholds(triton_device, 41, 1),
            store_v_seq=store_v_seq,
        )
    assert launched.call_count == 6


def test_blocks_widen_only_where_there_are_more_neurons_than_threads(triton_device):
    block = kernels_for("triton", triton_device.type)._block
    sizes = [1, 2**18, 2**19 - 1, 2**19, 2**20 - 1, 2**20, 2**24]
    widths = [block(torch.empty(size, device="meta")) for size in sizes]
    assert widths == [128, 128, 128, 256, 256, 512, 512]


def test_without_gradients_no_membrane_is_kept(triton_device):
    kernels = kernels_for("triton", triton_device.type)
    x_seq, v = some(triton_device, 4, 3), some(triton_device, 3)
    v_threshold = torch.ones(1, device=triton_device, requires_grad=True)
    how = {"tau": 2.0, "surrogate_function": ATAN}
    with mock.patch.object(kernels, "multi_step", wraps=kernels.multi_step) as run:
        ops.atmn_multi_step(x_seq, v, v_threshold, **how, backend="triton")
        with torch.no_grad():
            ours = ops.atmn_multi_step(x_seq, v, v_threshold, **how, backend="triton")
    kept, none = (call.kwargs["out_h_seq"] for call in run.call_args_list)
    assert kept.shape == (4, 3)
    assert none is None
    expected = reference.atmn_multi_step(x_seq, v, v_threshold, **how)
    assert torch.equal(ours[0], expected[0])


def test_one_gradient_may_stand_for_all_steps(triton_device):
    # the gradient of a sum is one number, expanded with strides of zero
    x_seq, v_threshold = some(triton_device, 3, 5), thresholds(triton_device, 5)
    inputs = [t.requires_grad_() for t in (x_seq, v_threshold)]
    at_rest = torch.zeros(5, device=triton_device)
    how = {"tau": 1.5, "surrogate_function": ATAN}
    gradients = []
    for operations, backend in ((reference, {}), (ops, {"backend": "triton"})):
        spikes, _, _ = operations.atmn_multi_step(
            x_seq, at_rest, v_threshold, **how, **backend
        )
        gradients.append(torch.autograd.grad(spikes.sum(), inputs))
    assert gradients[0][0].abs().sum() > 0
    # no neuron shares its threshold
    assert_gradients(gradients[1], gradients[0], gradients[0][1], len(x_seq))


# ---- codes


def test_a_code_worked_by_hand(triton_device):
    # V = 2, T = 2, tau = 1/2, rho = 1; 2.5 fires, 2 (2.5 - 2) = 1 does not: 2 * 1
    # 3.5 fires, 2 (3.5 - 2) = 3 fires: 2 (1 + 1/2); -1.5 is silent, then -3 fires
    x = torch.tensor([[2.5], [3.5], [-1.5]], device=triton_device, requires_grad=True)
    v_threshold = torch.full((1,), 2.0, device=triton_device, requires_grad=True)
    code = ops.atmn_code(
        x,
        v_threshold,
        (1.0, 0.5),
        tau=0.5,
        surrogate_function=None,
        backend="triton",
    )
    assert code.flatten().tolist() == [2.0, 3.0, -1.0]
    of_x, of_v = torch.autograd.grad(code.sum(), (x, v_threshold))
    assert of_x.flatten().tolist() == [1.0, 1.0, 1.0]
    # f - x / V: (1 - 1.25) + (1.5 - 1.75) + (-0.5 + 0.75)
    assert of_v.tolist() == [-0.25]


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [None, *KERNEL_SURROGATES])
def test_codes_of_every_surrogate_and_dtype(triton_device, name, dtype, detach_reset):
    compare_code(
        some(triton_device, 11, 5, dtype=dtype),
        thresholds(triton_device, 5, dtype=dtype),
        make(name),
        5,
        detach_reset=detach_reset,
    )


@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 1025), (1025, 3)])
def test_codes_of_any_size(triton_device, shape, steps):
    for surrogate_function in (None, ATAN):
        compare_code(
            some(triton_device, *shape),
            thresholds(triton_device, shape[1]),
            surrogate_function,
            steps,
        )


def test_one_threshold_may_stand_for_all_channels(triton_device):
    v_threshold = torch.full((1,), 0.8, device=triton_device).expand(5)
    compare_code(some(triton_device, 9, 5), v_threshold, ATAN, 4)


@pytest.mark.parametrize("tiles", [1, 2, 3, 32])
def test_slabs_of_any_height_add_up_to_the_same(triton_device, monkeypatch, tiles):
    kernels = kernels_for("triton", triton_device.type)
    monkeypatch.setattr(kernels, "_BLOCKS_OF_A_DEVICE", 1)
    monkeypatch.setattr(kernels, "_TILES_OF_A_SLAB", tiles)
    monkeypatch.setattr(kernels, "_tile", lambda *_: (4, 8))
    compare_code(some(triton_device, 27, 13), thresholds(triton_device, 13), ATAN, 3)


# ---- values that are no numbers


@pytest.mark.parametrize("name", KERNEL_SURROGATES)
def test_infinite_and_missing_inputs_do_what_the_torch_kernels_do(triton_device, name):
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[inf, -inf, nan, 2.0, -0.3]], device=triton_device)
    outputs, gradients = {}, {}
    for backend in ("torch", "triton"):
        inputs = [x.repeat(3, 1), torch.ones(5, device=triton_device)]
        inputs = [t.requires_grad_() for t in inputs]
        how = {"surrogate_function": make(name), "backend": backend}
        spikes, v, _ = ops.atmn_multi_step(
            inputs[0], torch.zeros_like(x[0]), inputs[1], tau=2.0, **how
        )
        code = ops.atmn_code(*inputs, (1.0, 0.5), tau=0.5, **how)
        how["surrogate_function"] = None
        straight = ops.atmn_code(*inputs, (1.0, 0.5), tau=0.5, **how)
        outputs[backend] = [spikes, v, code, straight]
        gradients[backend] = [
            torch.autograd.grad(output.sum(), inputs, retain_graph=True)
            for output in outputs[backend]
        ]
    assert outputs["triton"][0].tolist() == [[1.0, -1.0, 0.0, 1.0, 0.0]] * 3
    for found, exact in ((outputs, 0.0), (gradients, 2e-5)):
        torch.testing.assert_close(
            found["triton"], found["torch"], rtol=exact, atol=exact, equal_nan=True
        )


def test_steps_have_no_straight_through_gradient(triton_device):
    rows, neurons = (torch.ones(shape, device=triton_device) for shape in ((1, 2), 2))
    with pytest.raises(Exception, match="no kernel for this surrogate"):
        kernels_for("triton", triton_device.type).multi_step_backward(
            rows,
            rows,
            rows,
            neurons[:1],
            1,
            Dynamics(2.0, 1.0, None, 1.0, False),
            out_grad_x_seq=rows.clone(),
            out_grad_v=neurons.clone(),
            out_grad_threshold=neurons.clone(),
        )


# ---- as PyTorch sees them


def test_the_operations_pass_pytorchs_own_checks(triton_device):
    x = some(triton_device, 3, 4, 5).requires_grad_()
    v, v_threshold = some(triton_device, 4, 5), thresholds(triton_device, 5)
    v_threshold.requires_grad_()
    how = {"tau": 0.7, "surrogate_function": ATAN, "backend": "triton"}
    for call in (
        lambda: ops.atmn_multi_step(x, v, v_threshold, store_v_seq=True, **how),
        lambda: ops.atmn_code(x, v_threshold, (1.0, 0.7), **how),
    ):
        with mock.patch.object(torch.ops, "mar_snn", wraps=torch.ops.mar_snn) as seen:
            call()
        ((name, arguments, _),) = seen.mock_calls
        operation = getattr(torch.ops.mar_snn, name)
        passed = torch.library.opcheck(operation.default, arguments)
        assert set(passed.values()) == {"SUCCESS"}
