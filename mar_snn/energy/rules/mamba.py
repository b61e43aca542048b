"""Prices of Mamba's blocks, whose fused kernels hide their operations from torch.

Those of mamba_ssm (modules mamba_simple.py and mamba2.py of state-spaces/mamba) and of
flash-linear-attention (fla.layers), which compute the same, in the recurrent form. Per
token, with D the width, I = expand · D the inner width, N the state
size, K taps, R the rank of the step sizes, H heads of P = d_ssm / H, G groups:

    Mamba     in_proj D · 2 I, convolution of I channels, x_proj I · (R + 2 N), dt_proj
              R · I with its bias, softplus; per channel and state: decay exp(dt A) (1
              mul, 1 exp), decay · h (1 mul), (dt x) B (1 MAC), h C (1 MAC); per channel
              dt x (1 mul), D x (1 MAC), gate x · silu(z) (1 special, 2 mul);
              out_proj I · D
    Mamba-2   in_proj D · (2 I + 2 G N + H), convolution of d_ssm + 2 G N channels, dt +
              bias and softplus per head, exp(dt A) (1 mul, 1 exp) per head, dt x (P
              mul), the recurrence and the skip of `scan_rules`; gate silu(z) · y and
              RMS norm; where d_ssm < I, silu(z0) · x0 of the rest; out_proj I · D

A = -exp(A_log) is a constant. A state is taken to hold real inputs: a step with a cache
sees all taps. A padding mask is a choice, and free. Weights, one state a token and the
block's input and output move; what lies between them stays inside the kernels.

A block with a module inside that its package did not put there, a neuron for instance,
is listed as uncounted: its kernel would not run it the way these formulas say. So are
sequences of several lengths in one (`seqlen`, `cu_seqlens`).
"""

from collections import Counter
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.product import Reach, price_spiking
from mar_snn.energy.rules.registry import ModuleCall, register_module_rule
from mar_snn.energy.rules.scan import causal_products, recurrent_scan
from mar_snn.energy.rules.traffic import size_in_bytes, spike_bytes, weight_traffic

Ops = Counter[str]

#: mamba_ssm's name of a size -> fla's, which is that of transformers
_NAMES_OF_FLA = {
    "d_model": "hidden_size",
    "d_inner": "intermediate_size",
    "d_ssm": "intermediate_size",
    "d_state": "ssm_state_size",
    "d_conv": "conv_kernel_size",
    "dt_rank": "dt_rank",
    "nheads": "num_heads",
    "headdim": "head_dim",
    "ngroups": "n_groups",
    "rmsnorm": "norm",
}


@register_module_rule("mamba_ssm.modules.mamba_simple.Mamba", "fla.layers.mamba.Mamba")
def price_mamba(call: ModuleCall) -> Cost | None:
    """See the top of the file."""
    m = _sizes(call.module)
    u = call.argument(0, "hidden_states")
    if _is_changed(call.module):
        return None
    batch, length = u.shape[:2]
    tokens = batch * length
    inner, state, rank = m.d_inner, m.d_state, m.dt_rank
    ops = _convolution(call, batch, length, channels=inner)
    ops.update(_macs(tokens * inner * (rank + 2 * state)))  # x_proj
    ops.update(_macs(tokens * rank * inner))  # dt_proj
    ops.update(bias_add=tokens * inner, special=tokens * inner)  # its bias, softplus
    ops.update(mul=tokens * inner * 2 * state, special=tokens * inner * state)
    ops.update(mul=tokens * inner)
    ops.update(_macs(tokens * inner * (2 * state + 1)))
    ops.update(_gate(tokens * inner))
    return _with_projections(call, u, ops, states=inner * state)


@register_module_rule("mamba_ssm.modules.mamba2.Mamba2", "fla.layers.mamba2.Mamba2")
def price_mamba2(call: ModuleCall) -> Cost | None:
    """See the top of the file."""
    m = _sizes(call.module)
    u = call.argument(0, "hidden_states" if "hidden_states" in call.kwargs else "u")
    packed = u.dim() != 3 or call.kwargs.get("cu_seqlens") is not None
    if _is_changed(call.module) or packed:
        return None
    batch, length = u.shape[:2]
    tokens = batch * length
    channels = m.d_ssm + 2 * m.ngroups * m.d_state
    ops = _convolution(call, batch, length, channels=channels)
    # dt + bias and softplus; dt A; dt x. The decay's exp is the scan's
    ops.update(add=tokens * m.nheads, special=tokens * m.nheads)
    ops.update(mul=tokens * (m.nheads + m.d_ssm))
    head = recurrent_scan(length, m.headdim, m.d_state)
    ops.update({field: batch * m.nheads * count for field, count in head.items()})
    ops.update(_gate(tokens * m.d_ssm))
    if m.rmsnorm:
        rows = tokens * m.ngroups
        size = tokens * m.d_ssm
        ops.update(mul=3 * size + rows, add=size, special=rows)
    ops.update(_gate(tokens * (m.d_inner - m.d_ssm)))
    return _with_projections(call, u, ops, states=m.d_ssm * m.d_state)


