"""The bounds let another order pass, and nothing else."""

import pytest
import torch
import torch.nn.functional as F

from tests.bounds import assert_as_exact, assert_linear, assert_sums


def test_another_order_passes_and_one_term_less_does_not():
    x, weight = torch.randn(3, 200), torch.randn(5, 200)
    order = torch.randperm(200)
    assert_linear(x[:, order] @ weight[:, order].T, x, weight)
    for wrong in (
        x[:, 1:] @ weight[:, 1:].T,
        -F.linear(x, weight),
        1.0001 * F.linear(x, weight) + 1e-3,
        F.linear(x, weight, torch.full((5,), 1e-2)),
        torch.full((3, 5), torch.nan),
    ):
        with pytest.raises(AssertionError, match="entries are off"):
            assert_linear(wrong, x, weight)


def test_sixteen_bits_are_rounded_once_or_beside_a_bias_twice():
    x, weight, bias = torch.randn(2, 9), torch.randn(4, 9), torch.randn(4)
    x, weight, bias = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    product = (x.float() @ weight.float().T).bfloat16()
    assert_linear(product, x, weight)
    assert_linear(product + bias, x, weight, bias)
    with pytest.raises(AssertionError, match="entries are off"):
        assert_linear(product * 1.03, x, weight)


def test_a_sum_of_nothing_is_zero():
    zero = torch.zeros(3)
    assert_sums(zero, zero, zero, 0)
    with pytest.raises(AssertionError, match="3 of 3 entries are off"):
        assert_sums(zero + 1e-30, zero, zero, 1)


def test_what_is_as_far_as_the_reference_passes_and_what_is_not_does_not():
    exact = torch.randn(50, dtype=torch.float64)
    reference = (exact + 1e-6 * torch.randn(50)).float()
    found = (exact + 1e-6 * torch.randn(50)).float()
    assert_as_exact([found], [reference], [exact])
    with pytest.raises(AssertionError, match="1 of 50 entries are off"):
        assert_as_exact(
            [found.index_add(0, torch.tensor([7]), torch.tensor([1e-3]))],
            [reference],
            [exact],
        )
