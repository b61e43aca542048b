"""Prices of poolings and interpolations.

A pooling is a convolution without weights, so its windows are those of `conv_rules`;
what falls into the padding is neither compared nor added. An interpolation between two
values costs what `lerp` costs, one multiplication and two additions, and its positions
and weights are addresses; the nearest value is a move, and free.
"""

import math

import torch

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.convolution import Axis, count_pairs, each
from mar_snn.energy.rules.operation import first_output, overloads
from mar_snn.energy.rules.registry import OpCall, register_op_rule
from mar_snn.energy.rules.traffic import elementwise_traffic

_aten = torch.ops.aten


def _window_pairs(call: OpCall, dims: int, *, dilated: bool) -> int:
    """The values that a pooling reads, padding excluded."""
    x, out = call.args[0], first_output(call)
    taps = each(call.argument(1, "kernel_size"), dims)
    stride = each(call.argument(2, "stride", None) or taps, dims)
    padding = each(call.argument(3, "padding", 0), dims)
    dilation = each(call.argument(4, "dilation", 1) if dilated else 1, dims)
    sides = zip(x.shape[-dims:], out.shape[-dims:], strict=True)
    pairs = math.prod(
        count_pairs(Axis(wide, narrow, *numbers))
        for (wide, narrow), *numbers in zip(
            sides, taps, stride, padding, dilation, strict=True
        )
    )
    return math.prod(x.shape[:-dims]) * pairs


@register_op_rule(
    _aten.max_pool2d_with_indices.default, _aten.max_pool3d_with_indices.default
)
def price_max_pool(call: OpCall) -> Cost:
    """The largest of n values takes n - 1 comparisons."""
    dims = 2 if call.func is _aten.max_pool2d_with_indices.default else 3
    values = _window_pairs(call, dims, dilated=True)
    out = call.output[0]
    moved = elementwise_traffic(call, (out,))
    return Cost({"cmp": values - out.numel()}, moved=moved)


@register_op_rule(_aten.avg_pool2d.default, _aten.avg_pool3d.default)
def price_average_pool(call: OpCall) -> Cost:
    """A mean of n values takes n - 1 additions and one multiplication."""
    dims = 2 if call.func is _aten.avg_pool2d.default else 3
    outputs = call.output.numel()
    values = _window_pairs(call, dims, dilated=False)
    ops = {"add": values - outputs, "mul": outputs}
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(
    _aten._adaptive_avg_pool2d.default, _aten._adaptive_avg_pool3d.default
)
def price_adaptive_average_pool(call: OpCall) -> Cost:
    """As `price_average_pool`, over adaptive windows."""
    outputs = call.output.numel()
    ops = {"add": _adaptive_values(call) - outputs, "mul": outputs}
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(_aten.adaptive_max_pool2d.default, _aten.adaptive_max_pool3d.default)
def price_adaptive_max_pool(call: OpCall) -> Cost:
    """As `price_max_pool`, over adaptive windows."""
    out = call.output[0]
    ops = {"cmp": _adaptive_values(call) - out.numel()}
    return Cost(ops, moved=elementwise_traffic(call, (out,)))


def _adaptive_values(call: OpCall) -> int:
    """Values in all windows; window i of m on n inputs is [⌊in/m⌋, ⌈(i+1)n/m⌉)."""
    x, out, dims = call.args[0], first_output(call), len(call.args[1])
    values = math.prod(x.shape[:-dims])
    for n, m in zip(x.shape[-dims:], out.shape[-dims:], strict=True):
        values *= sum(-(-(i + 1) * n // m) - i * n // m for i in range(m))
    return values


def _register_interpolation(names: str, **per_output: int) -> None:
    def price(call: OpCall) -> Cost:
        size = call.output.numel()
        ops = {field: count * size for field, count in per_output.items()}
        return Cost(ops, moved=elementwise_traffic(call))

    register_op_rule(*overloads(names))(price)


# between 2, 4 and 8 neighbours: 1, 3 and 7 interpolations between two values
_register_interpolation("upsample_linear1d", mul=1, add=2)
_register_interpolation("upsample_bilinear2d", mul=3, add=6)
_register_interpolation("upsample_trilinear3d", mul=7, add=14)
# five sums of four products: one along each row, one across the rows
_register_interpolation("upsample_bicubic2d", mul=20, add=15)