def _sizes(module: Any) -> Any:
    """Its sizes by the names of mamba_ssm."""
    if hasattr(module, "d_model"):
        return module
    named = {ours: getattr(module, its, None) for ours, its in _NAMES_OF_FLA.items()}
    return SimpleNamespace(**named)


def _macs(count: int) -> dict[str, int]:
    return {"dense_mac": count, "mac": count}


def _gate(size: int) -> dict[str, int]:
    """Of y · silu(z)."""
    return {"special": size, "mul": 2 * size}


def _biases(projection: Any, tokens: int) -> int:
    biased = projection.bias is not None
    return tokens * int(projection.weight.shape[0]) if biased else 0


def _convolution(call: ModuleCall, batch: int, length: int, *, channels: int) -> Ops:
    """Of the existing taps, its bias and its silu."""
    taps = _sizes(call.module).d_conv
    size = batch * length * channels
    before = taps - 1 if _continues(call, length) else 0
    products = causal_products(length, taps, before=before)
    ops: Ops = Counter(_macs(batch * channels * products))
    ops.update(bias_add=size if call.module.conv1d.bias is not None else 0)
    ops.update(special=size, mul=size)
    return ops


def _cache(call: ModuleCall) -> Any:
    return call.kwargs.get("inference_params", call.kwargs.get("past_key_values"))


def _continues(call: ModuleCall, length: int) -> bool:
    """Whether the call goes on from the states of the tokens before."""
    cache = _cache(call)
    if hasattr(cache, "seqlen_offset"):
        return bool(cache.seqlen_offset > 0)
    # fla's cache has the tokens of this call by now
    return cache is not None and cache.get_seq_length(call.module.layer_idx) > length


def _is_changed(module: nn.Module) -> bool:
    """Whether it holds modules of other names than mamba_ssm gives it."""
    known = {"in_proj", "conv1d", "act", "x_proj", "dt_proj", "norm", "out_proj"}
    return any(name not in known for name, _ in module.named_modules() if name)


def _with_projections(call: ModuleCall, u: Tensor, ops: Ops, *, states: int) -> Cost:
    """Everything else and the outer projections; the input may carry spikes."""
    call.note("scan", "recurrent")
    m, sizes = call.module, _sizes(call.module)
    batch, length = u.shape[:2]
    tokens, wide = batch * length, m.in_proj.weight.shape[0]
    train = call.spikes(u)
    taps = batch * m.conv1d.weight.shape[0] * (sizes.d_conv - 1)
    parts = 2 if _cache(call) is not None else 0
    moved: Ops = Counter(weight_traffic(*m.parameters()))
    out = call.output[0] if isinstance(call.output, tuple) else call.output
    moved["activation"] = size_in_bytes(out)
    # the state between the tokens; with a cache also in and out of the call
    moved["cache"] = (2 * (length - 1) + parts) * batch * states * u.element_size()
    moved["cache"] += parts * taps * u.element_size()
    twin: Ops = Counter(moved)
    twin["activation"] += size_in_bytes(u)
    ops.update(_macs(tokens * sizes.d_inner * sizes.d_model))  # out_proj
    ops.update(bias_add=_biases(m.in_proj, tokens) + _biases(m.out_proj, tokens))
    dense: Ops = Counter(ops)
    dense.update(_macs(tokens * sizes.d_model * wide))
    if train is None:
        return Cost(dense, moved=twin)
    moved["spike_bitmap"] = spike_bytes(train, u)
    reach = Reach((), lambda events: events * wide)
    projection = price_spiking(
        train, reach, tokens * sizes.d_model * wide, tokens * wide, {}, ({}, {})
    )
    ops.update(projection.ops)
    both: Any = dense
    return Cost(ops, both, moved=moved, dense_moved=twin)
