"""Tensors as rows: what stays a view, and which threshold is whose."""

import pytest
import torch

from mar_snn.neurons.layout import (
    as_channel_rows,
    as_rows,
    channels,
    channels_last_order,
    new_tensor,
    order_of,
    sum_to_threshold,
)


def test_the_order_is_that_of_memory_from_slow_to_fast():
    x = torch.empty(2, 3, 4, 5)
    assert order_of(x) == [0, 1, 2, 3]
    assert order_of(x.contiguous(memory_format=torch.channels_last)) == [0, 2, 3, 1]
    assert order_of(x.transpose(0, 3)) == [3, 1, 2, 0]
    assert order_of(torch.empty(())) == []


@pytest.mark.parametrize(
    "x", [torch.empty(1, 3).expand(2, 3), torch.empty(2, 6)[:, ::2], torch.empty(0, 3)]
)
def test_tensors_with_gaps_keep_their_axes(x):
    assert order_of(x) == [0, 1]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x[::2],
        lambda x: x[:, 1:],
        lambda x: x.transpose(1, 3),
        lambda x: x[:1].expand(4, 3, 5, 7),
    ],
)
def test_dense_steps_become_rows_without_a_copy(view):
    x_seq = view(torch.randn(6, 3, 5, 7))
    order = order_of(x_seq[0])
    rows = as_rows(x_seq, order)
    assert rows.shape == (len(x_seq), x_seq[0].numel())
    assert rows.data_ptr() == x_seq.data_ptr()
    assert torch.equal(
        rows.view(rows.shape[0], *x_seq.permute(0, *[i + 1 for i in order]).shape[1:]),
        x_seq.permute(0, *[i + 1 for i in order]),
    )


def test_steps_with_gaps_are_copied():
    x_seq = torch.arange(12.0).view(2, 2, 3)[:, :, :2]
    rows = as_rows(x_seq, [0, 1])
    assert rows.tolist() == [[0.0, 1.0, 3.0, 4.0], [6.0, 7.0, 9.0, 10.0]]


def test_channel_rows_keep_the_distance_of_a_slice():
    wide = torch.randn(4, 6, 9)
    x = wide[..., 2:7]
    rows = as_channel_rows(x, channels_last_order(x))
    assert rows.data_ptr() == x.data_ptr()
    assert rows.stride() == (9, 1)
    turned = x.transpose(0, 1)
    assert channels_last_order(turned) == [1, 0, 2]
    assert as_channel_rows(turned, [1, 0, 2]).data_ptr() == x.data_ptr()


def test_channel_rows_of_scattered_channels_are_copied():
    x = torch.randn(5, 4).t()
    rows = as_channel_rows(x, channels_last_order(x))
    assert rows.stride() == (5, 1)
    assert torch.equal(rows, x)
    assert as_channel_rows(torch.randn(5), [0]).shape == (1, 5)


def test_fresh_memory_is_dense_in_any_order_and_no_view():
    fresh = new_tensor((2, 3, 4), [1, 2, 0], torch.empty(0), torch.float64)
    assert fresh.shape == (2, 3, 4)
    assert fresh.stride() == (1, 8, 2)
    assert fresh.dtype == torch.float64
    assert not fresh._is_view()


def test_neurons_of_a_row_find_their_threshold():
    # [batch, channel, height]: thresholds last for a height, or for a lone element
    thresholds = torch.ones(3, 1)
    assert channels(thresholds, (2, 3, 5), [0, 1, 2]) == (1, 5)
    assert channels(thresholds, (2, 3, 5), [0, 2, 1]) == (1, 1)
    assert channels(torch.ones(5), (2, 3, 5), [2, 0, 1]) == (2, 6)
    assert channels(torch.ones(1), (2, 3, 5), [0, 1, 2]) == (-1, 1)


@pytest.mark.parametrize("shape", [(3, 5), (4,), (2, 2, 3, 5)])
def test_thresholds_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="may differ along one axis of the neurons"):
        channels(torch.ones(shape), (2, 3, 5), [0, 1, 2])


def test_gradients_of_neurons_add_up_to_those_of_their_threshold():
    of_neurons = torch.arange(12.0).view(2, 3, 2)
    assert sum_to_threshold(of_neurons, 1, torch.ones(3, 1)).tolist() == [
        [0.0 + 1 + 6 + 7],
        [2.0 + 3 + 8 + 9],
        [4.0 + 5 + 10 + 11],
    ]
    assert sum_to_threshold(of_neurons, -1, torch.ones(1)).tolist() == [66.0]
    assert sum_to_threshold(torch.ones(2), 0, torch.ones(2)).tolist() == [1.0, 1.0]
