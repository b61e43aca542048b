"""Prices of losses, for forward passes that are given labels.

Per element, before the reduction; a sum of n takes n - 1 additions, a mean one `mul`
more:

    mse          1 add, 1 mul           smooth L1, huber  1 add, 1 cmp, 2 mul
    nll          a choice: free         bce               2 special, 3 add, 2 mul
    bce of logits  1 cmp, 3 add, 1 mul, 1 special (softplus of -|x|)
"""

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.operation import first_output, overloads
from mar_snn.energy.rules.registry import OpCall, register_op_rule
from mar_snn.energy.rules.traffic import elementwise_traffic

#: What an element costs, and where the reduction stands among the arguments.
_LOSSES: dict[str, tuple[int, dict[str, int]]] = {
    "mse_loss": (2, {"add": 1, "mul": 1}),
    "smooth_l1_loss": (2, {"add": 1, "cmp": 1, "mul": 2}),
    "huber_loss": (2, {"add": 1, "cmp": 1, "mul": 2}),
    "nll_loss_forward": (3, {}),
    "nll_loss2d_forward": (3, {}),
    "binary_cross_entropy": (3, {"special": 2, "add": 3, "mul": 2}),
    "binary_cross_entropy_with_logits": (
        4,
        {"cmp": 1, "add": 3, "mul": 1, "special": 1},
    ),
}
_MEAN, _NONE = 1, 0


@register_op_rule(*overloads(" ".join(_LOSSES)))
def price_loss(call: OpCall) -> Cost:
    """See the top of the file; of nll the elements are the labels."""
    name = call.func.overloadpacket.__name__
    index, each = _LOSSES[name]
    size = call.args[1].numel()
    reduction = call.argument(index, "reduction", _MEAN)
    ops = {field: count * size for field, count in each.items()}
    if reduction != _NONE:
        ops["add"] = ops.get("add", 0) + max(size - 1, 0)
    if reduction == _MEAN:
        ops["mul"] = ops.get("mul", 0) + 1
    return Cost(ops, moved=elementwise_traffic(call, (first_output(call),)))
