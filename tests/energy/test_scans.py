"""The scan in its two forms, the convolution before it, and mamba_ssm's blocks."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.energy.rules import registry
from mar_snn.energy.rules.registry import ModuleCall
from mar_snn.energy.rules.scan import (
    causal_products,
    chunked_scan,
    price_causal_convolution,
    price_scan,
    recurrent_scan,
)
from mar_snn.llamba.modeling_llamba import CausalConv1d
from mar_snn.llamba.scan import CPU_CHUNK, LlambaScan, ssd_chunked
from tests.energy import brute
from tests.energy.hand_derived import Call, Fire


def counted(ops) -> OpCounts:
    return OpCounts(**{field: int(count) for field, count in ops.items()})


@pytest.mark.parametrize("tokens", [1, 4, 5, 11])
def test_both_forms_agree_with_plain_loops(tokens):
    assert counted(recurrent_scan(tokens, 3, 2)) == counted(
        brute.recurrence(tokens, 3, 2)
    )
    assert counted(chunked_scan(tokens, 3, 2, chunk_size=4)) == counted(
        brute.chunks(tokens, 3, 2, 4)
    )


def test_one_chunk_of_three_tokens_by_hand():
    # P = 2, N = 4: 6 pairs of 4 + 2 products, 3 · 8 into the state, 3 · 2 skips
    # decays: 3; running sums 2; pairs 6 add, exp, mul; to the end 3 add, exp, 3 · 2 mul
    assert counted(chunked_scan(3, 2, 4, chunk_size=8)) == OpCounts(
        dense_mac=66, mac=66, special=12, add=11, mul=12
    )


def test_a_scan_that_goes_on_reads_the_state_in_its_first_chunk_too():
    rest, goes_on = (
        counted(chunked_scan(3, 2, 4, chunk_size=8, from_rest=from_rest))
        for from_rest in (True, False)
    )
    # decay of 8 states and sum; 3 tokens read 8, scale 2, add 2; 1 + 3 exp
    assert goes_on == rest + OpCounts(
        dense_mac=24, mac=24, special=4, mul=8 + 6, add=8 + 6
    )


def test_the_products_are_those_of_the_chunked_algorithm_when_it_runs(count_model):
    """Whole chunks, all pairs, and a state that is read from the start."""
    x, log_decay = torch.rand(2, 8, 3, 2), -torch.rand(2, 8, 3)
    b, c = torch.rand(2, 8, 3, 4), torch.rand(2, 8, 3, 4)
    model = Call(lambda *args: ssd_chunked(*args, chunk_size=4)[0])
    ran = count_model(model, x, b, c, log_decay).total()
    ops = chunked_scan(8, 2, 4, chunk_size=4, from_rest=False, causal="full")
    skips = 8 * 2
    assert ran.mac == 2 * 3 * (ops["mac"] - skips)


def scan_call(length, state, **settings):
    x, b = torch.rand(2, length, 3, 2), torch.rand(2, length, 1, 4)
    args = (x, b, b, torch.rand(2, length, 3), torch.ones(3), state)
    return ModuleCall(
        LlambaScan(),
        args,
        {},
        LlambaScan()(*args),
        None,
        None,
        settings=SimpleNamespace(**settings),
        note=lambda *said: NOTES.append(said),
    )


NOTES: list[tuple[str, str]] = []


def test_the_form_is_the_setting_s_and_is_noted():
    NOTES.clear()
    length = CPU_CHUNK + 3
    recurrent = price_scan(scan_call(length, None, scan="recurrent", causal="exact"))
    chunked = price_scan(scan_call(length, None, scan="chunked", causal="exact"))
    assert [("scan", "recurrent"), ("scan", f"chunked, {CPU_CHUNK} tokens")] == NOTES
    heads = 2 * 3
    for cost, ops in (
        (recurrent, recurrent_scan(length, 2, 4)),
        (chunked, chunked_scan(length, 2, 4, chunk_size=CPU_CHUNK)),
    ):
        assert dict(cost.ops) == {field: heads * n for field, n in ops.items()}
    # 2 · 3 · 2 · 4 floats: at every token, or for each of two chunks; it starts at rest
    state = 48 * 4
    assert recurrent.moved["cache"] == (2 * length - 1) * state
    assert chunked.moved["cache"] == (2 * 2 - 1) * state
    # x and y of 12 a token, B and C of 8, A_log of 6
    assert chunked.moved["activation"] == length * (2 * 12 + 2 * 8 + 6) * 4


def test_one_token_with_a_state_reads_and_writes_it():
    call = scan_call(1, torch.rand(2, 3, 2, 4), scan="recurrent", causal="exact")
    assert price_scan(call).moved["cache"] == 2 * 48 * 4


def test_without_its_rule_the_scan_is_counted_as_it_runs(monkeypatch, count_model):
    monkeypatch.delitem(registry._module_rules, "mar_snn.llamba.scan.LlambaScan")
    call = scan_call(5, None)
    total = count_model(LlambaScan(), *call.args[:5]).total()
    # one padded chunk of Q tokens: all pairs, into the state and out of the zero state
    q = CPU_CHUNK
    assert total.mac == 2 * 3 * (q * q * (4 + 2) + 2 * q * 2 * 4)


# ---- the convolution


def test_tokens_at_the_start_see_the_taps_there_are():
    assert causal_products(5, 3) == 1 + 2 + 3 + 3 + 3
    assert causal_products(5, 3, before=2) == 15
    assert causal_products(1, 4, before=1) == 2


@pytest.mark.parametrize(
    ("with_state", "padding", "products"),
    [(False, "exclude", 12), (True, "exclude", 15), (False, "include", 15)],
)
def test_a_causal_convolution_moves_its_last_inputs(with_state, padding, products):
    module = CausalConv1d(2, 3, bias=True)
    x = torch.rand(1, 5, 2)
    state = torch.rand(1, 2, 2) if with_state else None
    with torch.no_grad():
        output = module(x, state)
    call = ModuleCall(
        module, (x, state), {}, output, None, None,
        settings=SimpleNamespace(padding=padding),
    )  # fmt: skip
    cost = price_causal_convolution(call)
    assert cost.ops == {
        "dense_mac": 2 * products,
        "mac": 2 * products,
        "bias_add": 10,
    }
    assert cost.moved == {
        "activation": 2 * 10 * 4,
        # 2 channels of 2 inputs, written, and read where there were any
        "cache": 16 * (2 if with_state else 1),
        "weight_dense": 8 * 4,
        "weight_touched": 8 * 4,
    }


# ---- mamba_ssm


class Block(nn.Module):
    """Stands for a block whose kernel torch does not see: it returns its input."""

    def forward(self, u, inference_params=None):
        return u.clone()


def registered(path: str) -> type[nn.Module]:
    """A class with the dotted path of mamba_ssm's."""
    module, name = path.rsplit(".", 1)
    return type(name, (Block,), {"__module__": module, "__qualname__": name})


