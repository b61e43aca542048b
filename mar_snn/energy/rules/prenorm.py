"""Prices of mamba_ssm's residual stream: add and normalise, often in one kernel.

A Block adds its input to the residual (nothing to add in the first one), normalises,
and hands that to its mixer; with an MLP it does so twice. The model does it once more
at its end. Mixer, MLP and, where nothing is fused, the norms have rows of their own.
"""

from collections import Counter
from typing import Any

from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.norm import layer_norm_ops, rms_norm_ops
from mar_snn.energy.rules.registry import ModuleCall, register_module_rule
from mar_snn.energy.rules.traffic import size_in_bytes, weight_traffic


@register_module_rule(
    "mamba_ssm.modules.block.Block",
    "mamba_ssm.modules.mamba_simple.Block",
    children="counted",
)
def price_block(call: ModuleCall) -> Cost:
    """One sum and norm before the mixer, one before the MLP."""
    m, x = call.module, call.argument(0, "hidden_states")
    norms = [m.norm] if getattr(m, "mlp", None) is None else [m.norm, m.norm2]
    first = call.argument(1, "residual") is None
    return _sums_and_norms(x, norms, fused=m.fused_add_norm, sums=len(norms) - first)


@register_module_rule(
    "mamba_ssm.models.mixer_seq_simple.MixerModel", children="counted"
)
def price_model(call: ModuleCall) -> Cost:
    """The last sum and norm."""
    m = call.module
    return _sums_and_norms(call.output, [m.norm_f], fused=m.fused_add_norm, sums=1)


def _sums_and_norms(x: Tensor, norms: list[Any], *, fused: bool, sums: int) -> Cost:
    ops: Counter[str] = Counter(add=sums * x.numel())
    # both read, the sum written
    moved: Counter[str] = Counter(activation=sums * 3 * size_in_bytes(x))
    for norm in norms if fused else []:
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        rms = type(norm).__name__ == "RMSNorm"
        ops.update((rms_norm_ops if rms else layer_norm_ops)(rows, width, norm))
        moved.update(weight_traffic(norm.weight, norm.bias))
        moved["activation"] += 2 * size_in_bytes(x)
    return Cost(ops, moved=moved)
