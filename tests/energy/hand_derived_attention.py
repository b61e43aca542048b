"""Hand-derived cases: attention. See `hand_derived`."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.energy import brute
from tests.energy.hand_derived import Call, Case

# L = 3 queries and keys, E = 2
DENSE = [[0.5, 0.25], [0.75, 0.5], [0.25, 1.0]]
Q = [[1.0, 0], [0, 1], [1, -1]]
K = [[1.0, 1], [0, 1], [0, 0]]
V = [[1.0, 0], [0, -1], [1, 1]]
#: query 0 sees key 0; 1 sees all, two of them biased; 2 sees keys 1 and 2
BIAS = [[0.0, -math.inf, -math.inf], [0.5, 0.0, -0.5], [-math.inf, 0.0, 0.0]]


def attend(**how: Any) -> Call:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(
            *(x.view(1, 1, 3, 2) for x in (q, k, v)), **how
        )

    return Call(attention)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.5).softmax(-1) @ v


ATTENTION = [
    Case(
        name="attention",
        layer=attend,
        inputs=(DENSE, DENSE, DENSE),
        spiking=(False, False, False),
        # 9 pairs of 2 + 2 products; 9 scalings; 3 softmaxes of 3: 2 comparisons, 3 + 2
        # additions, 3 + 1 special, 3 scalings each
        expected={"dense_mac": 36, "mac": 36, "mul": 18, "cmp": 6, "add": 15}
        | {"special": 12},
        again=lambda: brute.attention(DENSE, DENSE, DENSE).counted(),
    ),
    Case(
        name="attention-written-out",
        layer=lambda: Call(written_out),
        inputs=(DENSE, DENSE, DENSE),
        spiking=(False, False, False),
        expected={"dense_mac": 36, "mac": 36, "mul": 18, "cmp": 6, "add": 15}
        | {"special": 12},
        again=lambda: brute.attention(DENSE, DENSE, DENSE).counted(),
    ),
    Case(
        name="attention-causal",
        layer=lambda: attend(is_causal=True),
        inputs=(DENSE, DENSE, DENSE),
        spiking=(False, False, False),
        # 1 + 2 + 3 = 6 pairs of 4 products; softmaxes of 1, 2 and 3: 0 + 1 + 2
        # comparisons, 2 · 6 - 3 additions, 6 + 3 special, 6 scalings and 6 for scale
        expected={"dense_mac": 24, "mac": 24, "mul": 12, "cmp": 3, "add": 9}
        | {"special": 9},
        again=lambda: brute.attention(DENSE, DENSE, DENSE, causal=True).counted(),
    ),
    Case(
        name="attention-causal-all-pairs",
        layer=lambda: attend(is_causal=True),
        inputs=(DENSE, DENSE, DENSE),
        spiking=(False, False, False),
        settings={"causal": "full"},
        # as without the mask
        expected={"dense_mac": 36, "mac": 36, "mul": 18, "cmp": 6, "add": 15}
        | {"special": 12},
        again=lambda: brute.attention(DENSE, DENSE, DENSE).counted(),
    ),
    Case(
        name="attention-biased",
        layer=lambda: attend(attn_mask=torch.tensor(BIAS)),
        inputs=(DENSE, DENSE, DENSE),
        spiking=(False, False, False),
        # again 6 pairs of 3 queries, and 2 additions of the bias
        expected={"dense_mac": 24, "mac": 24, "mul": 12, "cmp": 3, "add": 11}
        | {"special": 9},
        again=lambda: brute.attention(DENSE, DENSE, DENSE, mask=BIAS).counted(),
    ),
    Case(
        name="attention-of-spikes-causal",
        layer=lambda: attend(is_causal=True),
        inputs=(Q, K, V),
        spiking=(True, True, True),
        # coincidences: (0, 0) channel 0; (1, 0) and (1, 1) channel 1; (2, 0) both,
        # (2, 1) channel 1: 6. V: row 0 (+1) is weighed by 3 queries, row 1 (-1) by 2,
        # row 2 (two +1) by 1: 5 and 2
        expected={
            "dense_mac": 24,
            "ac_coincidence": 6,
            "ac_add": 5,
            "ac_sub": 2,
            "sop_unit": 13,
            "mul": 12,
            "cmp": 3,
            "add": 9,
            "special": 9,
        },
        again=lambda: brute.attention(Q, K, V, spiking="qkv", causal=True).counted(),
    ),
    Case(
        name="attention-of-spiking-queries",
        layer=lambda: attend(is_causal=True),
        inputs=(Q, DENSE, DENSE),
        spiking=(True, False, False),
        # rows of 1, 1 and 2 spikes see 1, 2 and 3 keys: 1 + 2 + 3 additions, 3
        # subtractions; the values are 6 pairs · 2 products
        expected={
            "dense_mac": 24,
            "mac": 12,
            "ac_add": 6,
            "ac_sub": 3,
            "sop_unit": 9,
            "mul": 12,
            "cmp": 3,
            "add": 9,
            "special": 9,
        },
        again=lambda: brute.attention(
            Q, DENSE, DENSE, spiking="q", causal=True
        ).counted(),
    ),
    Case(
        name="attention-of-spiking-keys-biased",
        layer=lambda: attend(attn_mask=torch.tensor(BIAS)),
        inputs=(DENSE, K, DENSE),
        spiking=(False, True, False),
        # keys 0, 1, 2 hold 2, 1, 0 spikes and are seen by queries (0, 1), (1, 2),
        # (1, 2): 4 + 2
        expected={
            "dense_mac": 24,
            "mac": 12,
            "ac_add": 6,
            "sop_unit": 6,
            "mul": 12,
            "cmp": 3,
            "add": 11,
            "special": 9,
        },
        again=lambda: brute.attention(
            DENSE, K, DENSE, spiking="k", mask=BIAS
        ).counted(),
    ),
]
