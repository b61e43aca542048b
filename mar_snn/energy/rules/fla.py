"""Prices of the layers of flash-linear-attention that its Triton kernels hide.

Per token, with H heads of K key and V value channels:

    GatedLinearAttention          state h [K, V] a head: decay exp(g) (K special), decay
                                  · h (K V mul), k ⊗ v (K V MACs), q · h (K V MACs); q
                                  scaled (H K mul); g = log sigmoid / constant (2
                                  special for each of H K), maybe clamped (1 cmp)
    SimpleGatedLinearAttention    the same with one decay a head
    ShortConvolution              min(t + 1, taps) products a channel, all taps with a
                                  cache; bias; silu (1 special, 1 mul); residual (1 add)
    GatedMLP, SwiGLULinear        silu(gate) · y: 1 special, 2 mul an element; in
                                  SwiGLULinear the product with the last weights too

in the recurrent form, whatever kernel ran. Projections, convolutions and norms are
modules and have rows of their own; spikes that they are fed are counted there. A
padding mask is a choice, and free; attention runs on the tokens that it leaves.

Layers of fla that are not named here are listed as uncounted, see
`mar_snn.energy.unseen`; so are feature maps and gates outside of the fused norm.
"""

from typing import Any

from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.registry import ModuleCall, register_module_rule
from mar_snn.energy.rules.scan import causal_products
from mar_snn.energy.rules.traffic import size_in_bytes, weight_traffic


@register_module_rule("fla.layers.gla.GatedLinearAttention", children="counted")
def price_gated_attention(call: ModuleCall) -> Cost | None:
    """A decay for every key channel."""
    m = call.module
    clamps = m.key_dim if m.clamp_min is not None else 0
    mask, x = call.argument(1, "attention_mask"), call.argument(0, "hidden_states")
    tokens: Any = x.shape[0] * x.shape[1]
    if mask is not None and call.kwargs.get("cu_seqlens") is None:
        tokens = mask[:, -x.shape[1] :].sum()
    return _attention(call, tokens, decays=m.key_dim, clamps=clamps)


@register_module_rule(
    "fla.layers.simple_gla.SimpleGatedLinearAttention", children="counted"
)
def price_simple_gated_attention(call: ModuleCall) -> Cost | None:
    """One decay a head."""
    x = call.argument(0, "hidden_states")
    return _attention(call, x.shape[0] * x.shape[1], decays=call.module.num_heads)


def _attention(
    call: ModuleCall, tokens: Any, *, decays: int, clamps: int = 0
) -> Cost | None:
    """See the top of the file; `decays` and `clamps` are numbers a token."""
    m, x = call.module, call.argument(0, "hidden_states")
    gated_apart = hasattr(m, "g_proj") and not m.fuse_norm_and_gate
    if m.feature_map_fn is not None or gated_apart:
        return None
    call.note("scan", "recurrent")
    states = m.key_dim * m.head_v_dim
    ops = {
        "dense_mac": tokens * 2 * states,
        "mac": tokens * 2 * states,
        "mul": tokens * (states + m.key_dim),
        "special": tokens * 3 * decays,
        "cmp": tokens * clamps,
    }
    # q, k, the decays, v and the result; the state, in and out at every token
    between = 2 * m.key_dim + decays + 2 * m.value_dim
    moved = {
        "activation": tokens * between * x.element_size(),
        "cache": tokens * 2 * states * x.element_size(),
    }
    return Cost(ops, moved=moved)


@register_module_rule(
    "fla.modules.convolution.ShortConvolution",
    "fla.modules.conv.short_conv.ShortConvolution",
    "fla.modules.causal_conv1d.ops.ShortConvolution",
)
def price_short_convolution(call: ModuleCall) -> Cost | None:
    """Of one or of packed sequences."""
    m, x = call.module, call.argument(0, "x")
    packed, cache = call.kwargs.get("cu_seqlens"), call.kwargs.get("cache")
    if packed is not None and cache is not None:
        return None
    batch, length, channels = x.shape
    taps, size = m.kernel_size[0], x.numel()
    products: Any
    if packed is None:
        before = 0 if cache is None else taps - 1
        products = batch * causal_products(length, taps, before=before)
    else:
        products = _packed_products(packed.diff(), taps)
    activated = size if m.activation is not None else 0
    residual = call.argument(1, "residual")
    ops = {
        "dense_mac": channels * products,
        "mac": channels * products,
        "bias_add": size if m.bias is not None else 0,
        "special": activated,
        "mul": activated,
        "add": size if residual is not None else 0,
    }
    moved = {
        "activation": 2 * size_in_bytes(x)
        + (size_in_bytes(residual) if residual is not None else 0),
        "cache": 0 if cache is None else 2 * size_in_bytes(cache),
        **weight_traffic(m.weight, m.bias),
    }
    return Cost(ops, moved=moved)


def _packed_products(lengths: Tensor, taps: int) -> Tensor:
    """Of sequences of these lengths: 1 + 2 + ... up to taps, then taps a token."""
    short = lengths.clamp(max=taps)
    return (short * (short + 1) // 2 + (lengths - short) * taps).sum()


@register_module_rule("fla.modules.mlp.GatedMLP", children="counted")
def price_gated_mlp(call: ModuleCall) -> Cost | None:
    """What lies between its projections, unless its SwiGLULinear does that."""
    m, x = call.module, call.argument(0, "x")
    if m.hidden_act != "swish":
        return None
    if m.fuse_swiglu:
        return Cost({})
    size = x.numel() // m.hidden_size * m.intermediate_size
    gate = {"special": size, "mul": 2 * size}
    return Cost(gate, moved={"activation": 3 * size * x.element_size()})


@register_module_rule("fla.modules.mlp.SwiGLULinear")
def price_gated_projection(call: ModuleCall) -> Cost:
    """Of (gate, y, weight, bias)."""
    gate, _, weight, bias = call.args
    macs = gate.numel() * weight.shape[0]
    ops = {"dense_mac": macs, "mac": macs, "special": gate.numel()}
    ops["mul"] = 2 * gate.numel()
    ops["bias_add"] = call.output.numel() if bias is not None else 0
    moved = {"activation": 2 * size_in_bytes(gate) + size_in_bytes(call.output)}
    return Cost(ops, moved=moved | weight_traffic(weight, bias))
