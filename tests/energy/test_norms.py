"""Norms and softmaxes: x has 2 rows of 3 values unless said."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts

X = torch.tensor([[0.5, 1.0, 2.0], [0.25, 0.75, 3.0]])
IMAGES = torch.rand(2, 4, 3, 1)


@pytest.mark.parametrize(
    ("affine", "bias", "mul", "add"),
    [
        # a row: mean 2 add 1 mul, 3 differences, 3 squares 2 add 1 mul, epsilon, 3
        # scalings: 8 mul, 8 add
        (False, False, 16, 16),
        (True, False, 16 + 6, 16),
        (True, True, 16 + 6, 16 + 6),
    ],
)
def test_a_layer_norm_takes_a_mean_and_a_variance(count_dense, affine, bias, mul, add):
    norm = nn.LayerNorm(3, elementwise_affine=affine, bias=bias)
    assert count_dense(norm, X) == OpCounts(mul=mul, add=add, special=2)


def test_a_layer_norm_counts_the_same_whole_and_in_pieces(count_dense):
    def pieces(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)

    norm = nn.LayerNorm(3, elementwise_affine=False)
    assert count_dense(pieces, X) == count_dense(norm, X)


def test_a_group_norm_is_a_layer_norm_of_each_group(count_dense):
    # 2 samples of 2 groups of 6 values: 5 + 6 + 5 + 1 = 17 add, 6 + 6 + 2 = 14 mul;
    # weights and shifts of 24 values
    norm = nn.GroupNorm(2, 4)
    assert count_dense(norm, IMAGES) == OpCounts(
        add=4 * 17 + 24, mul=4 * 14 + 24, special=4
    )
    as_rows = count_dense(lambda x: F.layer_norm(x.view(4, 6), (6,)), IMAGES)
    assert count_dense(nn.GroupNorm(2, 4, affine=False), IMAGES) == as_rows


def test_a_batch_norm_with_stored_statistics_is_one_affine_map(count_dense):
    assert count_dense(nn.BatchNorm2d(4).eval(), IMAGES) == OpCounts(mul=24, add=24)


def test_a_batch_norm_of_a_batch_normalises_by_it_and_updates_its_statistics(
    count_dense,
):
    # 4 channels of 6 values, weight and shift; then 2 statistics a channel are mixed: 2
    # mul and 1 add each
    ops = {"add": 4 * 17 + 24, "mul": 4 * 14 + 24, "special": 4}
    stateless = nn.BatchNorm2d(4, track_running_stats=False)
    assert count_dense(stateless, IMAGES) == OpCounts(**ops)
    ops["add"] += 8
    ops["mul"] += 16
    assert count_dense(nn.BatchNorm2d(4), IMAGES) == OpCounts(**ops)


def test_an_instance_norm_is_a_group_norm_of_single_channels(count_dense):
    single = count_dense(nn.GroupNorm(4, 4, affine=False), IMAGES)
    assert count_dense(nn.InstanceNorm2d(4), IMAGES) == single


def test_a_softmax_counts_the_same_whole_and_in_pieces_but_for_its_one_division(
    count_dense,
):
    # a row: 2 cmp, 3 differences and 2 sums, 3 exp and 1 division, 3 scalings
    whole = OpCounts(cmp=4, add=10, special=8, mul=6)
    assert count_dense(nn.Softmax(-1), X) == whole
    assert count_dense(nn.Softmin(-1), X) == whole

    def pieces(x):
        e = (x - x.amax(-1, keepdim=True)).exp()
        return e * e.sum(-1, keepdim=True).reciprocal()

    assert count_dense(pieces, X) == whole


def test_a_log_softmax_subtracts_a_log(count_dense):
    # a row: 2 cmp, 3 + 2 + 3 add, 3 exp and 1 log
    assert count_dense(nn.LogSoftmax(-1), X) == OpCounts(cmp=4, add=16, special=8)
    # the largest value is added back once
    assert count_dense(lambda x: x.logsumexp(-1), X) == OpCounts(
        cmp=4, add=12, special=8
    )
    # over both axes: one row of 6
    assert count_dense(lambda x: x.logsumexp((0, 1)), X) == OpCounts(
        cmp=5, add=12, special=7
    )


def test_a_norm_reads_its_input_and_its_weights_and_writes_its_result(count_model):
    for norm, weights in ((nn.LayerNorm(3), 6), (nn.RMSNorm(3), 3)):
        (row,) = count_model(norm, X).rows()
        assert row.moved.activation == 2 * 6 * 4
        assert row.moved.weight_dense == row.moved.weight_touched == weights * 4