D, I, N, K, R = 6, 12, 4, 3, 2  # noqa: E741
BATCH, LENGTH = 2, 5
TOKENS = BATCH * LENGTH


def mamba(bias: bool = False) -> nn.Module:
    block = registered("mamba_ssm.modules.mamba_simple.Mamba")()
    block.d_model, block.d_inner, block.d_state, block.d_conv = D, I, N, K
    block.dt_rank = R
    block.in_proj = nn.Linear(D, 2 * I, bias=bias)
    block.conv1d = nn.Conv1d(I, I, K, groups=I, padding=K - 1)
    block.x_proj = nn.Linear(I, R + 2 * N, bias=False)
    block.dt_proj = nn.Linear(R, I)
    block.out_proj = nn.Linear(I, D, bias=bias)
    block.A_log, block.D = nn.Parameter(torch.ones(I, N)), nn.Parameter(torch.ones(I))
    return block


def mamba_by_hand(taps: int, tokens: int = TOKENS) -> Counter[str]:
    ops: Counter[str] = Counter()
    ops["mac"] = tokens * (D * 2 * I + I * (R + 2 * N) + R * I + I * D)
    ops["mac"] += taps * I + tokens * I * (2 * N + 1)
    ops["bias_add"] = tokens * 2 * I  # convolution, dt
    ops["special"] = tokens * (3 * I + I * N)  # silu, softplus, gate; decays
    ops["mul"] = tokens * (I + 2 * I * N + I + 2 * I)  # silu; dt A, decay h; dt x; gate
    ops["dense_mac"] = ops["mac"]
    return ops


#: taps of two sequences: 1 + 2 + 3 + 3 + 3
FRESH = BATCH * 12


@pytest.mark.parametrize("bias", [False, True])
def test_mamba_costs_its_projections_its_convolution_and_its_recurrence(
    count_model, bias
):
    expected = mamba_by_hand(FRESH)
    expected["bias_add"] += TOKENS * (2 * I + D) if bias else 0
    total = count_model(mamba(bias), torch.rand(BATCH, LENGTH, D)).total()
    assert total == OpCounts(**expected)


def test_spikes_into_mamba_are_accumulated_by_its_input_projection(count_model):
    u = torch.zeros(BATCH, LENGTH, D)
    u[0, 0, 0], u[1, 2, 3], u[1, 2, 4] = 1, 1, -1
    neuron, block = Fire(), mamba()
    counter = count_model(nn.Sequential(neuron, block), u)
    expected = mamba_by_hand(FRESH)
    expected["mac"] -= TOKENS * D * 2 * I
    expected.update(ac_add=2 * 2 * I, ac_sub=2 * I, sop_unit=3 * 2 * I)
    assert counter.total() == OpCounts(**expected)
    (row,) = counter.rows()
    assert row.dense_ops == OpCounts(**mamba_by_hand(FRESH))
    # 60 elements of 2 bits; the result of 60 floats; in the dense twin the input too
    assert (row.moved.spike_bitmap, row.moved.activation) == (15, 240)
    assert row.dense_moved.activation == 480
    weights = sum(p.numel() for p in block.parameters()) * 4
    assert row.moved.weight_dense == row.dense_moved.weight_dense == weights
    # the state between 5 tokens
    assert row.moved.cache == 2 * 4 * BATCH * I * N * 4


