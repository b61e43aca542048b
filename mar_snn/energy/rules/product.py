"""Prices of products of matrices and vectors.

A product of a spike with a weight is an accumulation: a +1 adds the weight (`ac_add`),
a -1 subtracts it (`ac_sub`). Each spike pays once for every output it reaches, its
fan-out:

    ac = Σ over planes and inputs of [spike ≠ 0] · fan-out(input)

Where both factors are unit spikes, a product is there only where both fire
(`ac_coincidence`). einsum, matmul and F.linear are made of the operations below.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.registry import OpCall, register_op_rule
from mar_snn.energy.rules.traffic import (
    Traffic,
    elementwise_traffic,
    projection_traffic,
)
from mar_snn.energy.spike_trains import SpikeTrain

_aten = torch.ops.aten


@register_op_rule(_aten.mm.default, _aten.bmm.default, _aten._int_mm.default)
def price_product(call: OpCall) -> Cost:
    """A @ B, either of them spikes."""
    return price_projection(call, call.args[0], call.args[1])


@register_op_rule(
    _aten.addmm.default,
    _aten.baddbmm.default,
    _aten.addbmm.default,
    _aten._addmm_activation.default,
)
def price_product_with_bias(call: OpCall) -> Cost:
    """A product and a bias: beta · bias + alpha · A @ B.

    addbmm sums its batch too; a fused activation costs what it costs alone: relu one
    comparison, gelu one special function and one multiplication.
    """
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    scalings = (alpha != 1) + (beta not in (0, 1))
    bias = call.args[0] if beta != 0 else None
    extra: dict[str, int] = {"mul": 0}
    if call.func is _aten._addmm_activation.default:
        size = call.output.numel()
        gelu = call.kwargs.get("use_gelu", False)
        extra = {"mul": size, "special": size} if gelu else {"mul": 0, "cmp": size}
    extra["mul"] += scalings * call.output.numel()
    return price_projection(call, call.args[1], call.args[2], bias=bias, extra=extra)


@register_op_rule(_aten._grouped_mm.default)
def price_grouped_product(call: OpCall) -> Cost | None:
    """Rows of A, each times the one matrix of B that its group has: experts."""
    a, b = call.args[:2]
    if (a.dim(), b.dim()) != (2, 3):
        return None
    return price_projection(call, a, b, bias=call.argument(3, "bias"))


@register_op_rule(_aten.mv.default, _aten.dot.default, _aten.vdot.default)
def price_product_with_vector(call: OpCall) -> Cost:
    """A @ v or u · v."""
    return price_projection(call, call.args[0], call.args[1])


@register_op_rule(_aten.addmv.default)
def price_vector_product_with_bias(call: OpCall) -> Cost:
    """The same with a vector: beta · bias + alpha · A @ v."""
    return price_product_with_bias(call)


@register_op_rule(_aten.addr.default)
def price_outer_product(call: OpCall) -> Cost:
    """Of beta · M + alpha · u ⊗ v: a multiplication and an addition an element."""
    size = call.output.numel()
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    scalings = (alpha != 1) + (beta not in (0, 1))
    return Cost(
        {"mul": size * (1 + scalings), "add": size if beta != 0 else 0},
        moved=elementwise_traffic(call),
    )


@register_op_rule(_aten._trilinear.default)
def price_bilinear_form(call: OpCall) -> Cost:
    """Σ over i, j of x[i] W[o, i, j] y[j]: two MACs for each row, o, i and j."""
    first, weight, second, *expanded, summed = call.args[:7]
    sizes = [1] * (first.dim() + len(expanded[0]))
    for tensor, inserted in zip((first, weight, second), expanded, strict=True):
        shape = list(tensor.shape)
        for axis in sorted(inserted):
            shape.insert(axis, 1)
        sizes = [max(a, b) for a, b in zip(sizes, shape, strict=True)]
    if not summed:
        return Cost({"mul": 2 * math.prod(sizes)}, moved=elementwise_traffic(call))
    macs = 2 * math.prod(sizes)
    return Cost({"dense_mac": macs, "mac": macs}, moved=elementwise_traffic(call))


def price_projection(
    call: OpCall,
    a: Tensor,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    extra: Mapping[str, int] | None = None,
) -> Cost:
    """A @ B plus a bias, either of them spikes, and `extra` operations."""
    outputs, features = call.output.numel(), a.shape[-1]
    batches = a.shape[0] if a.dim() == 3 else 1
    macs = batches * _length(a, -2) * features * _length(b, -1)
    common = {"bias_add": outputs if bias is not None else 0, **(extra or {})}
    left, right = call.spikes(a), call.spikes(b)
    # a spike of A meets a row of B, a spike of B a column of A
    x = a if left or not right else b
    traffic = projection_traffic(call, x, [(a, left), (b, right)], bias=bias)
    if left and right and left.readout == right.readout == "unit":
        meetings = _coincidences(left, right)
        ops = {"dense_mac": macs, "ac_coincidence": meetings, "sop_unit": meetings}
        dense = common | {"dense_mac": macs, "mac": macs}
        return Cost(common | ops, dense, moved=traffic[0], dense_moved=traffic[1])
    train = left or right
    if train is None:
        return Cost(common | {"dense_mac": macs, "mac": macs}, moved=traffic[0])
    fan_out = _length(b, -1) if left else _length(a, -2)
    reach = Reach((), lambda events: events * fan_out)
    return price_spiking(train, reach, macs, outputs, common, traffic)


def _length(factor: Tensor, dim: int) -> int:
    return factor.shape[dim] if factor.dim() > 1 else 1


def _coincidences(a: SpikeTrain, b: SpikeTrain) -> Tensor:
    """Σ over k of (spikes in column k of A) · (spikes in row k of B)."""
    # by batch, where there is one, and by k
    columns = a.fired(*range(a.ndim - 2), a.ndim - 1)
    rows = b.fired(*range(b.ndim - 2), max(b.ndim - 2, 0))
    return (columns * rows).sum()


class Reach(NamedTuple):
    """Which outputs a spike reaches.

    Attributes:
        axes: the axes of the input along which the fan-out differs.
        accumulate: numbers of spikes by position along `axes` -> accumulations.
    """

    axes: tuple[int, ...]
    accumulate: Callable[[Tensor], Tensor]


def spiking_ops(
    train: SpikeTrain, reach: Reach, macs: int | Tensor, outputs: int | Tensor
) -> dict[str, int | Tensor]:
    """What a projection of `train` computes instead of `macs` products.

    An integer spike k is |k| accumulations, and one graded synaptic operation.
    """
    pos, neg = map(reach.accumulate, train.counts(*reach.axes))
    ops: dict[str, int | Tensor] = {
        "dense_mac": macs,
        "ac_add": pos,
        "ac_sub": neg,
        "sop_unit": pos + neg,
        # Horner: the sums of a plane are rescaled before the next plane is added
        "mul": train.rescalings * outputs,
    }
    if train.readout == "graded":
        ops["sop_graded"] = reach.accumulate(train.fired(*reach.axes))
    return ops


def price_spiking(
    train: SpikeTrain,
    reach: Reach,
    macs: int,
    outputs: int,
    common: Mapping[str, int],
    traffic: tuple[Traffic, Traffic],
) -> Cost:
    """The cost of a projection whose input is `train`, and of its dense twin.

    `common` is what both do besides, `traffic` what moves in either.
    """
    ops = spiking_ops(train, reach, macs, outputs)
    dense = {**common, "dense_mac": macs, "mac": macs}
    moved, dense_moved = traffic
    return Cost(_plus(ops, common), dense, moved=moved, dense_moved=dense_moved)


def _plus(ops: Mapping[str, Any], extra: Mapping[str, int]) -> dict[str, Any]:
    return {**ops, **{name: ops.get(name, 0) + n for name, n in extra.items()}}
