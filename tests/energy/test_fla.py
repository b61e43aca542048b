"""The layers of flash-linear-attention, by stand-ins of the same names and contract."""

import pytest
import torch
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from tests.energy.stand_ins import Attention, Convolution, GatedMLP, Kernel, named

GLA = named("fla.layers.gla.GatedLinearAttention", Attention)
SIMPLE = named("fla.layers.simple_gla.SimpleGatedLinearAttention", Attention)

#: width, heads, key and value channels of a head
D, H, K, V = 6, 2, 3, 4
BATCH, LENGTH = 2, 5
TOKENS = BATCH * LENGTH


def attention_by_hand(tokens: int, decays: int, *, clamped: bool = False) -> OpCounts:
    """Everything of the layer: five projections, the recurrence, norm and gate."""
    projections = D * (2 * H * K + decays + 2 * H * V) + H * V * D
    state = H * K * V
    macs = tokens * (projections + 2 * state)
    return OpCounts(
        dense_mac=macs,
        mac=macs,
        bias_add=tokens * decays,
        # decay of the state; q scaled; of each head's norm 3 V + 1; gate 2 V
        mul=tokens * (state + H * K + H * (3 * V + 1) + 2 * H * V),
        add=tokens * H * V,
        # log sigmoid, division, exp; rsqrt a head; sigmoid of the gate
        special=tokens * (3 * decays + H + H * V),
        cmp=tokens * decays * clamped,
    )


@pytest.mark.parametrize("clamped", [False, True])
def test_gla_costs_its_projections_and_a_recurrence_with_a_decay_a_channel(
    count_model, clamped
):
    layer = GLA(D, H, K, V, decays=H * K)
    layer.clamp_min = -1.0 if clamped else None
    counter = count_model(layer, torch.rand(BATCH, LENGTH, D))
    assert counter.total() == attention_by_hand(TOKENS, H * K, clamped=clamped)
    assert counter.run().settings["scan"] == "recurrent"
    rows = {row.name: row for row in counter.rows()}
    # the projections have rows of their own, the layer's is the recurrence
    assert rows["q_proj"].ops.mac == TOKENS * D * H * K
    assert rows[""].ops.mac == TOKENS * 2 * H * K * V
    # q, k, decays of 6, v and the result of 8 floats; 24 of state, read and written
    assert rows[""].moved.activation == TOKENS * (3 * 6 + 2 * 8) * 4
    assert rows[""].moved.cache == TOKENS * 2 * 24 * 4
    assert rows[""].moved.weight_dense == 0


def test_simple_gla_has_one_decay_a_head(count_model):
    layer = SIMPLE(D, H, K, V, decays=H)
    total = count_model(layer, torch.rand(BATCH, LENGTH, D)).total()
    assert total == attention_by_hand(TOKENS, H)


def test_its_recurrence_is_that_of_the_equation(count_dense):
    """S = exp(g) S + k v and o = q S, where a MAC of k v is written as mul and add."""
    q, k, g = (torch.rand(LENGTH, H, K) for _ in range(3))
    v = torch.rand(LENGTH, H, V)

    def recurrence(q, k, v, g):
        state = torch.zeros(H, K, V)
        for t in range(LENGTH):
            state = g[t].exp()[..., None] * state + k[t][..., None] * v[t][:, None]
            (q[t] * K**-0.5)[:, None] @ state

    written = count_dense(recurrence, q, k, v, g)
    layer = GLA(D, H, K, V, decays=H * K)
    own = count_layer(layer, torch.rand(1, LENGTH, D))
    assert written.mac + written.add == own.mac
    assert written.mul - written.add == own.mul
    # the layer makes g: log sigmoid and division
    assert written.special == own.special // 3


def count_layer(layer, *inputs):
    """What the layer's own row has."""
    with torch.no_grad(), SpikeOpCounter(layer) as counter:
        layer(*inputs)
    return {row.name: row.ops for row in counter.rows()}[""]


def test_gla_runs_on_the_tokens_that_a_padding_mask_leaves(count_model):
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    layer = GLA(D, H, K, V, decays=H * K)
    total = count_model(layer, torch.rand(BATCH, LENGTH, D), mask).total()
    assert total == attention_by_hand(8, H * K)


