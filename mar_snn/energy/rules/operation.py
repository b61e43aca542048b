"""Prices of elementwise arithmetic, reductions, orderings and tables.

Conventions, per element of the result unless said otherwise:

    arithmetic      + and - one `add`; * and a square one `mul`; alpha, beta and value
                    other than 1 one `mul` more
    special         one named function of real numbers that no finite number of + and *
                    gives is one `special`, whatever series evaluates it: exp, log, erf,
                    sqrt, rsqrt, reciprocal, division, a power, sigmoid, tanh, softplus;
                    silu, gelu and mish multiply by x besides
    rounding        one `add`; fmod and remainder divide: one `special`
    sign, choice    a sign flip, a choice by a mask and logic are free; a sign, a test
                    and each bound of a clamp is one `cmp`
    sum             n - 1 `add` for n values, one `mul` more for a mean
    variance        as two passes: n - 1 additions and 1/n for the mean, n differences,
                    n squares, n - 1 additions and 1/n; a deviation one `special` more
    maximum         n - 1 `cmp`; ties and indices are free
    order           the first t of n in order: n - t + Σ ⌈log2 j⌉ `cmp`, over
                    n + 1 - t < j ≤ n (tree selection, Knuth, The Art of Computer
                    Programming 3, 5.3.3); t = n is a sort; a table of n bounds
                    is searched by ⌈log2(n + 1)⌉
    random numbers  free, as sampling is outside of the model; a coin is one `cmp`
    table           one `lookup` a row read; integers and masks are free everywhere
"""

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.registry import (
    OpCall,
    is_composite,
    is_free,
    register_op_rule,
)
from mar_snn.energy.rules.traffic import elementwise_traffic, is_real, size_in_bytes

_aten = torch.ops.aten

#: Names of operations -> what an element of the result costs; see the top of the file.
PER_ELEMENT: tuple[tuple[str, dict[str, int]], ...] = (
    ("mul ldexp", {"mul": 1}),
    ("clamp_min clamp_max relu maximum minimum fmax fmin threshold", {"cmp": 1}),
    ("sign sgn heaviside isnan isinf bernoulli", {"cmp": 1}),
    ("hardtanh hardshrink nan_to_num", {"cmp": 2}),
    ("softshrink", {"cmp": 2, "add": 1}),
    ("leaky_relu rrelu_with_noise _prelu_kernel", {"cmp": 1, "mul": 1}),
    ("hardsigmoid", {"cmp": 2, "add": 1, "mul": 1}),
    ("hardswish", {"cmp": 2, "add": 1, "mul": 2}),
    ("elu celu", {"cmp": 1, "special": 1, "mul": 1}),
    ("round floor ceil trunc frac", {"add": 1}),
    (
        "acos acosh asin asinh atan atan2 atanh cos cosh deg2rad digamma div erf erfc "
        "erfinv exp exp2 expm1 floor_divide fmod hypot i0 lgamma log log10 log1p log2 "
        "log_sigmoid_forward logit reciprocal remainder rsqrt sigmoid sin sinc sinh "
        "softplus special_ndtri sqrt tan tanh true_divide xlogy",
        {"special": 1},
    ),
    ("silu gelu mish glu", {"special": 1, "mul": 1}),
    ("logaddexp logaddexp2", {"cmp": 1, "add": 2, "special": 2}),
)

#: Logic, random numbers and places that the registry does not list itself.
FREE = (
    "_unique2 bitwise_left_shift bitwise_right_shift bitwise_xor col2im_backward equal "
    "exponential_ geometric_ isin isneginf isposinf log_normal_ logical_and "
    "logical_not logical_or logical_xor multinomial nonzero normal random_ signbit "
    "tril_indices triu_indices uniform_ view_as_complex view_as_real"
)


def overloads(names: str) -> list[OpOverload]:
    """Every overload of these operations that reaches the counter, in-place too."""
    operations = [
        getattr(getattr(_aten, form), overload)
        for name in names.split()
        for form in dict.fromkeys((name, f"{name.removesuffix('_')}_"))
        if hasattr(_aten, form)
        for overload in getattr(_aten, form).overloads()
    ]
    return [
        operation
        for operation in operations
        # some overloads exist in TorchScript only
        if torch._C._dispatch_has_kernel(operation.name())
        and not is_composite(operation)
        and not is_free(operation)
    ]


def first_output(call: OpCall) -> Tensor:
    """The result, or the first of several."""
    return call.output[0] if isinstance(call.output, tuple) else call.output


# ---- element by element


def _register_per_element(names: str, counts: dict[str, int]) -> None:
    def price(call: OpCall) -> Cost:
        out = first_output(call)
        size = out.numel() if is_real(out) or is_real(call.args[0]) else 0
        if not size:
            return Cost({})
        return Cost(
            {field: count * size for field, count in counts.items()},
            moved=elementwise_traffic(call, (out,)),
        )

    register_op_rule(*overloads(names))(price)


