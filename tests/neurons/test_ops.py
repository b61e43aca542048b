"""The two operations against the reference: the same bits forward, every gradient."""

import pytest
import torch
from spikingjelly.activation_based import surrogate
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mar_snn.neurons import ATMNNode, backends, ops, reference, torch_kernels
from mar_snn.neurons.reference import membrane_dtype, readout_weights
from mar_snn.neurons.surrogate import KERNEL_SURROGATES
from tests.neurons.gradients import assert_gradients, of_each_neuron
from tests.seed import SEED

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every other step": lambda x: x.repeat_interleave(2, 0)[::2],
    "sliced": lambda x: torch.cat([x, x], -1)[..., 3:8],
    "one step for all": lambda x: x[:1].expand(x.shape),
}


def compare_multi_step(x_seq, v, v_threshold, **how):
    """Spikes and membranes bit for bit; the gradients of all three inputs.

    The reference's are those of an input as wide as the membrane, where nothing is
    rounded on the way.
    """

    def run(function, x_seq, v, v_threshold):
        outputs = function(x_seq, v, v_threshold, **how)
        return [out for out in outputs if out is not None]

    def loss(outputs):
        torch.manual_seed(SEED)
        weights = [torch.randn(out.shape).to(x_seq.dtype) for out in outputs]
        pairs = zip(outputs, weights, strict=True)
        return sum((out.double() * weight.double()).sum() for out, weight in pairs)

    leaves = [t.detach().requires_grad_() for t in (x_seq, v, v_threshold)]
    ours = run(ops.atmn_multi_step, *leaves)
    expected = run(reference.atmn_multi_step, *leaves)
    our_grads = torch.autograd.grad(loss(ours), leaves)
    wide = x_seq.detach().to(membrane_dtype(x_seq.dtype)).requires_grad_()
    unrounded = run(reference.atmn_multi_step, wide, *leaves[1:])
    grads = torch.autograd.grad(loss(unrounded), (wide, *leaves[1:]))
    of_neurons = of_each_neuron(
        lambda own: loss(run(reference.atmn_multi_step, wide, leaves[1], own)),
        v_threshold,
        v.shape,
    )
    assert len(ours) == len(expected) == 2 + how.get("store_v_seq", False)
    for mine, other in zip(ours, expected, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)
    assert 0 < ours[0].abs().mean() < 1
    assert_gradients(our_grads, grads, of_neurons, len(x_seq))


@pytest.mark.parametrize("name", KERNEL_SURROGATES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_reset", [False, True])
def test_every_surrogate_and_dtype(name, dtype, detach_reset):
    compare_multi_step(
        torch.randn(9, 3, 5).to(dtype),
        torch.randn(3, 5, dtype=membrane_dtype(dtype)),
        torch.rand(5, dtype=membrane_dtype(dtype)) + 0.5,
        tau=1.7,
        fire_ratio=0.8,
        surrogate_function=getattr(surrogate, name)(),
        detach_reset=detach_reset,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("thresholds", [(1,), (3, 1, 1), (5,), (2, 1, 1, 1)])
@pytest.mark.parametrize("store_v_seq", [False, True])
def test_every_layout_and_threshold(layout, thresholds, store_v_seq):
    compare_multi_step(
        LAYOUTS[layout](torch.randn(4, 2, 3, 7, 5)),
        torch.randn(2, 3, 7, 5).transpose(0, 1).contiguous().transpose(0, 1),
        torch.rand(thresholds) + 0.5,
        tau=2.0,
        surrogate_function=surrogate.ATan(),
        store_v_seq=store_v_seq,
    )


@pytest.mark.parametrize("tile", [1, 7, 64])
@pytest.mark.parametrize("thresholds", [(1,), (3, 1), (17,)])
def test_the_size_of_a_tile_changes_nothing(monkeypatch, tile, thresholds):
    monkeypatch.setattr(torch_kernels, "_tile", lambda x: tile)
    compare_multi_step(
        torch.randn(3, 2, 3, 17),
        torch.zeros(2, 3, 17),
        torch.rand(thresholds) + 0.5,
        tau=1.3,
        surrogate_function=surrogate.Sigmoid(),
    )
    compare_code(torch.randn(5, 17), torch.rand(17) + 0.5, surrogate.ATan(), 4)


def test_the_output_lies_in_memory_as_the_input_does():
    x_seq = LAYOUTS["channels last"](torch.randn(2, 3, 4, 5, 6))
    node = ATMNNode(step_mode="m")
    assert node(x_seq).stride() == x_seq.stride()
    assert node.v.stride() == x_seq[0].stride()
    assert not node.v._is_view()


def test_membranes_are_kept_only_for_a_backward_pass():
    x_seq, v = torch.randn(4, 3), torch.zeros(3)
    kept = []

    def run(**how):
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.numel()), lambda _: None
        ):
            ops.atmn_multi_step(
                x_seq, v, **how, tau=2.0, surrogate_function=surrogate.ATan()
            )

    run(v_threshold=torch.ones(1))
    with torch.no_grad():
        run(v_threshold=torch.ones(1, requires_grad=True))
    assert kept == []
    run(v_threshold=torch.ones(1, requires_grad=True))
    assert kept == [12, 1]


