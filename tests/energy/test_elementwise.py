"""Arithmetic outside of products. Every operand has 2 · 3 elements unless said."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts

X = torch.tensor([[0.5, 1.0, 2.0], [0.25, 0.75, 3.0]])


@pytest.mark.parametrize(
    ("compute", "expected"),
    [
        (lambda x: x + x, {"add": 6}),
        (lambda x: x - 1.0, {"add": 6}),
        (lambda x: 1.0 - x, {"add": 6}),
        (lambda x: torch.add(x, x, alpha=2), {"add": 6, "mul": 6}),
        (lambda x: x.clone().add_(x), {"add": 6}),
        # a column is broadcast: the result has 6 elements
        (lambda x: x + x[:, :1], {"add": 6}),
        (lambda x: x * x, {"mul": 6}),
        (lambda x: x * 3, {"mul": 6}),
        (lambda x: torch.addcmul(x, x, x), {"mul": 6, "add": 6}),
        (lambda x: torch.lerp(x, x, 0.5), {"mul": 6, "add": 12}),
        (lambda x: x / 3, {"special": 6}),
        (lambda x: x.square(), {"mul": 6}),
        (lambda x: x**3, {"special": 6}),
        (lambda x: x.exp(), {"special": 6}),
        (lambda x: x.sigmoid(), {"special": 6}),
        (lambda x: F.softplus(x), {"special": 6}),
        (lambda x: x.rsqrt(), {"special": 6}),
        (lambda x: F.silu(x), {"special": 6, "mul": 6}),
        (lambda x: F.gelu(x), {"special": 6, "mul": 6}),
        (lambda x: F.relu(x), {"cmp": 6}),
        (lambda x: F.leaky_relu(x), {"cmp": 6, "mul": 6}),
        (lambda x: F.relu6(x), {"cmp": 12}),
        (lambda x: x.clamp(min=1.0), {"cmp": 6}),
        (lambda x: torch.maximum(x, x), {"cmp": 6}),
        (lambda x: torch.max(x, x), {"cmp": 6}),
        (lambda x: x > 0, {"cmp": 6}),
        # 3 values to 1, twice
        (lambda x: x.amax(-1), {"cmp": 4}),
        (lambda x: x.max(-1), {"cmp": 4}),
        (lambda x: x.argmax(), {"cmp": 5}),
        (lambda x: x.sum(-1), {"add": 4}),
        (lambda x: x.sum(), {"add": 5}),
        (lambda x: x.mean(-1), {"add": 4, "mul": 2}),
        (lambda x: x.cumsum(-1), {"add": 4}),
        (lambda x: x[0, 0].cumsum(0), {}),
        # moves, casts, signs, choices
        (lambda x: (-x).abs().double().T.contiguous(), {}),
        (lambda x: x.masked_fill(x.bool(), 1.0), {}),
        (lambda x: torch.zeros(3).fill_(1.0), {}),
        # addresses and masks
        (lambda x: x.long() + 1, {}),
        (lambda x: x.long() * 2, {}),
        (lambda x: x.long() ** 2, {}),
        (lambda x: x.long() > 1, {}),
        (lambda x: x.long().sum(), {}),
        (lambda x: x.long().cumsum(0), {}),
        (lambda x: x.long().max(), {}),
    ],
)
def test_each_operation_costs_what_it_computes(count_dense, compute, expected):
    assert count_dense(compute, X) == OpCounts(**expected)


def test_an_embedding_looks_up_one_row_a_token(count_dense):
    ids = torch.tensor([[1, 2, 2], [0, 0, 4]])
    assert count_dense(nn.Embedding(5, 7), ids) == OpCounts(lookup=6)


def test_a_batch_norm_with_stored_statistics_is_one_affine_map(count_dense):
    norm = nn.BatchNorm1d(3).eval()
    assert count_dense(norm, X) == OpCounts(mul=6, add=6)


@pytest.mark.parametrize(("weight", "mul"), [(True, 2 * (3 * 3 + 1)), (False, 14)])
def test_an_rms_norm_counts_the_same_whole_and_in_pieces(count_dense, weight, mul):
    # a row of 3: 3 squares, 2 additions and 1/3 for the mean, 1 epsilon, 1 rsqrt, 3
    # scalings, and 3 weights where there are any; two rows
    norm = nn.RMSNorm(3, eps=1e-5, elementwise_affine=weight)
    expected = OpCounts(mul=mul, add=6, special=2)
    assert count_dense(norm, X) == expected

    def pieces(x):
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)
        return y * norm.weight if weight else y

    assert count_dense(pieces, X) == expected
