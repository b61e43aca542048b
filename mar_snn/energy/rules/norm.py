"""Prices of norms and of softmax and its kin, in one file because they normalise rows.

For a row of n values:

    RMS norm     n squares, n - 1 additions, 1/n, + epsilon, rsqrt, n scalings
    layer norm   mean: n - 1 additions and 1/n; n differences; then as RMS norm;
    group norm   the same with n the values of a group; with stored statistics (batch
                 norm) they fold: 1 multiplication and 1 addition a value
    affine       a weight is one multiplication a value, a shift one addition
    softmax      n - 1 comparisons, n differences, n exp, n - 1 additions, 1 division,
                 n scalings
    log softmax  the same with 1 log for the division and n differences for the scalings
    logsumexp    as log softmax, with 1 addition for the last n differences
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.operation import overloads
from mar_snn.energy.rules.registry import (
    ModuleCall,
    OpCall,
    register_module_rule,
    register_op_rule,
)
from mar_snn.energy.rules.traffic import (
    elementwise_traffic,
    size_in_bytes,
    weight_traffic,
)

_aten = torch.ops.aten


def _normalised(rows: int, width: int, *, affine: tuple[bool, bool]) -> dict[str, int]:
    """Of `rows` rows of `width` values by their own mean and variance."""
    size, (weight, shift) = rows * width, affine
    return {
        # mean; differences; sum of squares; epsilon
        "add": 2 * (size - rows) + size + rows + size * shift,
        # 1/n; squares; 1/n; scalings
        "mul": 2 * size + 2 * rows + size * weight,
        "special": rows,
    }


@register_op_rule(_aten.native_layer_norm.default)
def price_layer_norm(call: OpCall) -> Cost:
    """Rows are the last axes, of the normalised shape."""
    x, shape, weight, bias = call.args[:4]
    width = math.prod(shape)
    affine = (weight is not None, bias is not None)
    ops = _normalised(x.numel() // max(width, 1), width, affine=affine)
    return Cost(ops, moved=elementwise_traffic(call, call.output[:1]))


@register_op_rule(_aten.native_group_norm.default)
def price_group_norm(call: OpCall) -> Cost:
    """Rows are the groups of each sample."""
    x, weight, bias, samples, _, _, groups = call.args[:7]
    rows = samples * groups
    affine = (weight is not None, bias is not None)
    ops = _normalised(rows, x.numel() // max(rows, 1), affine=affine)
    return Cost(ops, moved=elementwise_traffic(call, call.output[:1]))


@register_op_rule(
    *overloads(
        "native_batch_norm _native_batch_norm_legit cudnn_batch_norm miopen_batch_norm "
        "_native_batch_norm_legit_no_training _batch_norm_no_update"
    )
)
def price_batch_norm(call: OpCall) -> Cost:
    """An affine map with stored statistics; with those of the batch, a layer norm.

    Statistics that are updated cost 2 multiplications and 1 addition each and channel.
    """
    x, weight, bias = call.args[:3]
    packet = call.func.overloadpacket
    moved = elementwise_traffic(call, call.output[:1])
    stored = packet in (
        _aten._native_batch_norm_legit_no_training,
        _aten._batch_norm_no_update,
    )
    stateless = call.func is _aten._native_batch_norm_legit.no_stats
    if stored or not call.args[3 if stateless else 5]:
        return Cost({"mul": x.numel(), "add": x.numel()}, moved=moved)
    channels = x.shape[1]
    affine = (weight is not None, bias is not None)
    ops = _normalised(channels, x.numel() // max(channels, 1), affine=affine)
    if not stateless and call.args[3] is not None:
        ops["mul"] += 4 * channels
        ops["add"] += 2 * channels
    return Cost(ops, moved=moved)


@register_module_rule(
    nn.RMSNorm,
    "mar_snn.llamba.modeling_llamba.LlambaRMSNorm",
    "transformers.models.llama.modeling_llama.LlamaRMSNorm",
    "transformers.models.mamba.modeling_mamba.MambaRMSNorm",
    "transformers.models.mamba2.modeling_mamba2.Mamba2RMSNorm",
    "mamba_ssm.ops.triton.layer_norm.RMSNorm",
    "fla.modules.layernorm.RMSNorm",
    "fla.modules.norm.layernorm.RMSNorm",
)
def price_rms_norm(call: ModuleCall) -> Cost:
    """For a row of D: D squares, their mean plus epsilon, rsqrt, scale, weight.

    That is 3 D + 1 multiplications (2 D + 1 without weights), D additions and 1 special
    function; mamba_ssm's and fla's may add a residual first.
    """
    x = _first(call.output)
    module, residual = call.module, call.argument(1, "residual")
    width = x.shape[-1] if module.weight is None else module.weight.numel()
    ops = rms_norm_ops(x.numel() // max(width, 1), width, module)
    moved = {
        "activation": 2 * size_in_bytes(x),
        **weight_traffic(module.weight, getattr(module, "bias", None)),
    }
    if residual is not None:
        ops["add"] += x.numel()
        moved["activation"] += size_in_bytes(residual)
    return Cost(ops, moved=moved)


@register_module_rule(
    "fla.modules.fused_norm_gate.FusedRMSNormGated",
    "fla.modules.norm.fused_norm_gate.FusedRMSNormGated",
    "fla.modules.layernorm_gated.RMSNormGated",
    "fla.modules.norm.layernorm_gated.RMSNormGated",
    "mamba_ssm.ops.triton.layernorm_gated.RMSNorm",
)
def price_gated_rms_norm(call: ModuleCall) -> Cost | None:
    """An RMS norm of x, or of its groups, and gate · sigmoid(gate) times a value.

    A gate without the product, `activation="sigmoid"`, costs 1 multiplication less.
    """
    x, module = _first(call.output), call.module
    gate = call.argument(1, "g" if "g" in call.kwargs else "z")
    if call.argument(2, "residual") is not None:
        return None
    width = getattr(module, "group_size", None) or x.shape[-1]
    ops = rms_norm_ops(x.numel() // max(width, 1), width, module)
    moved = {"activation": 2 * size_in_bytes(x), **weight_traffic(module.weight)}
    if gate is not None:
        products = 1 if getattr(module, "activation", "") == "sigmoid" else 2
        ops["special"] += x.numel()
        ops["mul"] += products * x.numel()
        moved["activation"] += size_in_bytes(gate)
    return Cost(ops, moved=moved)


def rms_norm_ops(rows: int, width: int, module: Any) -> dict[str, int]:
    """Of `rows` rows of `width` values, by what weights the module has."""
    shift = getattr(module, "bias", None) is not None
    return {
        "mul": rows * ((2 if module.weight is None else 3) * width + 1),
        "add": rows * width * (1 + shift),
        "special": rows,
    }


def layer_norm_ops(rows: int, width: int, module: Any) -> dict[str, int]:
    """The same of a layer norm."""
    affine = (module.weight is not None, module.bias is not None)
    return _normalised(rows, width, affine=affine)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# ---- softmax


@register_op_rule(*overloads("_softmax _safe_softmax"))
def price_softmax(call: OpCall) -> Cost:
    """See the top of the file; a row is what is summed over."""
    ops = softmax_ops(_rows(call), call.args[0].numel())
    return Cost(ops, moved=elementwise_traffic(call))


@register_op_rule(*overloads("_log_softmax logsumexp"))
def price_log_softmax(call: OpCall) -> Cost:
    """See the top of the file."""
    rows, size = _rows(call), call.args[0].numel()
    ops = softmax_ops(rows, size)
    shifted = size if call.func.overloadpacket is _aten._log_softmax else rows
    ops |= {"add": ops["add"] + shifted, "mul": 0}
    return Cost(ops, moved=elementwise_traffic(call))


def _rows(call: OpCall) -> int:
    x, axes = call.args[0], call.argument(1, "dim")
    axes = [axes] if isinstance(axes, int) else axes
    width = math.prod(x.shape[axis] for axis in axes) if x.dim() else 1
    return x.numel() // max(width, 1)


def softmax_ops(rows: Any, size: Any) -> dict[str, Any]:
    """Of `rows` rows that hold `size` values together, numbers or tensors of one."""
    return {
        "cmp": size - rows,
        "add": 2 * size - rows,
        "special": size + rows,
        "mul": size,
    }