@pytest.mark.parametrize("output", [0, 1, 2])
def test_any_output_alone_has_a_gradient(output):
    x_seq = torch.randn(4, 3, requires_grad=True)
    v = torch.randn(3, requires_grad=True)
    gradients = []
    for run in (reference.atmn_multi_step, ops.atmn_multi_step):
        outputs = run(
            x_seq,
            v,
            torch.ones(1),
            tau=1.5,
            surrogate_function=surrogate.ATan(),
            store_v_seq=True,
        )
        gradients.append(torch.autograd.grad(outputs[output].sum(), (x_seq, v)))
    assert gradients[0][0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0])


def test_no_neurons_have_gradients_of_zero():
    v_threshold = torch.ones(3, requires_grad=True)
    x_seq = torch.zeros(2, 0, 3, requires_grad=True)
    spikes, v, _ = ops.atmn_multi_step(
        x_seq,
        torch.zeros(0, 3),
        v_threshold,
        tau=2.0,
        surrogate_function=surrogate.ATan(),
    )
    (spikes.sum() + v.sum()).backward()
    assert spikes.shape == (2, 0, 3)
    assert v_threshold.grad.tolist() == [0.0, 0.0, 0.0]


def test_no_time_step_is_refused():
    with pytest.raises(ValueError, match="x_seq holds no time step"):
        ops.atmn_multi_step(
            torch.zeros(0, 3),
            torch.zeros(3),
            torch.ones(1),
            tau=2.0,
            surrogate_function=surrogate.ATan(),
        )


def test_a_membrane_of_another_shape_is_refused():
    x_seq, one = torch.zeros(2, 3), torch.ones(1)
    how = {"tau": 2.0, "surrogate_function": surrogate.ATan()}
    # the shape checker's TypeError, where it runs
    with pytest.raises((ValueError, TypeError), match=r"v has the shape|Float"):
        ops.atmn_multi_step(x_seq, torch.zeros(2), one, **how)


def test_infinite_and_missing_inputs_do_what_the_reference_does():
    inf, nan = float("inf"), float("nan")
    x_seq = torch.tensor([[inf, -inf, nan, 2.0]]).repeat(2, 1)
    how = {"tau": 2.0, "surrogate_function": surrogate.ATan()}
    ours = ops.atmn_multi_step(x_seq, torch.zeros(4), torch.ones(1), **how)
    expected = reference.atmn_multi_step(x_seq, torch.zeros(4), torch.ones(1), **how)
    assert ours[0].tolist() == [[1.0, -1.0, 0.0, 1.0]] * 2
    for mine, other in zip(ours[:2], expected[:2], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0, equal_nan=True)


# ---- codes


def compare_code(x, v_threshold, surrogate_function, time_steps, **how):
    """Codes bit for bit; gradients as if the reference had rounded only at the end."""
    how = {"tau": 0.7, "fire_ratio": 2 / 3} | how
    weights = readout_weights("geometric", how["tau"], time_steps)
    how["surrogate_function"] = surrogate_function
    inputs = [t.detach().requires_grad_() for t in (x, v_threshold)]
    code = ops.atmn_code(*inputs, weights, **how)
    assert torch.equal(code, reference.atmn_code(*inputs, weights, **how))
    assert code.unique().numel() > 2

    grad = torch.randn(code.shape).to(code.dtype)
    wide = x.detach().to(membrane_dtype(x.dtype)).requires_grad_()

    def loss(v_threshold):
        return (reference.atmn_code(wide, v_threshold, weights, **how) * grad).sum()

    expected = torch.autograd.grad(loss(inputs[1]), (wide, inputs[1]))
    of_neurons = of_each_neuron(loss, v_threshold, x.shape)
    ours = torch.autograd.grad(code, inputs, grad)
    assert_gradients(ours, expected, of_neurons, time_steps)


