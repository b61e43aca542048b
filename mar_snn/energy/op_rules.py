"""Prices of torch operations: products, norms, elementwise arithmetic, reductions.

A product of a spike with a weight is an accumulation: a +1 adds the weight (`ac_add`),
a -1 subtracts it (`ac_sub`). Each spike pays once for every output it reaches, its
fan-out:

    ac = Σ over planes and inputs of [spike ≠ 0] · fan-out(input)

Operations on integers and booleans are addresses and masks, and cost nothing here.
"""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules import OpCall, is_composite, register_op_rule
from mar_snn.energy.spike_trains import Events, SpikeTrain

_aten = torch.ops.aten


def _overloads(names: str) -> list[OpOverload]:
    """Every overload of these operations that reaches the counter, in-place too."""
    operations = [
        getattr(getattr(_aten, form), overload)
        for name in names.split()
        for form in (name, f"{name}_")
        if hasattr(_aten, form)
        for overload in getattr(_aten, form).overloads()
    ]
    return [
        operation
        for operation in operations
        # some overloads exist in TorchScript only
        if torch._C._dispatch_has_kernel(operation.name())
        and not is_composite(operation)
    ]


# ---- products


@register_op_rule(_aten.mm.default, _aten.bmm.default)
def price_product(call: OpCall) -> Cost:
    """A @ B, either of them spikes."""
    return _product(call, call.args[0], call.args[1])


@register_op_rule(_aten.addmm.default, _aten.baddbmm.default)
def price_product_with_bias(call: OpCall) -> Cost:
    """A product and a bias: beta * bias + alpha * A @ B."""
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    scalings = (alpha != 1) + (beta not in (0, 1))
    return _product(call, call.args[1], call.args[2], bias=beta != 0, scalings=scalings)


@register_op_rule(_aten.mv.default, _aten.dot.default)
def price_product_with_vector(call: OpCall) -> Cost:
    """A @ v or u · v."""
    return _product(call, call.args[0], call.args[1])


@register_op_rule(_aten.addmv.default)
def price_vector_product_with_bias(call: OpCall) -> Cost:
    """The same with a vector: beta * bias + alpha * A @ v."""
    return price_product_with_bias(call)


def _product(
    call: OpCall, a: Tensor, b: Tensor, *, bias: bool = False, scalings: int = 0
) -> Cost:
    outputs = call.output.numel()
    macs = outputs * a.shape[-1]
    common = {"bias_add": outputs if bias else 0, "mul": scalings * outputs}
    left, right = call.spikes(a), call.spikes(b)
    if left and right and left.readout == right.readout == "unit":
        meetings = _coincidences(left.planes[0], right.planes[0])
        ops = {"dense_mac": macs, "ac_coincidence": meetings, "sop_unit": meetings}
        return Cost(common | ops, common | {"dense_mac": macs, "mac": macs})
    # a spike of A meets a row of B, a spike of B a column of A
    fan_out = _length(b, -1) if left else _length(a, -2)
    train = left or right
    if train is None:
        return Cost(common | {"dense_mac": macs, "mac": macs})
    events = Events(train.events.pos * fan_out, train.events.neg * fan_out)
    return price_spiking(train, events, macs, outputs, common)


def _length(factor: Tensor, dim: int) -> int:
    return factor.shape[dim] if factor.dim() > 1 else 1


def _coincidences(a: Tensor, b: Tensor) -> Tensor:
    """Σ over k of (spikes in column k of A) · (spikes in row k of B)."""
    in_a, in_b = (a != 0).long(), (b != 0).long()
    columns = in_a.sum(-2) if a.dim() > 1 else in_a
    rows = in_b.sum(-1) if b.dim() > 1 else in_b
    return (columns * rows).sum()


def price_spiking(
    train: SpikeTrain,
    accumulations: Events,
    macs: int,
    outputs: int,
    common: dict[str, int],
) -> Cost:
    """The cost of a projection whose input is `train`, and of its dense twin."""
    pos, neg = accumulations
    ops: dict[str, int | Tensor] = {
        **common,
        "dense_mac": macs,
        "ac_add": pos,
        "ac_sub": neg,
        "sop_unit": pos + neg,
        # Horner: the sums of a plane are rescaled before the next plane is added
        "mul": common.get("mul", 0) + train.rescalings * outputs,
    }
    return Cost(ops, common | {"dense_mac": macs, "mac": macs})


