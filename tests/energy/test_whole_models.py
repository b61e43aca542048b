"""Whole language models of transformers, every count from the numbers of the config.

The paths are those that run without kernels. B sequences of L tokens; the letters of a
model stand above its test.
"""

from collections import Counter

import pytest
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from mar_snn.energy import OpCounts, SpikeOpCounter

B, L = 2, 7
TOKENS = B * L
LAYERS, D, V = 2, 16, 40
IDS = torch.arange(TOKENS).view(B, L)
COMMON = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": LAYERS}


def counted(model: nn.Module, **settings: str) -> SpikeOpCounter:
    with torch.no_grad(), SpikeOpCounter(model.eval(), **settings) as counter:
        model(IDS, use_cache=False)
    counter.report().assert_complete()
    return counter


def frame(norms: int, residuals: int) -> Counter[str]:
    """Embedding, norms, residuals and head: what the three have in common."""
    rows = norms * TOKENS
    return Counter(
        lookup=TOKENS,
        mac=TOKENS * D * V,
        mul=rows * (3 * D + 1),
        add=rows * D + residuals * TOKENS * D,
        special=rows,
    )


def complete(ops: Counter[str]) -> OpCounts:
    """The dense layer of a dense model is the layer."""
    return OpCounts(**ops, dense_mac=ops["mac"])


# Llama: H heads of size E, G of them with keys, F wide feed-forward
H, G, E, F = 4, 2, 4, 24


def llama(attention: str) -> nn.Module:
    config = LlamaConfig(
        **COMMON,
        intermediate_size=F,
        num_attention_heads=H,
        num_key_value_heads=G,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config)


