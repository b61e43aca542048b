"""Whole Llamba models against a count written out from the numbers of the config."""

from collections import Counter

import pytest
import torch

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.energy.counts import ByteCounts
from mar_snn.energy.rules import registry
from mar_snn.llamba.configuration_llamba import LlambaConfig
from mar_snn.llamba.modeling_llamba import LlambaForCausalLM
from mar_snn.llamba.scan import CPU_CHUNK
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.spiking import SpikingConfig
from tests.seed import SEED

BATCH, LENGTH, LAYERS = 2, 7, 2
TOKENS = BATCH * LENGTH
WIDTH, VOCABULARY, FFN = 12, 40, 20  # D, V, F
STATE, HEADS, GROUPS, TAPS = 5, 4, 2, 3  # N, H, G, K
INNER = 2 * WIDTH  # expand = 2
HEAD = INNER // HEADS  # P
CONVOLVED = INNER + 2 * GROUPS * STATE  # x, B and C
PROJECTED = CONVOLVED + INNER + HEADS  # and z and A_log
T = 3


def tiny_llamba(*, bias=False, spiking=None):
    torch.manual_seed(SEED)
    model = LlambaForCausalLM(
        LlambaConfig(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            n_layer=LAYERS,
            lm_head_bias=bias,
            initializer_range=0.5,
            mlp_cfg={"intermediate_size": FFN, "bias": bias},
            ssm_cfg={
                "d_state": STATE,
                "n_v_heads": HEADS,
                "n_qk_heads": GROUPS,
                "expand": 2,
                "d_conv": TAPS,
                "bias": bias,
                "activation": "silu" if bias else "identity",
            },
            spiking=spiking,
        )
    ).eval()
    for module in model.modules():
        if isinstance(module, ATMNCoder):
            torch.nn.init.uniform_(module.neuron.a, -2.0, 0.0)
    return model


IDS = torch.arange(TOKENS).view(BATCH, LENGTH)


def counted(model, *args, **kwargs):
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(*args, **kwargs)
    counter.report().assert_complete()
    return counter


def dense_by_hand(*, bias, taps=None, tokens=TOKENS):
    """(products of the slots' projections, everything else) of the dense model."""
    projections, rest = Counter(), Counter()
    # (inputs, outputs) of in_proj, out_proj, gate, up, down
    for inputs, outputs in (
        (WIDTH, PROJECTED), (INNER, WIDTH), (WIDTH, FFN), (WIDTH, FFN), (FFN, WIDTH),
    ):  # fmt: skip
        projections["dense_mac"] += LAYERS * tokens * inputs * outputs
        rest["bias_add"] += LAYERS * tokens * outputs if bias else 0
    # taps of a sequence: token 0 sees 1, token 1 sees 2, the others 3
    taps = BATCH * (1 + 2 + TAPS * (LENGTH - 2)) if taps is None else taps
    rest["mac"] += LAYERS * CONVOLVED * taps
    rest["bias_add"] += LAYERS * tokens * CONVOLVED
    # scan: x ⊗ B and S C of P · N, D x of P; decay · S; sigmoid
    rest["mac"] += LAYERS * tokens * HEADS * (2 * HEAD * STATE + HEAD)
    rest["mul"] += LAYERS * tokens * HEADS * HEAD * STATE
    rest["special"] += LAYERS * tokens * HEADS
    # gate: z + z_bias (where the projection has no bias), silu, product
    rest["add"] += 0 if bias else LAYERS * tokens * INNER
    rest["special"] += LAYERS * tokens * INNER
    rest["mul"] += LAYERS * tokens * 2 * INNER
    # silu of the convolution
    rest["special"] += LAYERS * tokens * CONVOLVED if bias else 0
    rest["mul"] += LAYERS * tokens * CONVOLVED if bias else 0
    # feed-forward: silu and product
    rest["special"] += LAYERS * tokens * FFN
    rest["mul"] += LAYERS * tokens * 2 * FFN
    # two residuals a block
    rest["add"] += LAYERS * tokens * 2 * WIDTH
    # two norms a block and the last one
    norms = (2 * LAYERS + 1) * tokens
    rest["mul"] += norms * (3 * WIDTH + 1)
    rest["add"] += norms * WIDTH
    rest["special"] += norms
    # embedding and head
    rest["lookup"] += tokens
    rest["mac"] += tokens * WIDTH * VOCABULARY
    rest["bias_add"] += tokens * VOCABULARY if bias else 0
    rest["dense_mac"] = rest["mac"]
    return projections, rest


