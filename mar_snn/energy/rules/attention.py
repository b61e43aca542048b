"""Prices of scaled dot-product attention, whatever kernel ran.

For a query i and a key j that it may see, a pair, E and F being the sizes of a key and
of a value:

    scores      E products a pair, one multiplication by the scale
    mask        chooses pairs; a finite value of it that is not zero is one addition
    softmax     as in `norm_rules`, over the pairs of a query
    dropout     one comparison and one multiplication a pair, while training
    values      F products a pair

With causal="exact" the pairs are those that the mask or the order of tokens leaves;
with "full" all of them. A query without any pair costs nothing. Attention that is
written out is counted as it is executed, with the masked pairs.

Declared spikes are followed into all three: of q and k the products where both fire, or
an accumulation for each pair of a spike; of v an accumulation of a probability.
"""

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.norm import softmax_ops
from mar_snn.energy.rules.product import Reach, spiking_ops
from mar_snn.energy.rules.registry import OpCall, register_op_rule
from mar_snn.energy.rules.traffic import Traffic, size_in_bytes, spike_bytes
from mar_snn.energy.spike_trains import SpikeTrain

_aten = torch.ops.aten


class Pairs(NamedTuple):
    """Which keys a query sees.

    Attributes:
        total: pairs of all samples and heads; a tensor where a mask decides.
        rows: queries that see any key.
        biased: pairs that the mask adds something to.
        by_query: keys of each query, to broadcast against [B, H, Lq].
        by_key: queries of each key, to broadcast against [B, H, Lk].
        exist: the pairs themselves, to broadcast against [B, H, Lq, Lk]; None for all.
    """

    total: int | Tensor
    rows: int | Tensor
    biased: int | Tensor
    by_query: int | Tensor
    by_key: int | Tensor
    exist: Tensor | None