def test_a_step_of_mamba_sees_all_taps_and_moves_its_states():
    block, parameters = mamba(), SimpleNamespace(seqlen_offset=7)
    with torch.no_grad(), SpikeOpCounter(block) as counter:
        block(torch.rand(BATCH, 1, D), inference_params=parameters)
    assert counter.total() == OpCounts(**mamba_by_hand(BATCH * K, tokens=BATCH))
    (row,) = counter.rows()
    assert row.moved.cache == 2 * BATCH * (I * N + I * (K - 1)) * 4


def test_a_block_with_a_neuron_inside_is_not_taken_for_mamba():
    block = mamba()
    block.in_proj = nn.Sequential(Fire(), block.in_proj)
    with torch.no_grad(), SpikeOpCounter(block) as counter:
        block(torch.rand(BATCH, LENGTH, D))
    assert counter.run().uncounted == {"Mamba": 1}
    assert counter.total() == OpCounts()


H, P, G = 2, 5, 1


def mamba2(*, rmsnorm: bool = True) -> nn.Module:
    block = registered("mamba_ssm.modules.mamba2.Mamba2")()
    block.d_model, block.d_inner, block.d_state, block.d_conv = D, I, N, K
    # a part of the inner width goes past the scan
    block.d_ssm, block.nheads, block.headdim, block.ngroups = H * P, H, P, G
    channels = H * P + 2 * G * N
    block.in_proj = nn.Linear(D, 2 * I + 2 * G * N + H, bias=False)
    block.conv1d = nn.Conv1d(channels, channels, K, groups=channels, padding=K - 1)
    block.out_proj = nn.Linear(I, D, bias=False)
    block.rmsnorm = rmsnorm
    return block


@pytest.mark.parametrize("rmsnorm", [False, True])
def test_mamba2_costs_its_projections_its_convolution_and_its_scan(
    count_model, rmsnorm
):
    channels, inner = H * P + 2 * G * N, H * P
    ops: Counter[str] = Counter()
    ops["mac"] = TOKENS * D * (2 * I + 2 * G * N + H) + TOKENS * I * D
    ops["mac"] += FRESH * channels + TOKENS * H * (2 * P * N + P)
    ops["bias_add"] = TOKENS * channels
    ops["add"] = TOKENS * H  # dt + bias
    # silu of the convolution, softplus and decay, both gates
    ops["special"] = TOKENS * (channels + 2 * H + inner + (I - inner))
    # silu; dt A and dt x; decay S; both gates
    ops["mul"] = TOKENS * (channels + H + inner + H * P * N + 2 * inner)
    ops["mul"] += TOKENS * 2 * (I - inner)
    if rmsnorm:
        ops.update(mul=TOKENS * (3 * inner + G), add=TOKENS * inner)
        ops.update(special=TOKENS * G)
    ops["dense_mac"] = ops["mac"]
    model = mamba2(rmsnorm=rmsnorm)
    assert count_model(model, torch.rand(BATCH, LENGTH, D)).total() == OpCounts(**ops)


def test_packed_sequences_have_no_formula():
    block = mamba2()
    block.forward = lambda u, seqlen=None: u.clone()
    with torch.no_grad(), SpikeOpCounter(block) as counter:
        block(torch.rand(TOKENS, D), seqlen=LENGTH)
    assert counter.run().uncounted == {"Mamba2": 1}


def test_the_formula_of_mamba_holds_where_its_parts_are_written_out(count_dense):
    """Only products: the parts of one block by functions of torch."""
    block = mamba()

    def pieces(u):
        x, _ = block.in_proj(u).chunk(2, -1)
        taps = CausalConv1d(I, K, bias=True)
        x, _ = taps(x)
        dt, b, c = block.x_proj(x).split([R, N, N], -1)
        dt = F.softplus(block.dt_proj(dt))
        state = torch.einsum("bli,bln->blin", dt * x, b)
        return block.out_proj(torch.einsum("blin,bln->bli", state, c))

    written = count_dense(pieces, torch.rand(BATCH, LENGTH, D))
    # the padding of the convolution is multiplied there, the outer product (dt x) B is
    # elementwise, and D x is left out
    padded = BATCH * (2 + 1) * I
    assert written.mac == mamba_by_hand(FRESH)["mac"] + padded - TOKENS * (I + I * N)
    assert written.mul == TOKENS * (I + I * N)