def test_spikes_into_it_are_accumulated_and_a_neuron_inside_is_counted(
    count_model, fire
):
    layer = GLA(D, H, K, V, decays=H * K)
    layer.o_proj = nn.Sequential(fire(), layer.o_proj)
    x = torch.zeros(1, LENGTH, D)
    x[0, 1, 2], x[0, 4, 0] = 1, -1
    layer.g_norm_swish_gate.register_forward_hook(lambda _m, _a, out: out.sign())
    rows = {r.name: r for r in count_model(nn.Sequential(fire(), layer), x).rows()}
    assert rows["1.v_proj"].ops == OpCounts(
        dense_mac=LENGTH * D * H * V, ac_add=H * V, ac_sub=H * V, sop_unit=2 * H * V
    )
    # every value of the norm is positive here: they all fire
    assert rows["1.o_proj.1"].ops.ac_add == LENGTH * H * V * D
    assert rows["1"].ops.mac == LENGTH * 2 * H * K * V


@pytest.mark.parametrize("change", ["feature_map_fn", "fuse_norm_and_gate"])
def test_functions_that_are_not_known_leave_it_uncounted(change):
    layer = GLA(D, H, K, V, decays=H * K)
    setattr(layer, change, torch.relu if change == "feature_map_fn" else False)
    with torch.no_grad(), SpikeOpCounter(layer) as counter:
        layer(torch.rand(1, LENGTH, D))
    assert counter.run().uncounted == {"GatedLinearAttention": 1}


def test_a_layer_without_a_formula_is_listed_by_its_kernel():
    layer = named("fla.layers.delta_net.DeltaNet", Attention)(D, H, K, V, decays=H)
    with torch.no_grad(), SpikeOpCounter(layer) as counter:
        layer(torch.rand(1, LENGTH, D))
    assert counter.run().uncounted == {"a kernel unknown to torch, in DeltaNet": 1}


# ---- convolution


SHORT = named("fla.modules.causal_conv1d.ops.ShortConvolution", Convolution)


@pytest.mark.parametrize(
    ("options", "products", "adds"),
    [
        # taps of two sequences of 5: 1 + 2 + 3 + 3 + 3
        ({}, 2 * 12, 0),
        ({"residual": torch.rand(2, 5, 3)}, 2 * 12, 2 * 5 * 3),
        # with a cache of the inputs before: all three taps
        ({"cache": torch.rand(2, 3, 3)}, 2 * 15, 0),
    ],
)
@pytest.mark.parametrize("kind", [{"bias": True, "silu": True},
                                  {"bias": False, "silu": False}])  # fmt: skip
def test_a_short_convolution_costs_the_taps_there_are(kind, options, products, adds):
    layer = SHORT(3, 3, **kind)
    with torch.no_grad(), SpikeOpCounter(layer) as counter:
        layer(torch.rand(2, 5, 3), **options)
    size = 2 * 5 * 3
    assert counter.total() == OpCounts(
        dense_mac=3 * products,
        mac=3 * products,
        bias_add=size * kind["bias"],
        special=size * kind["silu"],
        mul=size * kind["silu"],
        add=adds,
    )
    (row,) = counter.rows()
    assert row.moved.cache == (2 * 18 * 4 if "cache" in options else 0)
    assert row.moved.weight_dense == (9 + 3 * kind["bias"]) * 4


def test_packed_sequences_start_anew():
    layer = SHORT(3, 3, bias=False, silu=False)
    with torch.no_grad(), SpikeOpCounter(layer) as counter:
        layer(torch.rand(1, 8, 3), cu_seqlens=torch.tensor([0, 1, 3, 8]))
    # lengths 1, 2 and 5: 1, 1 + 2, 1 + 2 + 3 + 3 + 3
    assert counter.total().mac == 3 * (1 + 3 + 12)


def test_packed_sequences_with_a_cache_have_no_formula():
    layer = SHORT(3, 3, bias=False, silu=False)
    with torch.no_grad(), SpikeOpCounter(layer) as counter:
        layer(torch.rand(1, 2, 3), cu_seqlens=torch.tensor([0, 1, 2]),
              cache=torch.rand(2, 3, 3))  # fmt: skip
    assert counter.run().uncounted == {"ShortConvolution": 1}


# ---- norms


