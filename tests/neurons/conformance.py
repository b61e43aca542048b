"""The neurons that the conformance tests compare, and how a run is measured."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor

from mar_snn.neurons import ATMNNode

#: the length of axis 1 of a single-step input
CHANNELS = 5

NODES: dict[str, Callable[..., neuron.BaseNode]] = {
    "IF": neuron.IFNode,
    "LIF": neuron.LIFNode,
    "PLIF": neuron.ParametricLIFNode,
    "KLIF": neuron.KLIFNode,
    "ILIF": neuron.ILIFNode,
    "TernaryIF": neuron.TernaryIFNode,
    "TernaryLIF": neuron.TernaryLIFNode,
    "ATMN": ATMNNode,
    "ATMN by channel": partial(ATMNNode, num_channels=CHANNELS),
    "ATMN at 2/3": partial(ATMNNode, fire_ratio=2 / 3),
}

SCALAR = ValueError, "FSDP2 refuses parameters without an axis"
#: where a neuron of SpikingJelly 2.0.0 falls short, and how; ours may not stand here
SHORTCOMINGS: dict[tuple[str, str], tuple[type[Exception], str]] = {
    ("ILIF", "test_an_empty_batch_stays_empty"): (
        RuntimeError,
        "its multi-step operator refuses to work on nothing",
    ),
    ("ILIF", "test_without_spiking_the_node_is_smooth"): (
        ValueError,
        "its constructor refuses a surrogate that does not spike",
    ),
    ("PLIF", "test_fsdp_takes_the_step_of_one_process"): SCALAR,
    ("KLIF", "test_fsdp_takes_the_step_of_one_process"): SCALAR,
    ("PLIF", "test_a_sharded_network_can_be_printed"): SCALAR,
    ("KLIF", "test_a_sharded_network_can_be_printed"): SCALAR,
}


def expect_shortcomings(request: pytest.FixtureRequest, name: str) -> None:
    """Mark the test as one that must fail, if that is known of the node."""
    known = SHORTCOMINGS.get((name, request.function.__name__))
    if known is not None:
        error, reason = known
        mark = pytest.mark.xfail(raises=error, reason=reason, strict=True)
        request.applymarker(mark)


def some_input(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Normal values, wide enough to reach both thresholds."""
    return (1.5 * torch.randn(*shape)).to(dtype)


def run(node: neuron.BaseNode, x_seq: Tensor) -> Tensor:
    """The outputs [T, ...], in the step mode of the node."""
    if node.step_mode == "m":
        return node(x_seq)
    return functional.multi_step_forward(x_seq, node)


def everything(
    node: neuron.BaseNode,
    x_seq: Tensor,
    *,
    call: Callable[[neuron.BaseNode, Tensor], Tensor] = run,
    v: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Outputs, the last membrane, and the gradient of all that they depend on.

    From rest, or from the membrane `v`, whose gradient then comes last.
    """
    node.to(x_seq.dtype).reset()
    leaves = [x_seq.clone().requires_grad_(), *node.parameters()]
    if v is not None:
        node.v = v.clone().requires_grad_()
        leaves.append(node.v)
    spike_seq = call(node, leaves[0])
    weights = torch.linspace(-1.0, 1.0, spike_seq.numel()).view(spike_seq.shape)
    loss = (spike_seq * weights).sum() + node.v.square().sum()
    return spike_seq, node.v, *torch.autograd.grad(loss, leaves)


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    """Outputs to the bit, the rest up to the order of a sum; no gradient is zero."""
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:])
    assert all(gradient.count_nonzero() > 0 for gradient in theirs[2:])
