"""Mamba's blocks of mamba_ssm and of flash-linear-attention, by stand-ins."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.llamba.modeling_llamba import CausalConv1d
from tests.energy.hand_derived import Fire
from tests.energy.stand_ins import named


class Block(nn.Module):
    """Stands for a block whose kernel torch does not see: it returns its input."""

    def forward(self, u, inference_params=None):
        return u.clone()


class BlockOfFla(nn.Module):
    """The same with fla's arguments and results; its cache knows this call's tokens."""

    layer_idx = 3

    def forward(self, hidden_states, attention_mask=None, past_key_values=None):
        return hidden_states.clone(), None, past_key_values


class Cache:
    """fla's, of one layer."""

    def __init__(self, seen: int) -> None:
        self.seen = seen

    def get_seq_length(self, layer_idx: int) -> int:
        assert layer_idx == BlockOfFla.layer_idx
        return self.seen


D, I, N, K, R = 6, 12, 4, 3, 2  # noqa: E741
BATCH, LENGTH = 2, 5
TOKENS = BATCH * LENGTH


def mamba(bias: bool = False, *, fla: bool = False) -> nn.Module:
    if fla:
        block = named("fla.layers.mamba.Mamba", BlockOfFla)()
        block.hidden_size, block.intermediate_size = D, I
        block.ssm_state_size, block.conv_kernel_size = N, K
    else:
        block = named("mamba_ssm.modules.mamba_simple.Mamba", Block)()
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
@pytest.mark.parametrize("fla", [False, True])
def test_mamba_costs_its_projections_its_convolution_and_its_recurrence(
    count_model, bias, fla
):
    expected = mamba_by_hand(FRESH)
    expected["bias_add"] += TOKENS * (2 * I + D) if bias else 0
    total = count_model(mamba(bias, fla=fla), torch.rand(BATCH, LENGTH, D)).total()
    assert total == OpCounts(**expected)


@pytest.mark.parametrize("fla", [False, True])
def test_spikes_into_mamba_are_accumulated_by_its_input_projection(count_model, fla):
    u = torch.zeros(BATCH, LENGTH, D)
    u[0, 0, 0], u[1, 2, 3], u[1, 2, 4] = 1, 1, -1
    neuron, block = Fire(), mamba(fla=fla)
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


@pytest.mark.parametrize("seen", [8, 1])
def test_a_step_of_fla_s_mamba_asks_its_cache_what_came_before(seen):
    block = mamba(fla=True)
    with torch.no_grad(), SpikeOpCounter(block) as counter:
        block(torch.rand(BATCH, 1, D), past_key_values=Cache(seen))
    # the first token of all sees one tap
    taps = BATCH * (K if seen > 1 else 1)
    assert counter.total() == OpCounts(**mamba_by_hand(taps, tokens=BATCH))
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


def mamba2(*, rmsnorm: bool = True, fla: bool = False) -> nn.Module:
    # a part of mamba_ssm's inner width may go past the scan
    scanned = H * P
    inner = scanned if fla else I
    if fla:
        block = named("fla.layers.mamba2.Mamba2", BlockOfFla)()
        block.hidden_size, block.intermediate_size = D, inner
        block.ssm_state_size, block.conv_kernel_size = N, K
        block.num_heads, block.head_dim, block.n_groups = H, P, G
        block.norm = nn.RMSNorm(scanned) if rmsnorm else None
    else:
        block = named("mamba_ssm.modules.mamba2.Mamba2", Block)()
        block.d_model, block.d_inner, block.d_state, block.d_conv = D, inner, N, K
        block.d_ssm, block.nheads, block.headdim, block.ngroups = scanned, H, P, G
        block.rmsnorm = rmsnorm
    channels = scanned + 2 * G * N
    block.in_proj = nn.Linear(D, 2 * inner + 2 * G * N + H, bias=False)
    block.conv1d = nn.Conv1d(channels, channels, K, groups=channels, padding=K - 1)
    block.out_proj = nn.Linear(inner, D, bias=False)
    return block


@pytest.mark.parametrize("rmsnorm", [False, True])
@pytest.mark.parametrize("fla", [False, True])
def test_mamba2_costs_its_projections_its_convolution_and_its_scan(
    count_model, rmsnorm, fla
):
    channels, inner = H * P + 2 * G * N, H * P
    wide = inner if fla else I
    ops: Counter[str] = Counter()
    ops["mac"] = TOKENS * D * (2 * wide + 2 * G * N + H) + TOKENS * wide * D
    ops["mac"] += FRESH * channels + TOKENS * H * (2 * P * N + P)
    ops["bias_add"] = TOKENS * channels
    ops["add"] = TOKENS * H  # dt + bias
    # silu of the convolution, softplus and decay, both gates
    ops["special"] = TOKENS * (channels + 2 * H + inner + (wide - inner))
    # silu; dt A and dt x; decay S; both gates
    ops["mul"] = TOKENS * (channels + H + inner + H * P * N + 2 * inner)
    ops["mul"] += TOKENS * 2 * (wide - inner)
    if rmsnorm:
        ops.update(mul=TOKENS * (3 * inner + G), add=TOKENS * inner)
        ops.update(special=TOKENS * G)
    ops["dense_mac"] = ops["mac"]
    model = mamba2(rmsnorm=rmsnorm, fla=fla)
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
