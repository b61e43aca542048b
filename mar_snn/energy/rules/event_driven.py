"""Prices of the products that decoding has kernels for, and what they read.

The operations are those of any projection of spikes. The weights that move are not
modelled but those that the kernel reads: those of the inputs that are not zero, or all
of them above the break-even density, with the scales of int8.
"""

import torch

import mar_snn.sparse.kernels  # noqa: F401  registers the operations
from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.product import price_projection
from mar_snn.energy.rules.registry import OPERANDS, OpCall, register_op_rule
from mar_snn.energy.rules.traffic import size_in_bytes
from mar_snn.energy.spike_trains import storage_of

_ops = torch.ops.mar_snn

OPERANDS[_ops.event_linear] = OPERANDS[_ops.dense_linear] = (0, 1)


@register_op_rule(_ops.event_linear.default)
def price_event_driven_projection(call: OpCall) -> Cost:
    """A product of which the weights of active inputs are read."""
    x, weight, bias, scale, break_even = call.args
    inputs = weight.shape[1]
    active = (x != 0).reshape(-1, inputs).any(0).sum()
    if not x.is_cuda:  # a GPU reads by input whatever the density
        all_rows = active > int(break_even * inputs)
        active = torch.where(all_rows, inputs, active)
    stored = size_in_bytes(weight) + (0 if scale is None else size_in_bytes(scale))
    cost = price_projection(_with_weights(call), x, weight.t(), bias=bias)
    read = active * (stored // inputs) + (0 if bias is None else size_in_bytes(bias))
    call.note(
        "decoding",
        "event-driven: the bytes of touched weights are those that the kernel read",
    )
    return Cost(
        cost.ops,
        cost.dense,
        moved={**cost.moved, "weight_touched": read},
        dense_moved=cost.dense_moved,
    )


@register_op_rule(_ops.dense_linear.default)
def price_dense_projection(call: OpCall) -> Cost:
    """A product all of whose weights are read."""
    x, weight, bias, _ = call.args
    return price_projection(_with_weights(call), x, weight.t(), bias=bias)


def _with_weights(call: OpCall) -> OpCall:
    """The call, whose second operand is a weight also where int8 has no parameter."""
    weight = storage_of(call.args[1])

    def is_weight(value: object) -> bool:
        mine = isinstance(value, torch.Tensor) and storage_of(value) == weight
        return mine or call.is_weight(value)

    return call._replace(is_weight=is_weight)