@pytest.mark.parametrize(
    "path", ["fla.modules.layernorm.RMSNorm", "fla.modules.norm.layernorm.RMSNorm",
             "mamba_ssm.ops.triton.layer_norm.RMSNorm"],
)  # fmt: skip
def test_a_norm_may_add_a_residual_first_and_a_bias_last(path):
    norm, x = named(path, Kernel)(4, bias=4), torch.rand(2, 3, 4)
    with torch.no_grad(), SpikeOpCounter(norm) as counter:
        norm(x, torch.rand(2, 3, 4), prenorm=True)
    # six rows: 3 · 4 + 1 mul, 4 add and 1 rsqrt; bias and residual 4 add each
    assert counter.total() == OpCounts(mul=6 * 13, add=6 * (4 + 4 + 4), special=6)
    (row,) = counter.rows()
    assert row.moved.activation == 3 * 24 * 4
    assert row.moved.weight_dense == 8 * 4


def test_a_norm_that_returns_the_residual_too_is_counted_once():
    class Pair(Kernel):
        def forward(self, x, residual=None, prenorm=False):
            return super().forward(x), x

    norm = named("fla.modules.norm.layernorm.RMSNorm", Pair)(4)
    with torch.no_grad(), SpikeOpCounter(norm) as counter:
        norm(torch.rand(3, 4), prenorm=True)
    assert counter.total() == OpCounts(mul=3 * 13, add=3 * 4, special=3)


GATED = "fla.modules.norm.layernorm_gated.RMSNormGated"


@pytest.mark.parametrize(
    ("path", "attributes", "call", "expected"),
    [
        # three rows of 4; silu(g) · y: 1 special and 2 mul an element
        ("fla.modules.norm.fused_norm_gate.FusedRMSNormGated", {"activation": "swish"},
         ("g",), {"mul": 3 * 13 + 24, "add": 12, "special": 3 + 12}),
        ("fla.modules.fused_norm_gate.FusedRMSNormGated", {"activation": "sigmoid"},
         ("g",), {"mul": 3 * 13 + 12, "add": 12, "special": 3 + 12}),
        # six groups of 2: 3 · 2 + 1
        (GATED, {"group_size": 2}, ("z",),
         {"mul": 6 * 7 + 24, "add": 12, "special": 18}),
        (GATED, {"group_size": None}, (), {"mul": 39, "add": 12, "special": 3}),
        ("mamba_ssm.ops.triton.layernorm_gated.RMSNorm", {"group_size": 4},
         ("z",), {"mul": 3 * 13 + 24, "add": 12, "special": 15}),
    ],
)  # fmt: skip
def test_a_gated_norm_costs_its_rows_and_its_gate(path, attributes, call, expected):
    norm = named(path, Kernel)(4)
    vars(norm).update(attributes)
    with torch.no_grad(), SpikeOpCounter(norm) as counter:
        norm(torch.rand(3, 4), **{name: torch.rand(3, 4) for name in call})
    assert counter.total() == OpCounts(**expected)


def test_a_gated_norm_with_a_residual_has_no_formula():
    norm = named("fla.modules.norm.fused_norm_gate.FusedRMSNormGated", Kernel)(4)
    x = torch.rand(3, 4)
    with torch.no_grad(), SpikeOpCounter(norm) as counter:
        norm(x, x, x)
    assert counter.run().uncounted == {"FusedRMSNormGated": 1}


# ---- feed forward


@pytest.mark.parametrize("fuse", [False, True])
def test_a_gated_mlp_costs_the_same_fused_or_not(count_model, fuse):
    mlp = named("fla.modules.mlp.GatedMLP", GatedMLP)(D, 7, fuse=fuse)
    counter = count_model(mlp, torch.rand(BATCH, LENGTH, D))
    macs = TOKENS * 3 * D * 7
    assert counter.total() == OpCounts(
        dense_mac=macs, mac=macs, special=TOKENS * 7, mul=TOKENS * 2 * 7
    )
    assert sum(row.moved.weight_dense for row in counter.rows()) == 3 * D * 7 * 4


def test_another_activation_of_the_mlp_has_no_formula():
    mlp = named("fla.modules.mlp.GatedMLP", GatedMLP)(D, 7, fuse=False)
    mlp.hidden_act = "powlu"
    with torch.no_grad(), SpikeOpCounter(mlp) as counter:
        mlp(torch.rand(1, 2, D))
    assert counter.run().uncounted == {"GatedMLP": 1}
