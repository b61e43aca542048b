"""Prices of convolutions and poolings, exact at the borders.

Everything here is separable: along one axis, tap k joins position `w` of the wide side
(the input of a convolution or pooling, the output of a transposed convolution) with
position `n` of the narrow side where

    w = n · stride - padding + k · dilation

and a pair (n, k) whose `w` falls into the padding does not exist. The products of a
layer are the pairs of all axes multiplied; the fan-out of a spike is the number of
pairs at its position, axis by axis.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.op_rules import price_spiking
from mar_snn.energy.rules import OpCall, register_op_rule
from mar_snn.energy.spike_trains import Events

_aten = torch.ops.aten


class Axis(NamedTuple):
    """One spatial axis; see the top of this file."""

    wide: int
    narrow: int
    taps: int
    stride: int
    padding: int
    dilation: int


@lru_cache(maxsize=1024)
def count_pairs(axis: Axis) -> int:
    """The (narrow position, tap) pairs that do not fall into the padding."""
    total = 0
    for k in range(axis.taps):
        start = k * axis.dilation - axis.padding
        # 0 <= start + n · stride < wide
        first = max(0, -(start // axis.stride))
        last = min(axis.narrow - 1, (axis.wide - 1 - start) // axis.stride)
        total += max(0, last - first + 1)
    return total


@lru_cache(maxsize=1024)
def pairs_by_position(axis: Axis, side: str, device: torch.device) -> Tensor:
    """The number of pairs at each position of the "wide" or "narrow" side, int64."""
    narrow = torch.arange(axis.narrow, device=device)
    taps = torch.arange(axis.taps, device=device)[:, None]
    wide = taps * axis.dilation - axis.padding + narrow * axis.stride
    exists = (wide >= 0) & (wide < axis.wide)
    if side == "narrow":
        return exists.sum(0)
    counts = torch.zeros(axis.wide, dtype=torch.int64, device=device)
    wide = wide.clamp(0, axis.wide - 1)
    return counts.index_add_(0, wide.flatten(), exists.long().flatten())


@register_op_rule(_aten.convolution.default)
def price_convolution(call: OpCall) -> Cost:
    """A convolution or its transpose; products with padding are not counted."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
    sides = zip(x.shape[2:], call.output.shape[2:], strict=True)
    axes = [
        Axis(wide, narrow, *numbers)
        for (wide, narrow), *numbers in zip(
            ((o, i) if transposed else (i, o) for i, o in sides),
            weight.shape[2:],
            stride,
            padding,
            dilation,
            strict=True,
        )
    ]
    reached = call.output.shape[1] // groups
    outputs = call.output.numel()
    macs = x.shape[0] * x.shape[1] * reached * math.prod(map(count_pairs, axes))
    common = {"bias_add": outputs if bias is not None else 0}
    train = call.spikes(x)
    if train is None:
        return Cost(common | {"dense_mac": macs, "mac": macs})
    side = "narrow" if transposed else "wide"
    fan_outs = [pairs_by_position(axis, side, x.device) for axis in axes]
    accumulations = Events(
        _fanned_out([plane > 0 for plane in train.planes], fan_outs) * reached,
        _fanned_out([plane < 0 for plane in train.planes], fan_outs) * reached,
    )
    return price_spiking(train, accumulations, macs, outputs, common)


def _fanned_out(fired: list[Tensor], fan_outs: list[Tensor]) -> Tensor:
    """Σ over spikes of the pairs at their positions; a plane is [N, C, *space]."""
    counts = torch.stack([plane.sum((0, 1)) for plane in fired]).sum(0)
    for fan_out in reversed(fan_outs):
        counts = (counts * fan_out).sum(-1)
    return counts


def _window_pairs(call: OpCall, dims: int, *, dilated: bool) -> int:
    """The values that a pooling reads, padding excluded."""
    out = call.output[0] if isinstance(call.output, tuple) else call.output
    x = call.args[0]
    taps = _each(call.argument(1, "kernel_size"), dims)
    stride = _each(call.argument(2, "stride", None) or taps, dims)
    padding = _each(call.argument(3, "padding", 0), dims)
    dilation = _each(call.argument(4, "dilation", 1) if dilated else 1, dims)
    sides = zip(x.shape[-dims:], out.shape[-dims:], strict=True)
    pairs = math.prod(
        count_pairs(Axis(wide, narrow, *numbers))
        for (wide, narrow), *numbers in zip(
            sides, taps, stride, padding, dilation, strict=True
        )
    )
    return math.prod(x.shape[:-dims]) * pairs


def _each(value: Any, dims: int) -> list[int]:
    """One number for every axis, of one number for all or one for each."""
    many = list(value) if isinstance(value, list | tuple) else [value]
    return many * dims if len(many) == 1 else many


@register_op_rule(
    _aten.max_pool2d_with_indices.default, _aten.max_pool3d_with_indices.default
)
def price_max_pool(call: OpCall) -> Cost:
    """The largest of n values takes n - 1 comparisons."""
    dims = 2 if call.func is _aten.max_pool2d_with_indices.default else 3
    values = _window_pairs(call, dims, dilated=True)
    return Cost({"cmp": values - call.output[0].numel()})


@register_op_rule(_aten.avg_pool2d.default, _aten.avg_pool3d.default)
def price_average_pool(call: OpCall) -> Cost:
    """A mean of n values takes n - 1 additions and one multiplication."""
    dims = 2 if call.func is _aten.avg_pool2d.default else 3
    outputs = call.output.numel()
    values = _window_pairs(call, dims, dilated=False)
    return Cost({"add": values - outputs, "mul": outputs})


@register_op_rule(
    _aten._adaptive_avg_pool2d.default, _aten._adaptive_avg_pool3d.default
)
def price_adaptive_average_pool(call: OpCall) -> Cost:
    """As `price_average_pool`, window i of m on n inputs being [⌊in/m⌋, ⌈(i+1)n/m⌉)."""
    dims = len(call.args[1])
    x, outputs = call.args[0], call.output.numel()
    values = math.prod(x.shape[:-dims])
    for n, m in zip(x.shape[-dims:], call.output.shape[-dims:], strict=True):
        values *= sum(-(-(i + 1) * n // m) - i * n // m for i in range(m))
    return Cost({"add": values - outputs, "mul": outputs})