# ---- elementwise arithmetic, reductions, tables


def _per_output(names: str, **counts: int) -> None:
    """Each output element of these operations costs `counts`."""

    def price(call: OpCall) -> Cost:
        size = call.output.numel() if _is_real(call.output) else 0
        return Cost({field: count * size for field, count in counts.items()})

    register_op_rule(*_overloads(names))(price)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and (
        value.is_floating_point() or value.is_complex()
    )


_per_output("mul", mul=1)
_per_output("clamp clamp_min clamp_max relu maximum minimum threshold", cmp=1)
_per_output("hardtanh", cmp=2)
_per_output("leaky_relu", cmp=1, mul=1)
_per_output(
    "acos asin atan cos cosh div elu erf exp exp2 expm1 log log10 log1p log2 "
    "reciprocal rsqrt sigmoid sin sinh softplus sqrt tan tanh",
    special=1,
)
_per_output("silu gelu mish", special=1, mul=1)
_per_output("addcmul", mul=1, add=1)
_per_output("lerp", mul=1, add=2)


@register_op_rule(*_overloads("add sub rsub"))
def price_addition(call: OpCall) -> Cost:
    """A sum, with a multiplication where one side is scaled by `alpha`."""
    size = call.output.numel() if _is_real(call.output) else 0
    scaled = call.argument(2, "alpha", 1) != 1
    return Cost({"add": size, "mul": size * scaled})


@register_op_rule(*_overloads("pow"))
def price_power(call: OpCall) -> Cost:
    """A square is a multiplication; any other power is a special function."""
    size = call.output.numel() if _is_real(call.output) else 0
    return Cost({"mul" if call.args[1] == 2 else "special": size})


@register_op_rule(*_overloads("ge gt le lt eq ne"))
def price_comparison(call: OpCall) -> Cost:
    """A comparison an element, where the elements are numbers and not addresses."""
    return Cost({"cmp": call.output.numel() if _is_real(call.args[0]) else 0})


@register_op_rule(*_overloads("amax amin argmax argmin max min"))
def price_selection(call: OpCall) -> Cost:
    """The largest of n takes n - 1 comparisons; a maximum of two tensors takes one."""
    x = call.args[0]
    out = call.output[0] if isinstance(call.output, tuple) else call.output
    of_two = len(call.args) > 1 and isinstance(call.args[1], Tensor)
    comparisons = out.numel() if of_two else x.numel() - out.numel()
    return Cost({"cmp": comparisons if _is_real(x) else 0})


@register_op_rule(*_overloads("sum mean"))
def price_sum(call: OpCall) -> Cost:
    """A sum of n takes n - 1 additions; a mean is scaled by 1 / n once."""
    if not _is_real(call.output):
        return Cost({})
    outputs = call.output.numel()
    scaled = call.func.overloadpacket is _aten.mean
    return Cost(
        {"add": call.args[0].numel() - outputs, "mul": outputs if scaled else 0}
    )


@register_op_rule(*_overloads("cumsum"))
def price_running_sum(call: OpCall) -> Cost:
    """The n running sums of a line take n - 1 additions."""
    x = call.args[0]
    lines = x.numel() // max(x.shape[call.args[1]], 1) if x.dim() else 1
    return Cost({"add": x.numel() - lines if _is_real(call.output) else 0})


@register_op_rule(_aten.embedding.default)
def price_embedding(call: OpCall) -> Cost:
    """One look-up a token id."""
    return Cost({"lookup": call.args[1].numel()})


@register_op_rule(
    _aten.native_batch_norm.default,
    _aten._native_batch_norm_legit.default,
    _aten._native_batch_norm_legit_no_training.default,
    _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default,
)
def price_batch_norm(call: OpCall) -> Cost | None:
    """The affine form x · scale + shift with stored statistics; none while training."""
    inference = call.func is _aten._native_batch_norm_legit_no_training.default
    if not inference and call.args[5]:
        return None
    size = call.output[0].numel()
    return Cost({"mul": size, "add": size})
