"""cupy_kernels against the reference, on the CPU: see `host_cuda`."""

import pytest
import torch
from spikingjelly.activation_based import surrogate

from mar_snn.neurons import cupy_kernels, ops, reference, torch_kernels
from mar_snn.neurons.backends import Dynamics, kernels_for
from mar_snn.neurons.reference import membrane_dtype, readout_weights
from mar_snn.neurons.surrogate import KERNEL_SURROGATES
from tests.neurons.gradients import assert_gradients, of_each_neuron
from tests.neurons.host_cuda import WIDTHS, host_cupy

#: of gradients; with 16 bits one unit in the last place
TOLERANCES = {
    torch.float32: 2e-5,
    torch.float64: 1e-12,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}
DTYPES = list(TOLERANCES)


@pytest.fixture
def cupy(monkeypatch):
    with host_cupy(monkeypatch) as fake:
        yield fake


def kernels_of(cupy):
    return [launch.kernel for launch in cupy.launches]


def widths(dtype):
    """Of steps and of codes."""
    return WIDTHS[cupy_kernels._SCALARS[dtype]]


def assert_close(ours, expected):
    for mine, other in zip(ours, expected, strict=True):
        rtol = TOLERANCES[mine.dtype]
        torch.testing.assert_close(
            *(mine, other.to(mine.dtype)),
            rtol=rtol,
            atol=min(rtol, 2e-5),
            equal_nan=True,
        )


def assert_same_bits(ours, expected):
    for mine, other in zip(ours, expected, strict=True):
        assert mine.dtype == other.dtype
        # zeros with their signs; torch.equal takes no two NaN for the same
        assert torch.equal(mine.signbit() & (mine == 0), other.signbit() & (other == 0))
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


def compare(run, twin, inputs):
    """The same bits forward, and the gradients of all inputs for a random loss.

    The twin's gradients are those of inputs as wide as the membrane, where nothing is
    rounded on the way.
    """
    x, *others = inputs
    with torch.no_grad():
        expected = [out for out in twin(*inputs) if out is not None]
    weights = [torch.randn(out.shape).to(out) for out in expected]

    def loss(outputs):
        pairs = zip(outputs, weights, strict=True)
        return sum((out.double() * weight.double()).sum() for out, weight in pairs)

    def results(function, *leaves):
        return [out for out in function(*leaves) if out is not None]

    grads = []
    for function, start in ((run, x), (twin, x.to(membrane_dtype(x.dtype)))):
        leaves = [leaf.detach().requires_grad_() for leaf in (start, *others)]
        outputs = results(function, *leaves)
        if function is run:
            assert_same_bits(outputs, expected)
        grads.append(torch.autograd.grad(loss(outputs), leaves))
    # of a sequence, each step has the neurons of the membrane; of codes, all of x
    *given, v_threshold = leaves
    of_neurons = of_each_neuron(
        lambda own: loss(results(twin, *given, own)), v_threshold, given[-1].shape
    )
    if of_neurons.isfinite().all():
        assert_gradients(*grads, of_neurons, max(len(x), 9))
    else:
        assert_close(*grads)
    return expected[0]


def compare_multi_step(x_seq, v, v_threshold, backend="auto", **how):
    how = {"tau": 1.7, "fire_ratio": 0.8, "surrogate_function": surrogate.ATan()} | how
    return compare(
        lambda *inputs: ops.atmn_multi_step(*inputs, **how, backend=backend),
        lambda *inputs: reference.atmn_multi_step(*inputs, **how),
        (x_seq, v, v_threshold),
    )


def compare_code(x, v_threshold, readout="geometric", backend="auto", **how):
    how = {"tau": 0.5, "fire_ratio": 2 / 3, "surrogate_function": None} | how
    weights = readout_weights(readout, how["tau"], how.pop("time_steps", 4))
    return compare(
        lambda *inputs: [ops.atmn_code(*inputs, weights, **how, backend=backend)],
        lambda *inputs: [reference.atmn_code(*inputs, weights, **how)],
        (x, v_threshold),
    )


def neurons(*shape, dtype=torch.float32, steps=9):
    """An input for every step, a membrane and a threshold for every last axis."""
    wider = membrane_dtype(dtype)
    return (
        (1.5 * torch.randn(steps, *shape)).to(dtype),
        torch.randn(shape, dtype=wider),
        torch.rand(shape[-1], dtype=wider) + 0.5,
    )


# ---- every kernel there is


