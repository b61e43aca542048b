"""A run of ten tokens in two batches, its numbers small enough to work out by hand.

    neuron      cmp 100, mul 20           dense: nothing
    up_proj     200 SynOps, T = 4         dense: 1000 MAC
    lm_head     500 MAC                   dense: 500 MAC

At 45 nm in fp32 (MAC 4.6, AC and comparison 0.9, multiplication 3.7 pJ):

    neuron 100 · 0.9 + 20 · 3.7 = 164, up_proj 200 · 0.9 = 180, lm_head 500 · 4.6 = 2300
    model 2644, dense 1500 · 4.6 = 6900; a token: 264.4 and 690
"""

from mar_snn.energy.counts import (
    BatchCounts,
    ByteCounts,
    CountedRun,
    Firing,
    ModuleRow,
    OpCounts,
)

NEURON = ModuleRow(
    name="layers.0.mlp.in_neuron",
    type="ATMNCoder",
    group="neuron",
    calls=2,
    ops=OpCounts(cmp=100, mul=20),
    dense_ops=OpCounts(),
)
UP_PROJ = ModuleRow(
    name="layers.0.mlp.up_proj",
    type="Linear",
    group="ffn",
    calls=2,
    ops=OpCounts(dense_mac=1000, ac_add=150, ac_sub=50, sop_unit=200),
    dense_ops=OpCounts(dense_mac=1000, mac=1000),
    time_steps=4,
    readout="geometric",
    detection="declared",
    moved=ByteCounts(weight_dense=800, weight_touched=600, spike_bitmap=40),
    dense_moved=ByteCounts(weight_dense=800, weight_touched=800, activation=160),
    columns=20,
    columns_touched=15,
)
LM_HEAD = ModuleRow(
    name="lm_head",
    type="Linear",
    group="lm_head",
    calls=2,
    ops=OpCounts(dense_mac=500, mac=500),
    dense_ops=OpCounts(dense_mac=500, mac=500),
    moved=ByteCounts(weight_dense=400, weight_touched=400, activation=100),
    dense_moved=ByteCounts(weight_dense=400, weight_touched=400, activation=100),
)
FIRING = Firing(
    pos=(30, 10, 5, 5),
    neg=(10, 5, 3, 2),
    elements=(100, 100, 100, 100),
    tau=0.5,
    readout="geometric",
    channels=10,
    silent_channels=2,
    saturated_channels=1,
)
# 920 + 90 + 36 + 29.6 = 1075.6 pJ for 4 tokens, dense 2760: 268.9 and 690 a token
FIRST = BatchCounts(
    ops=OpCounts(
        dense_mac=600, mac=200, ac_add=80, ac_sub=20, sop_unit=100, cmp=40, mul=8
    ),
    dense_ops=OpCounts(dense_mac=600, mac=600),
    tokens=4,
)
# 1380 + 90 + 54 + 44.4 = 1568.4 pJ for 6 tokens, dense 4140: 261.4 and 690 a token
SECOND = BatchCounts(
    ops=OpCounts(
        dense_mac=900, mac=300, ac_add=70, ac_sub=30, sop_unit=100, cmp=60, mul=12
    ),
    dense_ops=OpCounts(dense_mac=900, mac=900),
    tokens=6,
)
RUN = CountedRun(
    rows=(NEURON, UP_PROJ, LM_HEAD),
    firing={"layers.0.mlp.in_neuron": FIRING},
    calls=7,
    uncounted={},
    model={"class": "Tiny", "parameters": 9, "dtypes": ["torch.float32"]},
    batches=(FIRST, SECOND),
    settings={"spikes": "declared", "padding": "exclude", "causal": "exact"},
)