for _names, _counts in PER_ELEMENT:
    _register_per_element(_names, _counts)


@register_op_rule(*overloads(FREE))
def price_nothing(call: OpCall) -> Cost:  # noqa: ARG001  a rule takes a call
    """Nothing is computed."""
    return Cost({})


@register_op_rule(*overloads("add sub rsub"))
def price_addition(call: OpCall) -> Cost:
    """A sum, with a multiplication where one side is scaled by `alpha`."""
    if not is_real(call.output):
        return Cost({})
    size = call.output.numel()
    scaled = call.argument(2, "alpha", 1) != 1
    ops = {"add": size, "mul": size * scaled}
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(*overloads("addcmul addcdiv"))
def price_added_product(call: OpCall) -> Cost:
    """A sum with value · y · z, or with value · y / z."""
    size = call.output.numel()
    scaled = size * (call.kwargs.get("value", 1) != 1)
    divided = call.func.overloadpacket in (_aten.addcdiv, _aten.addcdiv_)
    ops = {"add": size, "mul": scaled + (0 if divided else size)}
    if divided:
        ops["special"] = size
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(*overloads("lerp"))
def price_lerp(call: OpCall) -> Cost:
    """As x + w (y - x)."""
    size = call.output.numel()
    return Cost({"mul": size, "add": 2 * size}, moved=elementwise_traffic(call))


@register_op_rule(*overloads("clamp"))
def price_clamp(call: OpCall) -> Cost:
    """A comparison an element and bound."""
    if not is_real(call.output):
        return Cost({})
    bounds = (call.argument(1, "min"), call.argument(2, "max"))
    size = call.output.numel() * sum(bound is not None for bound in bounds)
    return Cost({"cmp": size}, moved=elementwise_traffic(call))


@register_op_rule(*overloads("pow float_power"))
def price_power(call: OpCall) -> Cost:
    """A square is a multiplication; any other power is a special function."""
    if not is_real(call.output):
        return Cost({})
    exponent: Any = call.args[1]
    square = not isinstance(exponent, Tensor) and exponent == 2
    ops = {"mul" if square else "special": call.output.numel()}
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(*overloads("ge gt le lt eq ne"))
def price_comparison(call: OpCall) -> Cost:
    """A comparison an element, where the elements are numbers and not addresses."""
    if not is_real(call.args[0]):
        return Cost({})
    return Cost({"cmp": call.output.numel()}, moved=elementwise_traffic(call))


# ---- many values to one


def _lines(x: Tensor, dim: int) -> int:
    """How many lines x has along an axis."""
    return x.numel() // max(x.shape[dim], 1) if x.dim() else 1


@register_op_rule(*overloads("amax amin argmax argmin max min aminmax"))
def price_selection(call: OpCall) -> Cost:
    """The largest of n takes n - 1 comparisons; a maximum of two tensors takes one."""
    x = call.args[0]
    if not is_real(x):
        return Cost({})
    out = first_output(call)
    of_two = len(call.args) > 1 and isinstance(call.args[1], Tensor)
    comparisons = out.numel() if of_two else x.numel() - out.numel()
    both = 2 if call.func.overloadpacket is _aten.aminmax else 1
    return Cost({"cmp": both * comparisons}, moved=elementwise_traffic(call))


@register_op_rule(*overloads("sum nansum mean prod"))
def price_sum(call: OpCall) -> Cost:
    """For n values n - 1 additions or products; a mean is scaled by 1 / n once."""
    if not is_real(call.output):
        return Cost({})
    outputs, packet = call.output.numel(), call.func.overloadpacket
    steps = call.args[0].numel() - outputs
    if packet is _aten.prod:
        ops = {"mul": steps}
    else:
        ops = {"add": steps, "mul": outputs if packet is _aten.mean else 0}
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(*overloads("var std var_mean std_mean"))
def price_variance(call: OpCall) -> Cost:
    """Two passes over n values, see the top of the file."""
    size, outputs = call.args[0].numel(), first_output(call).numel()
    ops = {"add": 3 * size - 2 * outputs, "mul": size + 2 * outputs}
    if call.func.overloadpacket in (_aten.std, _aten.std_mean):
        ops["special"] = outputs
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(*overloads("linalg_vector_norm norm"))
def price_vector_norm(call: OpCall) -> Cost:
    """Order 2: n squares, their sum, a root; 1: a sum; infinite: a maximum; 0: tests.

    Any other order: n powers, their sum, one power more.
    """
    order = call.argument(1, "ord", 2)
    order = 2 if order is None else order
    size, outputs = call.args[0].numel(), call.output.numel()
    if abs(order) == math.inf:
        ops = {"cmp": size - outputs}
    elif order == 0:
        ops = {"cmp": size, "add": size - outputs}
    elif order == 1:
        ops = {"add": size - outputs}
    elif order == 2:
        ops = {"mul": size, "add": size - outputs, "special": outputs}
    else:
        ops = {"special": size + outputs, "add": size - outputs}
    return Cost(ops, moved=elementwise_traffic(call))