def llama_by_hand(pairs: int) -> Counter[str]:
    """`pairs` of queries and keys that one head of one sequence computes."""
    ops = frame(norms=2 * LAYERS + 1, residuals=2 * LAYERS)
    # angles: L positions times E / 2 frequencies; cos and sin of both halves, scaled
    ops.update(mul=L * E // 2 + 2 * L * E, special=2 * L * E)
    for _ in range(LAYERS):
        # q and o, k and v, gate, up and down
        ops.update(mac=TOKENS * (2 * D * D + 2 * D * G * E + 3 * D * F))
        # silu and product
        ops.update(special=TOKENS * F, mul=TOKENS * 2 * F)
        # rotation of q and k: two products and a sum
        ops.update(mul=TOKENS * 2 * (H + G) * E, add=TOKENS * (H + G) * E)
        # scores and values; scale and softmax of B · H · L rows
        size, rows = B * H * pairs, B * H * L
        ops.update(mac=size * 2 * E, mul=2 * size, cmp=size - rows)
        ops.update(add=2 * size - rows, special=size + rows)
    return ops


def test_llama_costs_what_its_config_says_with_the_pairs_of_a_causal_mask():
    assert counted(llama("sdpa")).total() == complete(llama_by_hand(L * (L + 1) // 2))


def test_the_run_says_which_attention_ran():
    settings = counted(llama("sdpa")).run().settings
    assert settings["attention"].startswith("scaled_dot_product_")


def test_llama_costs_more_where_all_pairs_are_asked_for():
    total = counted(llama("sdpa"), causal="full").total()
    assert total == complete(llama_by_hand(L * L))


def test_attention_that_is_written_out_computes_all_pairs_and_adds_its_mask():
    expected = llama_by_hand(L * L)
    expected.update(add=LAYERS * B * H * L * L)
    assert counted(llama("eager")).total() == complete(expected)


# Mamba: I inner width, N states a channel, K taps, R rank of the step sizes
INNER, N, K, R = 2 * D, 4, 3, 2


def test_mamba_costs_what_its_config_says():
    model = MambaForCausalLM(
        MambaConfig(**COMMON, state_size=N, conv_kernel=K, time_step_rank=R, expand=2)
    )
    ops = frame(norms=LAYERS + 1, residuals=LAYERS)
    for _ in range(LAYERS):
        ops.update(mac=TOKENS * (D * 2 * INNER + INNER * D))  # in_proj, out_proj
        # padded on both sides: every input meets all taps, K - 1 outputs are dropped
        ops.update(mac=TOKENS * INNER * K, bias_add=B * (L + K - 1) * INNER)
        ops.update(special=TOKENS * INNER, mul=TOKENS * INNER)  # silu
        ops.update(mac=TOKENS * (INNER * (R + 2 * N) + R * INNER))  # x_proj, dt_proj
        ops.update(add=TOKENS * INNER, special=TOKENS * INNER)  # bias, softplus
        # A = -exp(A_log); dt A, its exp, dt B, times x, decay · h, + , h C
        ops.update(special=INNER * N + TOKENS * INNER * N)
        ops.update(mul=4 * TOKENS * INNER * N, add=TOKENS * INNER * N)
        ops.update(mac=TOKENS * INNER * N)
        ops.update(mul=TOKENS * INNER, add=TOKENS * INNER)  # D x
        ops.update(special=TOKENS * INNER, mul=2 * TOKENS * INNER)  # gate
    assert counted(model).total() == complete(ops)


# Mamba-2: S heads of size P, C chunks of Q tokens; L is padded to C Q
S, P, Q, GROUPS = 4, 8, 4, 2
C = -(-L // Q)


def test_mamba2_costs_what_its_config_says_in_the_chunks_that_run():
    model = Mamba2ForCausalLM(
        Mamba2Config(
            **COMMON,
            state_size=N,
            conv_kernel=K,
            expand=2,
            num_heads=S,
            head_dim=P,
            n_groups=GROUPS,
            chunk_size=Q,
        )
    )
    ops = frame(norms=LAYERS + 1, residuals=LAYERS)
    convolved = INNER + 2 * GROUPS * N
    padded = B * C * Q  # tokens of the chunks
    for _ in range(LAYERS):
        ops.update(mac=TOKENS * D * (INNER + convolved + S) + TOKENS * INNER * D)
        ops.update(mac=TOKENS * convolved * K, bias_add=B * (L + K - 1) * convolved)
        ops.update(special=TOKENS * convolved, mul=TOKENS * convolved)  # silu
        # dt + bias, softplus, two bounds; A = -exp(A_log); dt A; dt x; D x
        ops.update(add=TOKENS * S, special=TOKENS * S + S, cmp=2 * TOKENS * S)
        ops.update(mul=TOKENS * S + TOKENS * INNER + padded * INNER)
        # running sums of dt A: by chunk, of every column of Q x Q, and over the chunks
        ops.update(add=B * S * (C * (Q - 1) + C * Q * (Q - 1) + (C + 1) * C))
        # exp of the pairs, to the end, from the start, and between chunks
        ops.update(special=B * S * (C * Q * Q + 2 * C * Q + (C + 1) ** 2))
        ops.update(add=B * S * C * Q)  # the differences to the end
        # C B, times decay, times x; B to the end, into the state; out of it, decayed
        ops.update(mac=padded * S * Q * (N + P), mul=padded * S * Q)
        ops.update(mul=padded * S * N, mac=2 * padded * S * P * N)
        ops.update(mac=B * (C + 1) ** 2 * S * P * N)  # between chunks
        ops.update(mul=padded * INNER, add=2 * padded * INNER)
        # gate, and a norm of each group
        rows = TOKENS * GROUPS
        ops.update(special=TOKENS * INNER + rows, add=TOKENS * INNER)
        ops.update(mul=5 * TOKENS * INNER + rows)
    assert counted(model).total() == complete(ops)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_a_model_counts_the_same_in_every_grad_mode(mode):
    model = llama("sdpa")
    reference = counted(model)
    with mode(), SpikeOpCounter(model) as counter:
        model(IDS, use_cache=False)
    assert counter.rows() == reference.rows()


def test_the_steps_of_generate_are_all_covered():
    for model in (
        llama("sdpa"),
        MambaForCausalLM(MambaConfig(**COMMON, state_size=N, time_step_rank=R)),
    ):
        with SpikeOpCounter(model.eval()) as counter:
            model.generate(IDS, max_new_tokens=3, do_sample=False, pad_token_id=0)
        counter.report().assert_complete()
        # the prompt, and two tokens more: the third is never read
        assert counter.total().lookup == TOKENS + 2 * B
