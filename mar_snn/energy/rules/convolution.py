"""Prices of convolutions, exact at the borders.

Everything is separable: along one axis, tap k joins position `w` of the wide side (the
input of a convolution or pooling, the output of a transposed convolution) with position
`n` of the narrow side where

    w = n · stride - padding + k · dilation

and a pair (n, k) whose `w` falls into the padding does not exist. The products of a
layer are the pairs of all axes multiplied; the fan-out of a spike is the number of
pairs at its position, axis by axis. A convolution that is made causal by padding and by
dropping its last outputs is counted as it runs: with the outputs that are dropped.
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.product import Reach, price_spiking
from mar_snn.energy.rules.registry import OpCall, register_op_rule
from mar_snn.energy.rules.traffic import projection_traffic

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


def each(value: Any, dims: int) -> list[int]:
    """One number for every axis, of one number for all or one for each."""
    many = list(value) if isinstance(value, list | tuple) else [value]
    return many * dims if len(many) == 1 else many


@register_op_rule(_aten.convolution.default)
def price_convolution(call: OpCall) -> Cost:
    """A convolution or its transpose; products with padding only where asked for."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args
    sides = zip(x.shape[2:], call.output.shape[2:], strict=True)
    dims = x.dim() - 2
    axes = [
        Axis(wide, narrow, *numbers)
        for (wide, narrow), *numbers in zip(
            ((o, i) if transposed else (i, o) for i, o in sides),
            weight.shape[2:],
            each(stride, dims),
            each(padding, dims),
            each(dilation, dims),
            strict=True,
        )
    ]
    reached = call.output.shape[1] // groups
    outputs = call.output.numel()
    if call.settings.padding == "include":
        pairs = math.prod(axis.narrow * axis.taps for axis in axes)
    else:
        pairs = math.prod(map(count_pairs, axes))
    macs = x.shape[0] * x.shape[1] * reached * pairs
    common = {"bias_add": outputs if bias is not None else 0}
    train = call.spikes(x)
    traffic = projection_traffic(call, x, [(x, train), (weight, None)], bias=bias)
    if train is None:
        return Cost(common | {"dense_mac": macs, "mac": macs}, moved=traffic[0])
    side = "narrow" if transposed else "wide"
    fan_outs = [pairs_by_position(axis, side, x.device) for axis in axes]
    reach = Reach(
        tuple(range(2, x.dim())), lambda events: _fanned_out(events, fan_outs) * reached
    )
    return price_spiking(train, reach, macs, outputs, common, traffic)


def _fanned_out(counts: Tensor, fan_outs: list[Tensor]) -> Tensor:
    """Σ over spikes of the pairs at their positions; `counts` is [*space]."""
    for fan_out in reversed(fan_outs):
        counts = (counts * fan_out).sum(-1)
    return counts
