"""Gradients of kernels beside the reference's, up to the order of sums."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.bounds import assert_sums

#: terms that one step of one neuron adds to a gradient, at most
TERMS = 16


def of_each_neuron(
    loss: Callable[[Tensor], Tensor], v_threshold: Tensor, neurons: torch.Size
) -> Tensor:
    """The gradients of a loss of the thresholds, if every neuron had its own."""
    own = v_threshold.detach().expand(neurons).clone().requires_grad_()
    return torch.autograd.grad(loss(own), own)[0]


def assert_gradients(
    ours: Sequence[Tensor], expected: Sequence[Tensor], of_neurons: Tensor, steps: int
) -> None:
    """Of the inputs, sums over steps; at last of thresholds, over neurons as well."""
    *inputs, (mine, other) = zip(ours, expected, strict=True)
    sharing = of_neurons.numel() // max(1, other.numel())
    # what a neuron itself adds up may cancel: it is as exact as the largest of all
    entries = [of_neurons.flatten(), *(of_input.flatten() for _, of_input in inputs)]
    largest = torch.cat([of_one.double() for of_one in entries]).abs().amax()
    sizes = of_neurons.abs().double().sum_to_size(other.shape) + largest
    assert_sums(mine, other, sizes, TERMS * steps * sharing)
    for mine, other in inputs:
        assert_sums(mine, other, largest.expand_as(other), TERMS * steps)
