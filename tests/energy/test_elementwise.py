"""Arithmetic outside of products. Every operand has 2 · 3 elements unless said."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts
from mar_snn.energy.counts import ByteCounts
from mar_snn.energy.rules.operation import comparisons_for_first
from tests.energy.hand_derived import Call

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
        (lambda x: F.hardshrink(x), {"cmp": 12}),
        (lambda x: F.softshrink(x), {"cmp": 12, "add": 6}),
        (lambda x: F.hardsigmoid(x), {"cmp": 12, "add": 6, "mul": 6}),
        (lambda x: F.hardswish(x), {"cmp": 12, "add": 6, "mul": 12}),
        (lambda x: F.prelu(x, x[0, :1]), {"cmp": 6, "mul": 6}),
        (lambda x: F.elu(x), {"cmp": 6, "special": 6, "mul": 6}),
        (lambda x: F.selu(x), {"cmp": 6, "special": 6, "mul": 6}),
        (lambda x: F.celu(x), {"cmp": 6, "special": 6, "mul": 6}),
        (lambda x: F.mish(x), {"special": 6, "mul": 6}),
        (lambda x: F.logsigmoid(x), {"special": 6}),
        (lambda x: F.tanhshrink(x), {"special": 6, "add": 6}),
        # |x| is free, 1 + |x| and the division are not
        (lambda x: F.softsign(x), {"add": 6, "special": 6}),
        (lambda x: F.threshold(x, 1.0, 0.0), {"cmp": 6}),
        # 4 values to 2, twice
        (lambda x: F.glu(x[:, :2]), {"special": 2, "mul": 2}),
        (lambda x: F.dropout(x, 0.5, training=False), {}),
        (lambda x: x.clamp(min=1.0, max=2.0), {"cmp": 12}),
        (lambda x: x.long().clamp(min=1), {}),
        (lambda x: x.round(), {"add": 6}),
        (lambda x: x.fmod(2.0), {"special": 6}),
        (lambda x: x // 2, {"special": 6}),
        (lambda x: x.sign(), {"cmp": 6}),
        (lambda x: x.sqrt().log().atan2(x), {"special": 18}),
        (lambda x: torch.addcdiv(x, x, x, value=2), {"special": 6, "add": 6, "mul": 6}),
        (lambda x: torch.addcmul(x, x, x, value=2), {"mul": 12, "add": 6}),
        (lambda x: torch.logaddexp(x, x), {"cmp": 6, "add": 12, "special": 12}),
        (lambda x: x**x, {"special": 6}),
        (lambda x: torch.addr(x, x[:, 0], x[0]), {"mul": 6, "add": 6}),
        (lambda x: torch.addr(x, x[:, 0], x[0], beta=0, alpha=2), {"mul": 12}),
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
        (lambda x: x.cumprod(-1), {"mul": 4}),
        (lambda x: x.cummax(-1), {"cmp": 4}),
        (lambda x: x.logcumsumexp(-1), {"cmp": 4, "add": 8, "special": 8}),
        (lambda x: x.prod(-1), {"mul": 4}),
        (lambda x: x.aminmax(), {"cmp": 10}),
        # a row: 2 add and 1/3; 3 differences and squares, 2 add and a scaling
        (lambda x: x.var(-1), {"add": 14, "mul": 10}),
        (lambda x: x.std(-1), {"add": 14, "mul": 10, "special": 2}),
        # order 2, 1, infinite, 0 and 3
        (lambda x: x.norm(dim=-1), {"mul": 6, "add": 4, "special": 2}),
        (lambda x: x.norm(1, dim=-1), {"add": 4}),
        (lambda x: x.norm(torch.inf, dim=-1), {"cmp": 4}),
        (lambda x: x.norm(0, dim=-1), {"cmp": 6, "add": 4}),
        (lambda x: x.norm(3, dim=-1), {"special": 8, "add": 4}),
        # the largest of 3: 2; the two largest: 1 + ceil(log2 3); all: 1 + 2
        (lambda x: x.topk(1), {"cmp": 4}),
        (lambda x: x.topk(2), {"cmp": 6}),
        (lambda x: x.topk(0), {}),
        (lambda x: x.sort(), {"cmp": 6}),
        (lambda x: x.argsort(-1), {"cmp": 6}),
        # the third smallest of 3 is the largest
        (lambda x: x.kthvalue(3), {"cmp": 4}),
        # the middle of a row of 3 is the second; of all 6 the third: 3 + 3 + 3
        (lambda x: x.median(-1), {"cmp": 6}),
        (lambda x: x.median(), {"cmp": 9}),
        (lambda x: x.mode(-1), {"cmp": 6 + 4}),
        # 3 bounds: 2 comparisons a value; 4 bounds would take 3
        (lambda x: torch.bucketize(x, torch.ones(3)), {"cmp": 12}),
        (lambda x: torch.searchsorted(torch.ones(4), x), {"cmp": 18}),
        (lambda x: torch.bucketize(x.long(), torch.arange(3)), {}),
        (lambda x: x.scatter_add(0, torch.zeros(1, 3).long(), x[:1]), {"add": 3}),
        (lambda x: x.index_add(0, torch.tensor([1]), x[:1]), {"add": 3}),
        (
            lambda x: x.scatter_reduce(0, torch.zeros(1, 3).long(), x[:1], "sum"),
            {"add": 3},
        ),
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
        (lambda x: x.long().sort(), {}),
        (lambda x: x.long().clone().pow_(3), {}),
        (lambda x: (x > 0) ^ (x > 1), {"cmp": 12}),
        (lambda x: torch.rand_like(x).uniform_(), {}),
        (lambda x: torch.bernoulli(x.clamp(max=1.0)), {"cmp": 12}),
        (lambda x: x.take(torch.tensor([0, 5])), {}),
    ],
)
def test_each_operation_costs_what_it_computes(count_dense, compute, expected):
    assert count_dense(compute, X) == OpCounts(**expected)


def test_an_embedding_looks_up_one_row_a_token(count_dense):
    ids = torch.tensor([[1, 2, 2], [0, 0, 4]])
    assert count_dense(nn.Embedding(5, 7), ids) == OpCounts(lookup=6)


def test_an_embedding_moves_the_rows_it_reads(count_model):
    (row,) = count_model(nn.Embedding(50, 7), torch.tensor([[1, 2, 2]])).rows()
    # 3 rows of 7 floats, read and written; ids are addresses
    assert row.moved == ByteCounts(weight_dense=84, weight_touched=84, activation=84)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # bags of 3, 0 and 1 ids, 7 columns: 2 sums, or comparisons, a column
        ("sum", {"add": 14}),
        ("mean", {"add": 14, "mul": 14}),
        ("max", {"cmp": 14}),
    ],
)
def test_a_bag_of_embeddings_joins_its_rows(count_dense, mode, expected):
    ids, offsets = torch.tensor([1, 2, 2, 4]), torch.tensor([0, 3, 3])
    table = torch.rand(5, 7)

    def bag(ids, offsets):
        return F.embedding_bag(ids, table, offsets, mode=mode)

    assert count_dense(bag, ids, offsets) == OpCounts(lookup=4, **expected)


def test_weighted_bags_multiply(count_model):
    ids, offsets, table = torch.tensor([1, 2, 2]), torch.tensor([0]), torch.rand(5, 7)

    def bag(ids):
        return F.embedding_bag(
            ids, table, offsets, mode="sum", per_sample_weights=torch.ones(3)
        )

    (row,) = count_model(Call(bag), ids).rows()
    assert row.ops == OpCounts(lookup=3, add=14, mul=21)
    # a table that is no parameter: 3 rows and the result
    assert row.moved == ByteCounts(activation=(21 + 7) * 4)


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


def test_an_order_takes_the_comparisons_of_a_tree():
    # the largest of n, and sorts of 1 to 5: 0, 1, 3, 5, 8
    assert [comparisons_for_first(1, n) for n in (1, 2, 7)] == [0, 1, 6]
    assert [comparisons_for_first(n, n) for n in range(1, 6)] == [0, 1, 3, 5, 8]


def test_each_operand_is_read_once_and_each_result_written(count_model):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            # a column that is expanded is read as often as it is stored
            return x * self.scale + x[:, :1].expand(2, 3)

    (row,) = count_model(Scaled(), X).rows()
    assert row.moved == ByteCounts(
        # product: 6 in, 6 out; sum: 6 and 2 in, 6 out
        activation=(12 + 14) * 4,
        weight_dense=12,
        weight_touched=12,
    )
    assert row.dense_moved == row.moved


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # 6 elements; 5 additions of the sum and one product of the mean
        (lambda x: F.mse_loss(x, x), {"add": 11, "mul": 7}),
        (lambda x: F.mse_loss(x, x, reduction="sum"), {"add": 11, "mul": 6}),
        (lambda x: F.mse_loss(x, x, reduction="none"), {"add": 6, "mul": 6}),
        (lambda x: F.huber_loss(x, x), {"add": 11, "mul": 13, "cmp": 6}),
        (lambda x: F.smooth_l1_loss(x, x), {"add": 11, "mul": 13, "cmp": 6}),
        (
            lambda x: F.binary_cross_entropy_with_logits(x, x),
            {"cmp": 6, "add": 23, "mul": 7, "special": 6},
        ),
        # 2 labels: 1 addition, 1 product
        (lambda x: F.nll_loss(x, torch.tensor([0, 2])), {"add": 1, "mul": 1}),
    ],
)
def test_losses_count_their_elements_and_their_reduction(count_dense, loss, expected):
    assert count_dense(loss, X) == OpCounts(**expected)