#: Operations along a line -> what each element after the first costs.
_RUNNING: dict[str, dict[str, int]] = {
    "cumsum": {"add": 1},
    "cumprod": {"mul": 1},
    "cummax": {"cmp": 1},
    "cummin": {"cmp": 1},
    "logcumsumexp": {"cmp": 1, "add": 2, "special": 2},
}


@register_op_rule(*overloads(" ".join(_RUNNING)))
def price_running(call: OpCall) -> Cost:
    """The n running results of a line take n - 1 steps."""
    out = first_output(call)
    if not is_real(out):
        return Cost({})
    steps = out.numel() - _lines(out, call.args[1])
    name = call.func.overloadpacket.__name__.removesuffix("_")
    ops = {field: count * steps for field, count in _RUNNING[name].items()}
    return Cost(ops, moved=elementwise_traffic(call, (out,)))


# ---- order


@lru_cache(maxsize=1024)
def comparisons_for_first(t: int, n: int) -> int:
    """Comparisons that put the first `t` of `n` in order, see the top of the file."""
    if t == 0:
        return 0
    return n - t + sum((j - 1).bit_length() for j in range(n + 2 - t, n + 1))


@register_op_rule(*overloads("sort topk kthvalue median nanmedian mode"))
def price_order(call: OpCall) -> Cost:
    """The first t of n in order: t = n for sort and mode, the middle for a median."""
    x = call.args[0]
    if not is_real(x):
        return Cost({})
    name = call.func.overloadpacket.__name__
    whole = name in ("median", "nanmedian") and len(call.args) == 1
    dim = call.argument(2 if name in ("topk", "kthvalue") else 1, "dim", -1)
    if not isinstance(dim, int) or isinstance(dim, bool):
        dim = -1
    n = x.numel() if whole else x.shape[dim] if x.dim() else 1
    if name in ("topk", "kthvalue"):
        t = min(call.args[1], n if name == "topk" else n + 1 - call.args[1])
    else:
        t = (n + 1) // 2 if name in ("median", "nanmedian") else n
    lines = x.numel() // max(n, 1)
    counting = lines * max(n - 1, 0) if name == "mode" else 0
    comparisons = lines * comparisons_for_first(t, n) + counting
    return Cost({"cmp": comparisons}, moved=elementwise_traffic(call))


@register_op_rule(*overloads("searchsorted bucketize"))
def price_search(call: OpCall) -> Cost:
    """⌈log2(n + 1)⌉ comparisons find the place among n bounds."""
    searches = call.func.overloadpacket is _aten.searchsorted
    bounds = call.args[0] if searches else call.args[1]
    if not is_real(bounds):
        return Cost({})
    steps = int(bounds.shape[-1]).bit_length()
    return Cost({"cmp": call.output.numel() * steps}, moved=elementwise_traffic(call))


# ---- sums into places, tables


@register_op_rule(*overloads("scatter_add index_add scatter_reduce"))
def price_scattered_sum(call: OpCall) -> Cost:
    """An addition for each value that is added into its place."""
    source = call.argument(3, "src", call.kwargs.get("source"))
    if not is_real(source):
        return Cost({})
    scaled = call.kwargs.get("alpha", 1) != 1
    ops = {"add": source.numel(), "mul": source.numel() * scaled}
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(_aten.embedding.default)
def price_embedding(call: OpCall) -> Cost:
    """One look-up a token id; of the table only the rows that are read move."""
    table, ids = call.args[0], call.args[1]
    return Cost({"lookup": ids.numel()}, moved=_rows_read(call, table, ids))


def _rows_read(call: OpCall, table: Tensor, ids: Tensor) -> dict[str, int]:
    rows = ids.numel() * math.prod(table.shape[1:]) * table.element_size()
    written = size_in_bytes(first_output(call))
    if call.is_weight(table):
        return {"weight_dense": rows, "weight_touched": rows, "activation": written}
    return {"activation": rows + written}


@register_op_rule(
    _aten._embedding_bag.default, _aten._embedding_bag_forward_only.default
)
def price_embedding_bag(call: OpCall) -> Cost:
    """One look-up an id; n - 1 additions or comparisons a column of a bag of n.

    A mean is scaled once a column of a bag that holds anything, and weights of samples
    are multiplications.
    """
    table, ids, offsets = call.args[:3]
    mode = call.argument(4, "mode", 0)
    width = table.shape[1]
    ends = torch.cat([offsets[1:], offsets.new_tensor([ids.numel()])])
    filled = (ends > offsets).sum()
    joined = (ids.numel() - filled) * width
    ops: dict[str, int | Tensor] = {"lookup": ids.numel()}
    ops["cmp" if mode == 2 else "add"] = joined
    if mode == 1:
        ops["mul"] = filled * width
    if call.argument(6, "per_sample_weights") is not None:
        ops["mul"] = ids.numel() * width
    return Cost(ops, moved=_rows_read(call, table, ids))