@pytest.mark.parametrize("name", KERNEL_SURROGATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("channels", [5, 8])
def test_steps_with_every_surrogate(cupy, name, dtype, detach_reset, channels):
    spike_seq = compare_multi_step(
        *neurons(3, channels, dtype=dtype),
        surrogate_function=getattr(surrogate, name)(),
        detach_reset=detach_reset,
        store_v_seq=True,
    )
    assert 0.1 < spike_seq.abs().float().mean() < 0.9
    scalar = cupy_kernels._SCALARS[dtype]
    width = 1 if channels == 5 else widths(dtype)[0]
    assert kernels_of(cupy) == [
        f"multi_step<{scalar}, {width}>",
        f"multi_step_backward<{scalar}, {name}, {width}>",
    ]


@pytest.mark.parametrize("name", [*KERNEL_SURROGATES, None])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("channels", [5, 8])
def test_codes_with_every_surrogate(cupy, name, dtype, detach_reset, channels):
    (x, *_), v_threshold = torch.randn(1, 7, channels).to(dtype), torch.rand(channels)
    code = compare_code(
        x,
        v_threshold.to(membrane_dtype(dtype)) + 0.3,
        surrogate_function=name and getattr(surrogate, name)(),
        detach_reset=detach_reset,
    )
    assert code.unique().numel() > 7
    scalar = cupy_kernels._SCALARS[dtype]
    width = 1 if channels == 5 else widths(dtype)[1]
    assert kernels_of(cupy) == [
        f"code<{scalar}, {width}>",
        f"code_backward<{scalar}, {name or 'Straight'}, {width}>",
    ]


@pytest.mark.parametrize("alpha", [0.5, 3.0])
@pytest.mark.parametrize("name", KERNEL_SURROGATES)
def test_surrogates_of_other_widths(cupy, name, alpha):
    function = getattr(surrogate, name)(alpha=alpha)
    compare_multi_step(*neurons(5, 7), surrogate_function=function)
    compare_code(
        torch.randn(5, 7), torch.rand(7) + 0.3, surrogate_function=function, tau=1.3
    )


# ---- sizes, thresholds, layouts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 9])
@pytest.mark.parametrize("size", [1, 7, 1025, 2048])
def test_odd_sizes(cupy, dtype, steps, size):
    x_seq, v, v_threshold = neurons(size, dtype=dtype, steps=steps)
    compare_multi_step(x_seq, v, v_threshold, store_v_seq=True)
    compare_multi_step(x_seq, v, v_threshold[:1], store_v_seq=False)
    compare_code(x_seq, v_threshold, time_steps=steps, readout="sum", tau=1.0)


@pytest.mark.parametrize(
    ("shape", "columns"),
    [((5,), 5), ((3,), 3), ((5, 1), 3), ((4, 1, 1), 3), ((1,), 3), ((), 3)],
)
def test_thresholds_along_any_axis_and_accesses_across_two(cupy, shape, columns):
    x_seq, v, _ = neurons(4, 5, columns)
    compare_multi_step(x_seq, v, torch.rand(shape) + 0.5, store_v_seq=True)
    assert kernels_of(cupy)[0] == "multi_step<float, 4>"


def test_thresholds_with_gaps_between_them(cupy):
    x_seq, v, _ = neurons(4, 5)
    thresholds = torch.rand(15).add(0.5)[::3]
    compare_multi_step(x_seq, v, thresholds)
    compare_code(x_seq, thresholds)


LAYOUTS = {
    "channels last": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every other step": lambda x: x.repeat_interleave(2, 0)[::2],
    "sliced": lambda x: torch.cat([x, x], -1)[..., 3:8],
    "a longer row": lambda x: torch.cat([x, x], 0)[:9],
    "one step for all": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_layouts(cupy, layout, dtype):
    x_seq, v, v_threshold = neurons(2, 4, 5, dtype=dtype)
    x_seq = layout(x_seq)
    compare_multi_step(x_seq, v, v_threshold, store_v_seq=True)
    compare_code(x_seq, v_threshold)


def test_rows_are_read_where_they_are(cupy):
    x_seq, v, v_threshold = neurons(24)
    compare_multi_step(x_seq[1::2], v, v_threshold)
    compare_code(x_seq[:, 8:16], v_threshold[:8])
    steps, _, codes, _ = (launch.arguments[:2] for launch in cupy.launches)
    assert steps == (x_seq[1].data_ptr(), 48)
    assert codes == (x_seq[0, 8:].data_ptr(), 24)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sixteen_bytes_at_once_only_where_all_is_aligned(cupy, dtype):
    (_, width), wider = widths(dtype), membrane_dtype(dtype)
    v_threshold = torch.rand(16, dtype=wider) + 0.5
    memory = torch.randn(4, 64).to(dtype)
    odd_rows = torch.randn(4 * 17).to(dtype).view(4, 17)
    compare_code(memory[:, width : width + 16], v_threshold)
    compare_code(memory[:, 1:17], v_threshold)
    compare_code(odd_rows[:, :16], v_threshold)
    compare_code(memory[:, :15], v_threshold[:15])
    compare_code(odd_rows[:1, :16], v_threshold)
    used = [name.split()[-1] for name in kernels_of(cupy)[::2]]
    assert used == [f"{width}>", "1>", "1>", "1>", f"{width}>"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_membranes_of_a_thread_fill_sixteen_bytes(cupy, dtype):
    (width, _), wider = widths(dtype), membrane_dtype(dtype)
    x_seq, v, v_threshold = neurons(16, dtype=dtype)
    compare_multi_step(x_seq, v, v_threshold)
    compare_multi_step(torch.cat([x_seq, x_seq], 1)[:, width:][:, :16], v, v_threshold)
    compare_multi_step(torch.cat([x_seq, x_seq], 1)[:, 1:17], v, v_threshold)
    compare_multi_step(x_seq, torch.zeros(17, dtype=wider)[1:], v_threshold)
    used = [name.split()[-1] for name in kernels_of(cupy)[::2]]
    assert used == [f"{width}>", f"{width}>", "1>", "1>"]


@pytest.mark.parametrize(("rows", "channels"), [(1000, 1), (3, 1025), (600, 8)])
def test_threads_that_walk_down_many_rows(cupy, monkeypatch, rows, channels):
    monkeypatch.setattr(cupy_kernels, "_THREADS_PER_CODE", 16)
    x, v_threshold = torch.randn(rows, channels), torch.rand(channels) + 0.3
    compare_code(x, v_threshold)
    compare_code(x, v_threshold, surrogate_function=surrogate.Sigmoid())
    for launch in cupy.launches:
        walks = launch.grid[1] * launch.block[1]
        assert walks < rows or rows == 3
        assert launch.grid[0] * launch.block[0] >= channels // 4


def test_gradients_of_thresholds_are_the_same_bits_every_time(cupy):
    grad, x = torch.randn(2, 3000, 5)
    first, second = (code_gradients(cupy_kernels, grad, x)[1] for _ in range(2))
    assert torch.equal(first, second)


def code_gradients(kernels, grad, x, name="ATan"):
    """Of x and of thresholds of 1, four steps and tau 2."""
    v_threshold = torch.ones(x.shape[1], dtype=membrane_dtype(x.dtype))
    grad_x, grad_threshold = torch.empty_like(x), torch.empty_like(v_threshold)
    kernels.code_backward(
        *(grad, x, v_threshold, (1.0, 2.0, 4.0, 8.0)),
        Dynamics(2.0, 1.0, name, 2.0, False),
        out_grad_x=grad_x,
        out_grad_threshold=grad_threshold,
    )
    return grad_x, grad_threshold


# ---- gradients that come in, and results that nobody asked for


def test_incoming_gradients_of_one_row_for_all(cupy):
    x_seq, v, v_threshold = (x.requires_grad_() for x in neurons(8))
    weights = torch.randn(8)
    how = {"tau": 1.7, "surrogate_function": surrogate.Sigmoid()}
    grads = []
    for module in (ops, reference):
        spike_seq, *_ = module.atmn_multi_step(x_seq, v, v_threshold, **how)
        code = module.atmn_code(x_seq, v_threshold, (1.0, 0.5), **how)
        loss = (weights * (spike_seq.sum(0) + code.sum(0))).sum()
        grads.append(torch.autograd.grad(loss, (x_seq, v, v_threshold)))
    assert_close(*grads)
    backwards = [x for x in cupy.launches if "backward" in x.kernel]
    assert [launch.arguments[1] for launch in backwards] == [0, 0]


@pytest.mark.parametrize(("which", "kept"), [(0, 1), (1, 1), (2, 9)])
def test_only_one_result_is_differentiated(cupy, which, kept):
    x_seq, v, v_threshold = neurons(3, 8)
    how = {"tau": 1.7, "surrogate_function": surrogate.Sigmoid(), "store_v_seq": True}
    grads = []
    for function in (ops.atmn_multi_step, reference.atmn_multi_step):
        inputs = [x.detach().requires_grad_() for x in (x_seq, v, v_threshold)]
        outputs = function(*inputs, **how)
        grads.append(torch.autograd.grad(outputs[which].square().sum(), inputs))
    assert_close(*grads)
    # T, K, N
    assert cupy.launches[1].arguments[-7:-4] == (9, kept, 24)


def test_without_gradients_no_charged_membrane_is_written(cupy):
    x_seq, v, v_threshold = neurons(3, 8)
    how = {"tau": 1.7, "surrogate_function": surrogate.ATan()}
    with torch.no_grad():
        ours = ops.atmn_multi_step(x_seq, v, v_threshold, **how)
        expected = reference.atmn_multi_step(x_seq, v, v_threshold, **how)
    assert_same_bits(ours[:2], expected[:2])
    address, distance = cupy.launches[0].arguments[10:12]
    assert (address, distance) == (0, 0)


# ---- numbers at the edges


@pytest.mark.parametrize("dtype", DTYPES)
def test_not_a_number_infinity_and_zeros_with_a_sign(cupy, dtype):
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-7, -1e4, 1])
    x_seq = special.to(dtype).repeat(3, 1)
    v = torch.zeros(8, dtype=membrane_dtype(dtype))
    v_threshold = torch.ones_like(v)
    spike_seq = compare_multi_step(x_seq, v, v_threshold)
    assert spike_seq[0].tolist() == [0, 1, -1, 0, 0, 0, -1, 1]
    how = {"tau": 2.0, "surrogate_function": None}
    with torch.no_grad():
        code = ops.atmn_code(x_seq, v_threshold, (1.0, 2.0), **how)
        expected = reference.atmn_code(x_seq, v_threshold, (1.0, 2.0), **how)
    assert_same_bits([code], [expected])
    assert code[0].tolist() == [0, 3, -3, 0, 0, 0, -3, 1]


@pytest.mark.parametrize("name", [*KERNEL_SURROGATES, None])
def test_an_infinite_input_moves_its_threshold_by_its_code_alone(cupy, name):
    x = torch.tensor([[torch.inf, -torch.inf, 1e30]])
    grad_x, grad_threshold = code_gradients(cupy_kernels, torch.ones(1, 3), x, name)
    assert grad_x.abs().max() < 1e-20
    # 1 + 2 + 4 + 8
    assert grad_threshold.tolist() == [15, -15, 15]


@pytest.mark.parametrize("name", [*KERNEL_SURROGATES, None])
def test_gradients_that_are_no_numbers_are_those_of_the_torch_kernels(cupy, name):
    x = torch.tensor([[torch.nan, 1.0, torch.inf], [1.0, torch.nan, 2.0]])
    grad = torch.tensor([[1.0, torch.nan, 2.0], [torch.inf, 1.0, 3.0]])
    ours = code_gradients(cupy_kernels, grad, x, name)
    expected = code_gradients(torch_kernels, grad, x, name)
    assert_close(ours, expected)
    assert ours[0].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_subnormal_membranes_are_kept(cupy, dtype):
    x_seq, v, v_threshold = neurons(4, 8, dtype=dtype)
    tiny = 1e-39
    spike_seq = compare_multi_step(
        (x_seq.float() * tiny).to(dtype), v * tiny, v_threshold * tiny
    )
    assert 0.1 < spike_seq.abs().float().mean() < 0.9


def test_values_of_16_bits_are_rounded_to_nearest_and_ties_to_even(cupy):
    # V = 1 + 2**-8 lies between 1 and 1 + 2**-7: even is 1. V = 1 + 3 * 2**-8 lies
    # between 1 + 2**-7 and 1 + 2**-6: even is the latter.
    v_threshold = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8])
    x = torch.full((1, 2), 2.0, dtype=torch.bfloat16)
    code = compare_code(x, v_threshold, time_steps=1, fire_ratio=1.0)
    assert code.tolist() == [[1, 1 + 2**-6]]


# ---- the true path


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu_beside_work_on_another_stream(dtype):
    pytest.importorskip("cupy")
    assert kernels_for("cupy", "cuda") is cupy_kernels
    inputs = [x.cuda() for x in neurons(64, 128, dtype=dtype)]
    x_seq, _, v_threshold = inputs
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        # written behind the sleep: whoever takes another stream reads the old values
        for x in inputs:
            x.copy_(x.abs() + 0.1)
        compare_multi_step(*inputs, store_v_seq=True, backend="cupy")
        for function in (None, surrogate.ATan()):
            compare_code(
                x_seq, v_threshold, surrogate_function=function, backend="cupy"
            )
    assert torch.cuda.current_device() == inputs[0].get_device()
