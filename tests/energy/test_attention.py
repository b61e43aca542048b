"""Attention of several heads and samples, and the kernels that other machines run.

Single heads are among the hand-derived cases.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mar_snn.energy import OpCounts
from mar_snn.energy.rules.attention import find_pairs
from mar_snn.energy.rules.registry import OpCall, find_op_rule
from tests.energy import brute
from tests.energy.hand_derived import Call, Fed

aten = torch.ops.aten


def ternary(*shape: int) -> Tensor:
    return torch.randint(-1, 2, shape).float()


def by_loops(q, k, v, **how) -> OpCounts:
    """Every head of every sample by itself; heads share keys in order."""
    tally = brute.Tally()
    mask = how.pop("mask", None)
    for sample in range(q.shape[0]):
        for head in range(q.shape[1]):
            shared = head // (q.shape[1] // k.shape[1])
            if mask is not None:
                how["mask"] = mask.expand(*q.shape[:3], k.shape[2])[
                    sample, head
                ].tolist()
            tally.update(
                brute.attention(
                    q[sample, head].tolist(),
                    k[sample, shared].tolist(),
                    v[sample, shared].tolist(),
                    **how,
                )
            )
    return OpCounts(**tally)


@pytest.mark.parametrize("spiking", ["", "q", "k", "v", "qk", "qkv"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_head_of_every_sample_is_counted(count_dense, spiking, causal):
    # more queries than keys, values wider than keys
    q, k, v = ternary(2, 3, 5, 2), ternary(2, 3, 4, 2), ternary(2, 3, 4, 2)
    layer = Call(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    )
    model = Fed(layer, tuple(name in spiking for name in "qkv"))
    assert count_dense(model, q, k, v) == by_loops(
        q, k, v, spiking=spiking, causal=causal
    )


@pytest.mark.parametrize("spiking", ["q", "kv"])
def test_heads_that_share_keys_reach_them_all(count_dense, spiking):
    q, k, v = ternary(2, 4, 3, 2), ternary(2, 2, 3, 2), ternary(2, 2, 3, 2)
    layer = Call(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    )
    model = Fed(layer, tuple(name in spiking for name in "qkv"))
    assert count_dense(model, q, k, v) == by_loops(q, k, v, spiking=spiking)


@pytest.mark.parametrize("shape", [(3, 3), (2, 1, 3, 3), (1, 3)])
def test_a_mask_that_is_broadcast_is_counted_for_every_head(count_dense, shape):
    q, k, v = (ternary(2, 2, 3, 2) for _ in range(3))
    mask = torch.zeros(shape).masked_fill(torch.rand(shape) < 0.4, -math.inf)
    mask[..., 0] = 0.5
    layer = Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask))
    model = Fed(layer, (True, True, True))
    assert count_dense(model, q, k, v) == by_loops(q, k, v, spiking="qkv", mask=mask)


def test_a_query_without_keys_costs_nothing():
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    nothing[0, :2] = True
    pairs = find_pairs(
        (1, 1, 2, 3), nothing, causal=False, exact=True, device=nothing.device
    )
    assert (int(pairs.total), int(pairs.rows), int(pairs.biased)) == (2, 1, 0)


def test_a_mask_and_the_order_of_tokens_can_hold_together():
    every = torch.ones(1, 3, dtype=torch.bool)
    pairs = find_pairs(
        (2, 1, 3, 3), every, causal=True, exact=True, device=every.device
    )
    # 1 + 2 + 3 in both samples
    assert int(pairs.total) == 12
    full = find_pairs(
        (2, 1, 3, 3), every, causal=True, exact=False, device=every.device
    )
    assert (full.total, full.rows, full.exist) == (18, 6, None)


@pytest.mark.parametrize(
    ("kernel", "args"),
    [
        (aten._scaled_dot_product_flash_attention, (0.1, True)),
        (aten._scaled_dot_product_efficient_attention, (None, False, 0.1, True)),
        (aten._scaled_dot_product_cudnn_attention, (None, False, 0.1, True)),
        (aten._scaled_dot_product_fused_attention_overrideable, (None, 0.1, True)),
        (aten._scaled_dot_product_flash_attention_for_cpu, (0.1, True)),
    ],
)
def test_the_kernels_of_other_machines_cost_the_same_and_dropout_a_choice(kernel, args):
    q, k, v = (torch.rand(1, 2, 3, 4) for _ in range(3))
    call = OpCall(kernel.default, (q, k, v, *args), {}, (q,))
    cost = find_op_rule(kernel.default)(call)
    ops = {field: int(count) for field, count in cost.ops.items()}
    expected = by_loops(q, k, v, causal=True)
    # 2 heads of 6 pairs: a comparison and a multiplication each
    expected += OpCounts(cmp=12, mul=12)
    assert OpCounts(**ops) == expected
    # 24 values of 4 bytes each: q and the result, k and v
    assert cost.moved == {"activation": 192, "cache": 192}


def test_dropout_while_training_is_counted_as_it_is_written_out(count_model):
    def attend(x):
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)

    total = count_model(Call(attend), torch.rand(1, 1, 3, 2)).total()
    # 9 coins
    assert total.dense_mac == 36
    assert total.cmp == 9 + 6


def test_spikes_in_attention_move_as_bitmaps(count_model):
    q, k, v = ternary(1, 1, 3, 5), ternary(1, 1, 3, 5), ternary(1, 1, 3, 5)
    layer = Call(lambda q, k, v: F.scaled_dot_product_attention(q, k, v))
    (row,) = count_model(Fed(layer, (True, False, True)), q, k, v).rows()
    # the result and k of 15 floats; 15 elements of 2 bits are 30 bits: 4 bytes, twice
    assert (row.moved.activation, row.moved.cache) == (60, 60)
    assert row.moved.spike_bitmap == 8
    assert (row.dense_moved.activation, row.dense_moved.cache) == (120, 120)
    assert row.dense_moved.spike_bitmap == 0