def find_pairs(
    shape: tuple[int, int, int, int],
    mask: Tensor | None,
    *,
    causal: bool,
    exact: bool,
    device: torch.device,
) -> Pairs:
    """The pairs of attention over [B, H, Lq, Lk]."""
    batch, heads, queries, keys = shape
    everything = batch * heads * queries * keys
    if mask is None and not (causal and exact):
        return Pairs(everything, everything // max(keys, 1), 0, keys, queries, None)
    if mask is None:
        seen = torch.arange(1, queries + 1, device=device).clamp(max=keys)
        heard = (queries - torch.arange(keys, device=device)).clamp(min=0)
        short = min(queries, keys)
        total = short * (short + 1) // 2 + max(queries - keys, 0) * keys
        lower = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
        rows_of_all = batch * heads * queries
        return Pairs(batch * heads * total, rows_of_all, 0, seen, heard, lower)
    mask = mask.expand(*mask.shape[:-2], queries, keys)
    repeats = everything // max(mask.numel(), 1)
    allowed = mask if mask.dtype == torch.bool else mask > -torch.inf
    if causal:
        allowed = allowed & torch.ones_like(allowed).tril()
    biased: int | Tensor = 0
    if mask.dtype != torch.bool:
        biased = ((mask != 0) & allowed).sum() * repeats
    if not exact:
        all_rows = everything // max(keys, 1)
        return Pairs(everything, all_rows, biased, keys, queries, None)
    seen, heard = allowed.sum(-1), allowed.sum(-2)
    rows = (seen > 0).sum() * repeats
    return Pairs(seen.sum() * repeats, rows, biased, seen, heard, allowed)


def price_attention(
    call: OpCall,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Cost:
    """Of q [B, H, Lq, E], k [B, G, Lk, E] and v [B, G, Lk, F]: H / G heads a key."""
    call.note("attention", call.func.overloadpacket.__name__.removeprefix("_"))
    exact = call.settings.causal == "exact"
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    pairs = find_pairs(shape, mask, causal=causal, exact=exact, device=q.device)
    ops: Counter[Any] = Counter(softmax_ops(pairs.rows, pairs.total))
    ops.update({"mul": pairs.total, "add": pairs.biased})
    if dropout:
        ops.update({"cmp": pairs.total, "mul": pairs.total})
    dense: Counter[Any] = Counter(ops)
    ops.update(_scores(call, q, k, pairs))
    ops.update(_values(call, q, v, pairs))
    dense.update(_products(pairs.total * (q.shape[-1] + v.shape[-1])))
    moved, dense_moved = _traffic(call, (q, k, v), mask)
    cost = Cost(ops, moved=moved, dense_moved=dense_moved)
    cost.dense = dense
    return cost


def _traffic(
    call: OpCall, operands: tuple[Tensor, ...], mask: Tensor | None
) -> tuple[Traffic, Traffic]:
    written = size_in_bytes(call.output[0])
    if mask is not None and mask.dtype != torch.bool:
        written += size_in_bytes(mask)
    moved: Counter[str] = Counter(activation=written)
    dense: Counter[str] = Counter(activation=written)
    for tensor, kind in zip(operands, ("activation", "cache", "cache"), strict=True):
        train = call.spikes(tensor)
        dense[kind] += size_in_bytes(tensor)
        if train is None:
            moved[kind] += size_in_bytes(tensor)
        else:
            moved["spike_bitmap"] += spike_bytes(train, tensor)
    return moved, dense


def _products(macs: int | Tensor) -> dict[str, int | Tensor]:
    return {"dense_mac": macs, "mac": macs}


def _scores(
    call: OpCall, q: Tensor, k: Tensor, pairs: Pairs
) -> dict[str, int | Tensor]:
    """The product q · k for each pair."""
    macs = pairs.total * q.shape[-1]
    of_q, of_k = call.spikes(q), call.spikes(k)
    if of_q and of_k and of_q.readout == of_k.readout == "unit":
        meetings = _meetings(of_q, of_k, pairs)
        return {"dense_mac": macs, "ac_coincidence": meetings, "sop_unit": meetings}
    if of_q:
        reach = _reach_of_rows(pairs.by_query, heads=1)
        return spiking_ops(of_q, reach, macs, pairs.total)
    if of_k:
        reach = _reach_of_rows(pairs.by_key, heads=q.shape[1] // k.shape[1])
        return spiking_ops(of_k, reach, macs, pairs.total)
    return _products(macs)


def _values(
    call: OpCall, q: Tensor, v: Tensor, pairs: Pairs
) -> dict[str, int | Tensor]:
    """The sum over the pairs of a query of probability times value."""
    macs = pairs.total * v.shape[-1]
    train = call.spikes(v)
    if train is None:
        return _products(macs)
    reach = _reach_of_rows(pairs.by_key, heads=q.shape[1] // v.shape[1])
    return spiking_ops(train, reach, macs, pairs.rows * v.shape[-1])


def _reach_of_rows(fan_out: int | Tensor, *, heads: int) -> Reach:
    """A spike in row l of [B, G, L, E] reaches fan_out[l] rows of `heads` heads."""

    def accumulate(events: Tensor) -> Tensor:
        return (_for_heads(events, heads) * fan_out).sum()

    return Reach((0, 1, 2), accumulate)


def _for_heads(by_key: Tensor, heads: int) -> Tensor:
    """Of [B, G, ...]: what each of the `heads` that share a key sees, [B, H, ...]."""
    return by_key if heads == 1 else by_key.repeat_interleave(heads, dim=1)


def _meetings(q: SpikeTrain, k: SpikeTrain, pairs: Pairs) -> Tensor:
    """Σ over pairs of the channels in which the query and the key both fire."""
    heads = q.planes[0].shape[1] // k.planes[0].shape[1]
    if pairs.exist is None:
        return (q.fired(0, 1, 3) * _for_heads(k.fired(0, 1, 3), heads)).sum()
    # integers below 2^53: float64 adds them up exactly, and has a product of matrices
    in_q = (q.planes[0] != 0).double()
    in_k = _for_heads((k.planes[0] != 0).double(), heads)
    return ((in_q @ in_k.mT) * pairs.exist).sum().long()


# ---- the kernels


@register_op_rule(_aten._scaled_dot_product_flash_attention_for_cpu.default)
def price_flash_attention_on_cpu(call: OpCall) -> Cost:
    """(q, k, v, dropout, causal, *, mask)."""
    return price_attention(
        call,
        *call.args[:3],
        dropout=call.argument(3, "dropout_p", 0.0),
        causal=call.argument(4, "is_causal", False),
        mask=call.kwargs.get("attn_mask"),
    )


@register_op_rule(_aten._scaled_dot_product_flash_attention.default)
def price_flash_attention(call: OpCall) -> Cost:
    """(q, k, v, dropout, causal, ...)."""
    return price_attention(
        call,
        *call.args[:3],
        dropout=call.argument(3, "dropout_p", 0.0),
        causal=call.argument(4, "is_causal", False),
    )


@register_op_rule(
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
)
def price_biased_attention(call: OpCall) -> Cost:
    """(q, k, v, bias, with logsumexp, dropout, causal, ...)."""
    return price_attention(
        call,
        *call.args[:3],
        mask=call.args[3],
        dropout=call.argument(5, "dropout_p", 0.0),
        causal=call.argument(6, "is_causal", False),
    )


@register_op_rule(_aten._scaled_dot_product_fused_attention_overrideable.default)
def price_overrideable_attention(call: OpCall) -> Cost:
    """(q, k, v, bias, dropout, causal, ...)."""
    return price_attention(
        call,
        *call.args[:3],
        mask=call.argument(3, "attn_bias"),
        dropout=call.argument(4, "dropout_p", 0.0),
        causal=call.argument(5, "is_causal", False),
    )