@pytest.mark.parametrize("bias", [False, True])
def test_a_dense_llamba_costs_what_its_config_says(bias):
    projections, expected = dense_by_hand(bias=bias)
    expected["dense_mac"] += projections["dense_mac"]
    expected["mac"] += projections["dense_mac"]
    assert counted(tiny_llamba(bias=bias), IDS).total() == OpCounts(**expected)


@pytest.mark.parametrize("readout", ["geometric", "sum"])
def test_a_spiking_llamba_costs_what_its_spikes_say(readout):
    model = tiny_llamba(spiking=SpikingConfig(time_steps=T, readout=readout))
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, ATMNCoder):
            module.register_forward_pre_hook(
                lambda coder, args, name=name: inputs.update({name: (coder, args[0])})
            )
    counter = counted(model, IDS)
    assert len(inputs) == 4 * LAYERS

    projections, expected = dense_by_hand(bias=False)
    expected["dense_mac"] += projections["dense_mac"]
    reached = {
        "mixer.in_neuron": PROJECTED,
        "mixer.out_neuron": WIDTH,
        "mlp.in_neuron": 2 * FFN,  # gate and up
        "mlp.out_neuron": WIDTH,
    }
    fired = 0
    for name, (coder, x) in inputs.items():
        outputs = reached[name.split(".", 3)[3]]
        values = coder.encode(x).flatten().tolist()
        pos, neg = values.count(1.0), values.count(-1.0)
        expected["ac_add"] += pos * outputs
        expected["ac_sub"] += neg * outputs
        # coder: 2 T comparisons, T - 1 leaks, 1 reset a spike
        elements = TOKENS * coder.num_channels
        expected["cmp"] += 2 * T * elements
        expected["mul"] += (T - 1) * elements
        expected["add"] += pos + neg
        if readout == "geometric":
            expected["mul"] += (T - 1) * TOKENS * outputs
        firing = counter.run().firing[name]
        assert (sum(firing.pos), sum(firing.neg)) == (pos, neg)
        assert firing.elements == (elements,) * T
        fired += pos + neg
    assert fired > 0
    expected["sop_unit"] = expected["ac_add"] + expected["ac_sub"]
    assert counter.total() == OpCounts(**expected)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_a_spiking_llamba_counts_the_same_in_every_grad_mode(mode):
    model = tiny_llamba(spiking=SpikingConfig(time_steps=T))
    reference = counted(model, IDS)
    with mode():
        plain = model(IDS).logits
        with SpikeOpCounter(model) as counter:
            logits = model(IDS).logits
    assert torch.equal(plain, logits)
    assert counter.rows() == reference.rows()


def test_the_dense_baseline_is_the_dense_model():
    model = tiny_llamba(spiking=SpikingConfig(time_steps=T))
    spiking = counted(model, IDS)
    dense = counted(tiny_llamba(), IDS)
    assert OpCounts.sum(row.dense_ops for row in spiking.rows()) == dense.total()
    report, teacher = spiking.report(), dense.report()
    assert report.baseline_pj == pytest.approx(teacher.energy_pj, rel=1e-12)
    against = spiking.report(baseline=teacher)
    assert against.ratio == pytest.approx(report.ratio, rel=1e-12)
    assert against.baseline == "LlambaForCausalLM"
    assert teacher.ratio == pytest.approx(1.0, rel=1e-12)


def test_groups_hold_the_parts_of_a_block():
    report = counted(tiny_llamba(spiking=SpikingConfig(time_steps=T)), IDS).report()
    groups = report.groups
    assert set(groups) == {
        "embedding", "norm", "neuron", "mixer.in_proj", "mixer.conv1d", "mixer.scan",
        "mixer.gate", "mixer.out_proj", "residual", "ffn", "lm_head",
    }  # fmt: skip
    head = TOKENS * WIDTH * VOCABULARY
    assert groups["lm_head"].counts == OpCounts(dense_mac=head, mac=head)
    assert groups["residual"].counts == OpCounts(add=LAYERS * TOKENS * 2 * WIDTH)
    assert groups["mixer.gate"].counts == OpCounts(
        add=LAYERS * TOKENS * INNER,
        mul=LAYERS * TOKENS * 2 * INNER,
        special=LAYERS * TOKENS * INNER,
    )
    assert OpCounts.sum(group.counts for group in groups.values()) == report.total
    assert report.units == TOKENS


