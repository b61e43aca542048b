"""Prices of state-space scans with one decay a head, in two forms that agree.

B batch · L tokens · H heads · P head size · N state size · Q chunk. Per head:

    recurrent   a token multiplies the state by its decay (P N mul), adds x ⊗ B (P N
                MACs) and reads it with C (P N MACs)
    chunked     of q tokens, with the q (q + 1) / 2 pairs s ≤ t: C[t]·B[s] (N MACs a
                pair), times the decay between them (1 mul, 1 add, 1 exp a pair), times
                x[s] (P MACs a pair); the running sums of log decays (q - 1 add)
                what the chunk adds to the state: its decays to the end (q add, q exp),
                x scaled by them (q P mul), products with B (q P N MACs)
                the state it entered with: decayed (1 exp, P N mul) and added to (P N
                add); read by C (q P N MACs), scaled (q exp, q P mul), added (q P add);
                nothing of this line in the first chunk of a scan that starts from rest
    both        the decay itself (1 special a token), and the skip D x (P MACs)

Counts are of the tokens there are: a kernel's padding of the last chunk is excluded.
With causal="full" a chunk has q² pairs.

A convolution with a state, or a scan with one, reads it; both always write theirs. The
recurrence moves its state at every token, chunks once a chunk.
"""

from collections import Counter

import torch
from torch import Tensor

from mar_snn.energy.counts import Cost
from mar_snn.energy.rules.registry import ModuleCall, register_module_rule
from mar_snn.energy.rules.traffic import size_in_bytes, weight_traffic

__all__ = [
    "causal_products",
    "chunked_scan",
    "products_in_documents",
    "recurrent_scan",
]

Ops = Counter[str]


def recurrent_scan(tokens: int, head_size: int, state_size: int) -> Ops:
    """Of one head, the decays and the skip included; see the top of the file."""
    state = head_size * state_size
    macs = tokens * (2 * state + head_size)
    return Counter(dense_mac=macs, mac=macs, mul=tokens * state, special=tokens)


def chunked_scan(
    tokens: int,
    head_size: int,
    state_size: int,
    *,
    chunk_size: int,
    from_rest: bool = True,
    causal: str = "exact",
) -> Ops:
    """Of one head, the decays and the skip included; see the top of the file."""
    state = head_size * state_size
    ops: Ops = Counter(special=tokens)
    macs = tokens * head_size
    for start in range(0, tokens, chunk_size):
        q = min(chunk_size, tokens - start)
        pairs = q * (q + 1) // 2 if causal == "exact" else q * q
        macs += pairs * (state_size + head_size) + q * state
        ops.update(mul=pairs + q * head_size, special=pairs + q, add=pairs + 2 * q - 1)
        if start or not from_rest:
            macs += q * state
            ops.update(special=1 + q, mul=state + q * head_size)
            ops.update(add=state + q * head_size)
    ops.update(dense_mac=macs, mac=macs)
    return ops


def products_in_documents(seq_idx: Tensor, taps: int, *, before: bool) -> Tensor:
    """Products of one channel of all rows; no token sees another document's inputs.

    Args:
        seq_idx: which document each token is of, [B, L], from left to right.
        taps: how many inputs a token sees at most.
        before: whether the first document of a row goes on from a state.
    """
    length = seq_idx.shape[1]
    met = [
        (seq_idx[:, back:] == seq_idx[:, : length - back]).sum()
        for back in range(min(taps, length))
    ]
    if before:
        # token t of the first document sees the last taps - 1 - t inputs of the state
        first = seq_idx[:, : taps - 1] == seq_idx[:, :1]
        of_state = torch.arange(taps - 1, 0, -1, device=seq_idx.device)
        met.append((first * of_state[: first.shape[1]]).sum())
    return torch.stack(met).sum()


def causal_products(tokens: int, taps: int, *, before: int = 0) -> int:
    """Products of one channel: token t sees min(t + 1 + before, taps) inputs."""
    return sum(min(t + 1 + before, taps) for t in range(tokens))


@register_module_rule("mar_snn.llamba.modeling_llamba.CausalConv1d")
def price_causal_convolution(call: ModuleCall) -> Cost:
    """Token t multiplies min(t + 1, taps) inputs per channel, all taps with a state.

    A state is taken to hold taps - 1 real inputs. Where `seq_idx` numbers documents,
    each starts afresh. With padding="include" every token multiplies all taps.
    """
    x, state = call.argument(0, "x"), call.argument(1, "state")
    batch, length, channels = x.shape
    weight, bias = call.module.weight, call.module.bias
    taps = call.module.kernel_size[0]
    full = call.settings.padding == "include"
    seq_idx = call.argument(2, "seq_idx")
    products: int | Tensor
    if seq_idx is None or full:
        before = taps - 1 if full or state is not None else 0
        products = batch * causal_products(length, taps, before=before)
    else:
        products = products_in_documents(seq_idx, taps, before=state is not None)
    macs = channels * products
    inputs = batch * channels * (taps - 1) * x.element_size()
    moved = {
        "activation": size_in_bytes(x) + size_in_bytes(call.output[0]),
        "cache": inputs * (1 if state is None else 2),
        **weight_traffic(weight, bias),
    }
    biases = x.numel() if bias is not None else 0
    return Cost({"dense_mac": macs, "mac": macs, "bias_add": biases}, moved=moved)


@register_module_rule("mar_snn.llamba.scan.LlambaScan")
def price_scan(call: ModuleCall) -> Cost:
    """The recurrent or the chunked form, whatever algorithm ran."""
    x, state = call.argument(0, "x"), call.argument(5, "state")
    batch, length, heads, head_size = x.shape
    state_size = call.argument(1, "b").shape[-1]
    if call.settings.scan == "chunked":
        # imported here: the model need not be installed to count others
        from mar_snn.llamba.scan import CPU_CHUNK

        chunk = CPU_CHUNK
        call.note("scan", f"chunked, {chunk} tokens")
        passes = -(-length // chunk)
        ops = chunked_scan(
            length,
            head_size,
            state_size,
            chunk_size=chunk,
            from_rest=state is None,
            causal=call.settings.causal,
        )
    else:
        call.note("scan", "recurrent")
        passes = length
        ops = recurrent_scan(length, head_size, state_size)
    read = [call.argument(i, name) for i, name in enumerate(("x", "b", "c", "a_log"))]
    moved = scan_traffic(read, call.output, passes, from_rest=state is None)
    return Cost(
        {field: batch * heads * count for field, count in ops.items()},
        moved={**moved, **weight_traffic(call.argument(4, "d"))},
    )


def scan_traffic(
    read: list[Tensor],
    output: tuple[Tensor, Tensor],
    passes: int,
    *,
    from_rest: bool,
) -> dict[str, int]:
    """Inputs and results once; the state `passes` times read and written."""
    y, state = output
    return {
        "activation": sum(map(size_in_bytes, (*read, y))),
        "cache": (2 * passes - from_rest) * size_in_bytes(state),
    }