@pytest.mark.parametrize("name", [None, *KERNEL_SURROGATES])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_reset", [False, True])
def test_codes_of_every_surrogate_and_dtype(name, dtype, detach_reset):
    compare_code(
        (2 * torch.randn(11, 5)).to(dtype),
        torch.rand(5, dtype=membrane_dtype(dtype)) + 0.5,
        name and getattr(surrogate, name)(),
        5,
        detach_reset=detach_reset,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("time_steps", [1, 2, 9])
def test_codes_of_every_layout(layout, time_steps):
    x = LAYOUTS[layout](2 * torch.randn(4, 2, 3, 7, 5))
    for surrogate_function in (None, surrogate.ATan()):
        compare_code(x, torch.rand(5) + 0.5, surrogate_function, time_steps)


class Sizes(TorchDispatchMode):
    """The sizes of all that is made inside."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        self.seen += [t.numel() for t in tree_leaves(out) if torch.is_tensor(t)]
        return out


@pytest.mark.parametrize("name", [None, "ATan"])
def test_a_code_of_many_steps_needs_the_memory_of_a_few_tiles(monkeypatch, name):
    tile = 128
    monkeypatch.setattr(torch_kernels, "_tile", lambda x: tile)
    x, v_threshold, weights = torch.randn(64, 32), torch.ones(32), (1.0,) * 100
    dynamics = backends.Dynamics(1.0, 1.0, name, 2.0, False)
    out = {"out_grad_x": torch.zeros(64, 32), "out_grad_threshold": torch.zeros(32)}
    with Sizes() as sizes:
        torch_kernels.code(
            *(x, v_threshold, weights, dynamics), out_code=out["out_grad_x"]
        )
        torch_kernels.code_backward(x, x, v_threshold, weights, dynamics, **out)
    # up to three buffers are asked for at once
    assert max(sizes.seen) <= 3 * tile < x.numel()


def test_what_reaches_beyond_the_largest_code_has_no_slope():
    # T = 2, tau = 1/2, rho = 1: digits 1 and 1/2, saturated beyond 1.5 + 0.5
    x = torch.tensor([[1.9], [2.1], [float("inf")], [float("nan")]], requires_grad=True)
    v_threshold = torch.ones(1, requires_grad=True)
    for run in (reference.atmn_code, ops.atmn_code):
        code = run(x, v_threshold, (1.0, 0.5), tau=0.5, surrogate_function=None)
        assert code.flatten().tolist() == [1.5, 1.5, 1.5, 0.0]
        of_x, of_v = torch.autograd.grad(code.sum(), (x, v_threshold))
        assert of_x.flatten().tolist() == [1.0, 0.0, 0.0, 0.0]
        # f - u f': 1.5 - 1.9 + 1.5 + 1.5 + 0
        assert of_v.item() == pytest.approx(2.6)


def test_a_code_without_a_kernel_is_the_reference():
    x = torch.randn(3, 5, requires_grad=True)
    how = {"tau": 0.5, "surrogate_function": surrogate.S2NN()}
    ours = ops.atmn_code(x, torch.ones(5), (1.0, 0.5), **how)
    expected = reference.atmn_code(x, torch.ones(5), (1.0, 0.5), **how)
    assert torch.equal(ours, expected)
    (of_ours,) = torch.autograd.grad(ours.sum(), x)
    (of_expected,) = torch.autograd.grad(expected.sum(), x)
    assert torch.equal(of_ours, of_expected)


# ---- as PyTorch sees them


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_operations_pass_pytorchs_own_checks(layout):
    x = LAYOUTS[layout](torch.randn(3, 2, 3, 4, 5).bfloat16()).requires_grad_()
    v, v_threshold = torch.randn(2, 3, 4, 5), torch.rand(5) + 0.5
    how = (1.7, 0.8, "ATan", 2.0, False, "auto")
    for store_v_seq in (False, True):
        passed = torch.library.opcheck(
            torch.ops.mar_snn.atmn_multi_step.default,
            (x, v, v_threshold.requires_grad_(), store_v_seq, True, *how),
        )
        assert set(passed.values()) == {"SUCCESS"}
    for name in (None, "Sigmoid"):
        passed = torch.library.opcheck(
            torch.ops.mar_snn.atmn_code.default,
            (x, v_threshold, [1.0, 0.5], 0.5, 0.8, name, 2.0, False, "auto"),
        )
        assert set(passed.values()) == {"SUCCESS"}


def test_steps_have_no_straight_through_gradient():
    how = (2.0, 1.0, None, 1.0, False)
    with pytest.raises(ValueError, match="only codes have a straight-through"):
        torch_kernels.multi_step_backward(
            torch.ones(1, 2),
            torch.ones(1, 2),
            torch.ones(1, 2),
            torch.ones(1),
            1,
            torch_kernels.Dynamics(*how),
            out_grad_x_seq=torch.ones(1, 2),
            out_grad_v=torch.ones(2),
            out_grad_threshold=torch.ones(2),
        )
