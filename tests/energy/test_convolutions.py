"""Fan-out at borders, against figures worked by hand and against plain loops."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts
from mar_snn.energy.counts import ByteCounts
from mar_snn.energy.rules.convolution import Axis, count_pairs, pairs_by_position

CORNER = [[[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]]]


def test_a_spike_in_the_corner_reaches_four_of_nine_taps(count_spikes):
    # 2·2 positions of a 3x3 kernel see the corner, 2 channels: 8. Dense: corners see 4
    # inputs, edges 6, the centre 9: 4·4 + 4·6 + 9 = 49, 2 channels: 98
    counts = count_spikes(nn.Conv2d(1, 2, 3, padding=1, bias=False), CORNER)
    assert counts == OpCounts(dense_mac=98, ac_add=8, sop_unit=8)


def test_a_full_image_of_spikes_costs_what_the_dense_layer_costs(count_spikes):
    ones = [[[[-1.0] * 3] * 3]]
    counts = count_spikes(nn.Conv2d(1, 2, 3, padding=1, bias=False), ones)
    assert counts == OpCounts(dense_mac=98, ac_sub=98, sop_unit=98)


def test_products_with_padding_are_not_products_of_the_dense_layer(count_dense):
    # 98 as above, not 9 outputs · 9 taps · 2 = 162
    layer = nn.Conv2d(1, 2, 3, padding=1, bias=False)
    assert count_dense(layer, torch.rand(1, 1, 3, 3)) == OpCounts(dense_mac=98, mac=98)


def test_a_bias_of_a_convolution_is_added_at_each_output(count_spikes):
    # 9 positions · 2 channels
    counts = count_spikes(nn.Conv2d(1, 2, 3, padding=1), CORNER)
    assert counts == OpCounts(dense_mac=98, ac_add=8, sop_unit=8, bias_add=18)


def test_a_depthwise_convolution_keeps_a_spike_in_its_channel(count_spikes):
    # 4 channels of 1x1: one spike reaches one output
    layer = nn.Conv2d(4, 4, 1, groups=4, bias=False)
    counts = count_spikes(layer, [[[[0.0]], [[1.0]], [[0.0]], [[0.0]]]])
    assert counts == OpCounts(dense_mac=4, ac_add=1, sop_unit=1)


def test_a_strided_convolution_sees_a_spike_once(count_spikes):
    # 2x2 windows that do not overlap: 4 outputs · 4 taps dense
    image = [[[[0.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]]]
    layer = nn.Conv2d(1, 1, 2, stride=2, bias=False)
    counts = count_spikes(layer, image)
    assert counts == OpCounts(dense_mac=16, ac_add=1, sop_unit=1)


def test_an_image_without_a_batch_counts_the_same(count_spikes):
    counts = count_spikes(nn.Conv2d(1, 2, 3, padding=1, bias=False), CORNER[0])
    assert counts == OpCounts(dense_mac=98, ac_add=8, sop_unit=8)


def by_loops(x, out, taps, stride, padding, dilation, groups, transposed):
    """(accumulations for +1, for -1, dense products) by walking over every product."""
    add = sub = dense = 0
    batch, channels, *space = x.shape
    narrow, wide = (space, out.shape[2:]) if transposed else (out.shape[2:], space)
    fan = out.shape[1] // groups
    for position in product(*map(range, narrow)):
        for tap in product(*map(range, taps)):
            other = [
                n * s - p + k * d
                for n, k, s, p, d in zip(
                    position, tap, stride, padding, dilation, strict=True
                )
            ]
            if not all(0 <= w < size for w, size in zip(other, wide, strict=True)):
                continue
            at = position if transposed else tuple(other)
            for n, c in product(range(batch), range(channels)):
                value = x[(n, c, *at)].item()
                dense += fan
                add += fan * (value == 1)
                sub += fan * (value == -1)
    return add, sub, dense


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("space", "taps", "stride", "padding", "dilation", "groups"),
    [
        ((7,), (3,), (1,), (0,), (1,), 1),
        ((5,), (4,), (3,), (2,), (1,), 2),
        ((6, 5), (3, 2), (2, 1), (1, 0), (1, 2), 1),
        ((5, 7), (3, 3), (2, 3), (2, 2), (2, 1), 2),
        ((3, 4, 5), (2, 1, 3), (1, 2, 2), (0, 0, 1), (1, 1, 1), 2),
    ],
)
def test_every_shape_agrees_with_plain_loops(
    count_spikes, space, taps, stride, padding, dilation, groups, transposed
):
    name = f"conv{'_transpose' if transposed else ''}{len(space)}d"
    x = torch.randint(-1, 2, (2, 4, *space)).float()
    # [out, in / groups] and transposed [in, out / groups]: 4 and 6 channels
    shape = (4, 6 // groups) if transposed else (6, 4 // groups)
    weight = torch.rand(*shape, *taps)
    options = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }

    def layer(spikes):
        return getattr(F, name)(spikes, weight, **options)

    add, sub, dense = by_loops(
        x, layer(x), taps, stride, padding, dilation, groups, transposed
    )
    assert count_spikes(layer, x.tolist()) == OpCounts(
        dense_mac=dense, ac_add=add, ac_sub=sub, sop_unit=add + sub
    )


def test_the_planes_of_a_coder_are_convolved_one_by_one(decode, count_model):
    planes = torch.tensor([1.0, -1, 0]).view(3, 1, 1, 1).expand(3, 1, 1, 2)
    model = nn.Sequential(decode("geometric"), nn.Conv1d(1, 2, 2, bias=False))
    row = count_model(model, planes).rows()[-1]
    # one output position of 2 channels sees both positions: 2 spikes · 2 each sign;
    # rescaled twice
    assert row.ops == OpCounts(dense_mac=4, ac_add=4, ac_sub=4, sop_unit=8, mul=4)


@pytest.mark.parametrize("axis", [Axis(5, 3, 3, 2, 1, 1), Axis(4, 6, 2, 1, 2, 3)])
def test_both_sides_of_an_axis_share_its_pairs(axis):
    cpu = torch.device("cpu")
    wide, narrow = (pairs_by_position(axis, side, cpu) for side in ("wide", "narrow"))
    assert wide.sum() == narrow.sum() == count_pairs(axis)
    assert (len(wide), len(narrow)) == (axis.wide, axis.narrow)


# ---- pooling


def test_a_maximum_of_spikes_is_spikes(count_spikes):
    # windows {1, -1}, {0, 0}: maxima 1 and 0, one comparison each; then 1 spike · 3
    layer = nn.Sequential(nn.MaxPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 3, False))
    counts = count_spikes(layer, [[[[1.0, -1, 0, 0]]]])
    assert counts == OpCounts(dense_mac=6, ac_add=3, sop_unit=3, cmp=2)


def test_the_padding_of_a_pooling_is_not_compared(count_dense):
    # 3 positions, windows of 2, 3 and 2 values at stride 1: 7 values, 3 outputs
    layer = nn.MaxPool2d((1, 3), stride=1, padding=(0, 1))
    assert count_dense(layer, torch.rand(1, 1, 1, 3)) == OpCounts(cmp=4)
    # a cube of 2x2x2 is one window of 8
    assert count_dense(nn.MaxPool3d(2), torch.rand(1, 1, 2, 2, 2)) == OpCounts(cmp=7)


def test_a_mean_of_spikes_is_no_spike(count_spikes):
    # windows of 2: 1 addition and 1 multiplication each; then 2 · 3 products
    layer = nn.Sequential(nn.AvgPool2d((1, 2)), nn.Flatten(), nn.Linear(2, 3, False))
    counts = count_spikes(layer, [[[[1.0, 1, 0, 0]]]])
    assert counts == OpCounts(dense_mac=6, mac=6, add=2, mul=2)


def test_other_means_count_their_windows(count_dense):
    # one window of 8
    cube = torch.rand(1, 1, 2, 2, 2)
    assert count_dense(nn.AvgPool3d(2), cube) == OpCounts(add=7, mul=1)
    # 3 values to 2 windows [0, 2) and [1, 3): 2 + 2 values, 2 outputs
    row = torch.rand(1, 1, 1, 3)
    layer = nn.AdaptiveAvgPool2d((1, 2))
    assert count_dense(layer, row) == OpCounts(add=2, mul=2)
    # one window of 2 · 2
    image = torch.rand(1, 1, 2, 2)
    assert count_dense(nn.AdaptiveAvgPool2d(1), image) == OpCounts(add=3, mul=1)


def test_adaptive_maxima_and_interpolations_count_their_windows(count_dense):
    row = torch.rand(1, 1, 1, 3)
    # windows of 2 and 2 values, as for the means
    assert count_dense(nn.AdaptiveMaxPool2d((1, 2)), row) == OpCounts(cmp=2)
    assert count_dense(nn.AdaptiveMaxPool3d(1), row[None]) == OpCounts(cmp=2)
    assert count_dense(nn.AdaptiveAvgPool3d(1), row[None]) == OpCounts(add=2, mul=1)
    line = torch.rand(1, 1, 4)
    assert count_dense(nn.MaxPool1d(2), line) == OpCounts(cmp=2)
    assert count_dense(nn.AvgPool1d(2), line) == OpCounts(add=2, mul=2)

    def grow(x, mode):
        return count_dense(lambda x: F.interpolate(x, scale_factor=2, mode=mode), x)

    # 8, 6 · 2, 2³ · 8 results; 1, 3, 7 interpolations, or five sums of four products
    assert grow(line, "linear") == OpCounts(mul=8, add=16)
    assert grow(row, "bilinear") == OpCounts(mul=36, add=72)
    assert grow(torch.rand(1, 1, 2, 2, 2), "trilinear") == OpCounts(mul=448, add=896)
    assert grow(row, "bicubic") == OpCounts(mul=240, add=180)
    assert grow(row, "nearest") == OpCounts()


def test_a_convolution_reads_the_kernels_of_channels_that_fire(count_model, fire):
    # 2 samples of 3 channels; channel 1 fires in one of them, channel 2 in both
    x = torch.zeros(2, 3, 4)
    x[0, 1, 0], x[0, 2, 1], x[1, 2, 3] = 1, -1, 1
    model = nn.Sequential(fire(), nn.Conv1d(3, 5, 2))
    (row,) = count_model(model, x).rows()
    kernel, bias = 5 * 2 * 4, 5 * 4
    assert row.moved == ByteCounts(
        weight_dense=3 * kernel + bias,
        weight_touched=2 * kernel + bias,
        spike_bitmap=6,
        activation=2 * 5 * 3 * 4,
    )
    assert row.dense_moved == ByteCounts(
        weight_dense=3 * kernel + bias,
        weight_touched=3 * kernel + bias,
        activation=(2 * 5 * 3 + 24) * 4,
    )
