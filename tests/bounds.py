"""How far two computations of one number may lie apart, made from the operands.

In which order a CPU adds n products depends on its vectors and on its threads. Two sums
of them differ by less than n · eps · Σ|x · w|. Roundings go up as often as down: hardly
ever by more than 4 · sqrt(n) · eps · Σ|x · w|.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def assert_sums(
    found: Tensor,
    exact: Tensor,
    magnitude: Tensor,
    terms: int,
    beside: Tensor | int = 0,
) -> None:
    """Every entry is the sum of so many `terms`, whose sizes add up to `magnitude`.

    The terms are added in float32, or in float64 where `found` is. What has less bits
    is rounded once, or twice where something is added to it that stood `beside`.
    """
    wide = torch.promote_types(found.dtype, torch.float32)
    exact, magnitude = exact.double(), magnitude.double()
    bound = 4 * terms**0.5 * torch.finfo(wide).eps * magnitude
    if found.dtype != wide:
        bound += torch.finfo(found.dtype).eps * (exact.abs() + bound + beside)
    _assert_within(found, exact, bound)


def assert_linear(
    found: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> None:
    """`found` is x Wᵀ + b."""
    operands = [None if t is None else t.detach().double() for t in (x, weight, bias)]
    sizes = [None if t is None else t.abs() for t in operands]
    terms, beside = weight.shape[1], 0
    if bias is not None:
        terms, beside = terms + 1, sizes[2]
    assert_sums(found, F.linear(*operands), F.linear(*sizes), terms, beside)


def assert_as_exact(
    found: Sequence[Tensor], reference: Sequence[Tensor], exact: Sequence[Tensor]
) -> None:
    """`found` is no more than eight times as far from `exact` as the `reference` is.

    For what has too many steps to add up their roundings by hand: the reference runs in
    the dtype of `found`, and in float64 for the exact values. Distances are relative to
    the largest entry of a tensor, and the largest of all tensors counts: a few entries
    may be right by chance.
    """
    sizes = [wanted.detach().abs().max().item() for wanted in exact]
    distances = [torch.finfo(reference[0].dtype).eps]
    for one, wanted, size in zip(reference, exact, sizes, strict=True):
        if size:
            distances.append((one - wanted).abs().max().item() / size)
    for one, wanted, size in zip(found, exact, sizes, strict=True):
        assert one.dtype == reference[0].dtype
        bound = torch.full_like(wanted, 8 * max(distances) * size)
        _assert_within(one, wanted, bound)


def _assert_within(found: Tensor, exact: Tensor, bound: Tensor) -> None:
    assert found.shape == exact.shape
    found, exact = found.detach(), exact.detach()
    excess = (found - exact).abs() - bound
    wrong = ~(excess <= 0)  # NaN is wrong
    if wrong.any():
        worst = torch.where(wrong, excess.nan_to_num(torch.inf), -1).argmax()
        raise AssertionError(
            f"{wrong.sum()} of {wrong.numel()} entries are off: at worst "
            f"{found.flatten()[worst]} for {exact.flatten()[worst]}, where roundings "
            f"explain {bound.flatten()[worst]:.2g}"
        )