def test_a_cached_token_is_convolved_with_all_its_taps():
    model = tiny_llamba()
    with torch.no_grad():
        cache = model(IDS, use_cache=True).past_key_values
    step = counted(model, IDS[:, :1], past_key_values=cache)
    projections, expected = dense_by_hand(bias=False, taps=BATCH * TAPS, tokens=BATCH)
    expected["dense_mac"] += projections["dense_mac"]
    expected["mac"] += projections["dense_mac"]
    assert step.total() == OpCounts(**expected)


def test_leaving_padding_out_costs_no_arithmetic():
    model = tiny_llamba()
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    plain = counted(model, IDS).total()
    # what keeps it from the state only moves elements, or sets some to zero
    assert counted(model, IDS, attention_mask=mask).total() == plain


def test_a_scan_counted_as_it_runs_has_the_products_of_its_padded_chunks(monkeypatch):
    recurrent = counted(tiny_llamba(), IDS).total()
    monkeypatch.delitem(registry._module_rules, "mar_snn.llamba.scan.LlambaScan")
    chunked = counted(tiny_llamba(), IDS).total()
    heads, q = LAYERS * BATCH * HEADS, CPU_CHUNK
    # one chunk holds the sequence: pairs, into the state and out of it
    products = heads * (q * q * (STATE + HEAD) + 2 * q * HEAD * STATE)
    recurrence = heads * LENGTH * (2 * HEAD * STATE + HEAD)
    assert chunked.dense_mac - recurrent.dense_mac == products - recurrence


def test_the_chunked_scan_can_be_counted_instead_of_the_recurrent_one():
    model, heads = tiny_llamba(), LAYERS * BATCH * HEADS
    with torch.no_grad(), SpikeOpCounter(model, scan="chunked") as counter:
        model(IDS)
    # from rest, in one chunk: pairs t <= s, into the state, the skip
    pairs = LENGTH * (LENGTH + 1) // 2
    chunked = pairs * (STATE + HEAD) + LENGTH * HEAD * STATE + LENGTH * HEAD
    recurrent = LENGTH * (2 * HEAD * STATE + HEAD)
    difference = counter.total().mac - counted(model, IDS).total().mac
    assert difference == heads * (chunked - recurrent)
    assert counter.run().settings["scan"] == f"chunked, {CPU_CHUNK} tokens"


def test_the_weights_of_a_dense_llamba_move_once_a_pass_and_its_states_once_a_token():
    model = tiny_llamba()
    total = ByteCounts.sum(row.moved for row in counted(model, IDS).rows())
    table = model.backbone.embedding.weight
    # all parameters but the table, of which the tokens' rows are read
    tied = model.lm_head.weight is table
    weights = sum(p.numel() for p in model.parameters())
    weights += TOKENS * WIDTH - (0 if tied else table.numel())
    assert total.weight_dense == total.weight_touched == 4 * weights
    # per layer: the state between the tokens and behind the last, taps - 1 inputs
    state = BATCH * HEADS * HEAD * STATE
    inputs = BATCH * CONVOLVED * (TAPS - 1)
    assert total.cache == 4 * LAYERS * ((2 * LENGTH - 1) * state + inputs)
    assert (total.spike_bitmap, total.neuron_state) == (0, 0)


def test_a_spiking_llamba_moves_bitmaps_and_the_columns_that_fire():
    model = tiny_llamba(spiking=SpikingConfig(time_steps=T))
    rows = counted(model, IDS).rows()
    moved = ByteCounts.sum(row.moved for row in rows)
    dense = ByteCounts.sum(row.dense_moved for row in rows)
    # written by the coder, read by each projection; gate and up read the same
    planes = [2 * WIDTH, 2 * INNER, 3 * WIDTH, 2 * FFN]
    assert moved.spike_bitmap == sum(LAYERS * T * TOKENS * w // 4 for w in planes)
    # the membranes of the coders, between their steps
    coded = WIDTH + INNER + WIDTH + FFN
    assert moved.neuron_state == LAYERS * 2 * (T - 1) * TOKENS * coded * 4
    thresholds = LAYERS * coded * 4
    assert moved.weight_dense == dense.weight_dense + thresholds
    assert moved.weight_touched <= moved.weight_dense
    assert moved.cache == dense.cache
    twin = ByteCounts.sum(row.moved for row in counted(tiny_llamba(), IDS).rows())
    assert dense == twin
