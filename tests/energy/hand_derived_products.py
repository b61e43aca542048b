"""Hand-derived cases: products of matrices. See `hand_derived`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.energy import brute
from tests.energy.hand_derived import Call, Case


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def silent_weights() -> nn.Linear:
    layer = linear(4, 3)
    nn.init.zeros_(layer.weight)
    return layer


class Twice(nn.Module):
    """One projection, used twice on the same spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x) + self.projection(x)


class Pair(nn.Module):
    """Two projections with an input each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = linear(100, 10), linear(10, 1000)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(y)


class Bypass(nn.Module):
    """A projection that is used by its weight and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.dt_proj = linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.dt_proj.weight.T


def twice(rows: list[list[float]]) -> dict[str, int]:
    tally = brute.Tally()
    for _ in range(2):
        tally.update(brute.linear(rows, 3, spikes=True))
    for _ in range(len(rows) * 3):
        tally.note("add")
    return tally.counted()


def two_layers() -> dict[str, int]:
    tally = brute.linear(FEW, 10, spikes=True)
    tally.update(brute.linear(HALF, 1000, spikes=True))
    return tally.counted()


def scaled_sum() -> dict[str, int]:
    tally = brute.linear(BINARY, 3, spikes=True, bias=True)
    for _ in range(2 * 3):
        tally.note("mul")  # alpha
        tally.note("mul")  # beta
    return tally.counted()


def beyond_float32() -> dict[str, int]:
    tally = brute.Tally()
    for _ in range(257):
        for _ in range(257):
            for field in ("dense_mac", "ac_add", "sop_unit"):
                tally.note(field, 301)  # its outputs
    return tally.counted()


def three_products() -> dict[str, int]:
    tally = brute.both_spike(Q, [list(column) for column in zip(*K, strict=True)])
    # the scores are sums and no spikes; V's spikes reach a row of the result each
    for _ in Q:
        for row in V:
            for value in row:
                tally.spike(value)
    return tally.counted()


BINARY = [[1.0, 0, 1, 0], [0, 0, 0, 1]]
TERNARY = [[1.0, -1, 0, 0], [0, 0, -1, 1]]
FEW = [[1.0] * 10 + [0.0] * 90]
HALF = [[1.0] * 5 + [0.0] * 5]
RIGHT = [[1.0, 0, 0, -1], [0, 0, 0, 0], [1, 1, 0, 0]]
BATCHED = [[[1.0, -1]], [[0, 1]]]
Q = [[1.0, 0, 0], [1, 1, 0]]
K = [[1.0, 1, 0], [0, 0, 1]]
V = [[1.0, 0, 0], [0, 0, 1]]

PRODUCTS = [
    Case(
        name="C01-binary",
        layer=lambda: linear(4, 3),
        inputs=(BINARY,),
        # 3 spikes, 3 outputs each; dense 2 · 4 · 3
        expected={"dense_mac": 24, "ac_add": 9, "sop_unit": 9},
        again=lambda: brute.linear(BINARY, 3, spikes=True).counted(),
    ),
    Case(
        name="C02-bias",
        layer=lambda: linear(4, 3, bias=True),
        inputs=(BINARY,),
        # as C01, and 2 rows of 3 biases
        expected={"dense_mac": 24, "ac_add": 9, "sop_unit": 9, "bias_add": 6},
        again=lambda: brute.linear(BINARY, 3, spikes=True, bias=True).counted(),
    ),
    Case(
        name="C03-ternary",
        layer=lambda: linear(4, 3),
        inputs=(TERNARY,),
        # two +1 and two -1, 3 outputs each; their sum would be 0
        expected={"dense_mac": 24, "ac_add": 6, "ac_sub": 6, "sop_unit": 12},
        again=lambda: brute.linear(TERNARY, 3, spikes=True).counted(),
    ),
    Case(
        name="C04-signed",
        layer=lambda: linear(4, 3),
        inputs=([[-1.0, 0, 0, -1]],),
        # two -1, 3 outputs each; their sum would be -6
        expected={"dense_mac": 12, "ac_sub": 6, "sop_unit": 6},
        again=lambda: brute.linear([[-1, 0, 0, -1]], 3, spikes=True).counted(),
    ),
    Case(
        name="C07-analogue",
        layer=lambda: linear(4, 3),
        inputs=([[0.3, 0.7, 0.3, 0.7]],),
        spiking=(False,),
        # nobody declares a spike: 4 · 3
        expected={"dense_mac": 12, "mac": 12},
        again=lambda: brute.linear([[0.3, 0.7] * 2], 3, spikes=False).counted(),
    ),
    Case(
        name="C08-zero-weights",
        layer=silent_weights,
        inputs=([[0.5, 0.5, 0.5, 0.5]],),
        spiking=(False,),
        # a weight of zero is a weight: 4 · 3
        expected={"dense_mac": 12, "mac": 12},
        again=lambda: brute.linear([[0.5] * 4], 3, spikes=False).counted(),
    ),
    Case(
        name="S7-equal-values",
        layer=lambda: linear(2, 3),
        inputs=([[0.25, 0.25]],),
        spiking=(False,),
        # two values that are equal are no spikes: 2 · 3
        expected={"dense_mac": 6, "mac": 6},
        again=lambda: brute.linear([[0.25, 0.25]], 3, spikes=False).counted(),
    ),
    Case(
        name="J5-zeros-and-ones-by-chance",
        layer=lambda: linear(4, 3),
        inputs=([[0.0, 1, 0, 1], [0, 1.5, 0, 1]],),
        spiking=(False,),
        # both rows are multiplied: 2 · 4 · 3
        expected={"dense_mac": 24, "mac": 24},
        again=lambda: brute.linear([[0, 1, 0, 1]] * 2, 3, spikes=False).counted(),
    ),
    Case(
        name="silence",
        layer=lambda: linear(4, 3),
        inputs=([[0.0, 0, 0, 0]],),
        expected={"dense_mac": 12},
        again=lambda: brute.linear([[0] * 4], 3, spikes=True).counted(),
    ),
    Case(
        name="J2-bfloat16-product",
        layer=lambda: linear(257, 5).bfloat16(),
        inputs=([[1.0] * 257] * 3,),
        dtype=torch.bfloat16,
        # 3 · 257 · 5, which bfloat16 rounds to 3840
        expected={"dense_mac": 3855, "ac_add": 3855, "sop_unit": 3855},
        again=lambda: brute.linear([[1] * 257] * 3, 5, spikes=True).counted(),
    ),
    Case(
        name="N1-bfloat16-row",
        layer=lambda: linear(257, 301).bfloat16(),
        inputs=([[1.0] * 257],),
        dtype=torch.bfloat16,
        # 257 · 301, which bfloat16 rounds to 77,312
        expected={"dense_mac": 77357, "ac_add": 77357, "sop_unit": 77357},
        again=lambda: brute.linear([[1] * 257], 301, spikes=True).counted(),
    ),
    Case(
        name="N1-float16-negative",
        layer=lambda: linear(300, 300).half(),
        inputs=([[-1.0] * 300],),
        dtype=torch.float16,
        # 300 · 300, above the largest float16
        expected={"dense_mac": 90000, "ac_sub": 90000, "sop_unit": 90000},
        again=lambda: brute.linear([[-1] * 300], 300, spikes=True).counted(),
    ),
    Case(
        name="float16-beyond-2-to-24",
        layer=lambda: linear(257, 301).half(),
        inputs=([[1.0] * 257] * 257,),
        dtype=torch.float16,
        # 257 · 257 · 301 = 19,880,749, odd and above 2^24: no float32
        expected=dict.fromkeys(("dense_mac", "ac_add", "sop_unit"), 19_880_749),
        again=beyond_float32,
    ),
    Case(
        name="C15-functional",
        layer=lambda: Call(lambda x: F.linear(x, torch.ones(3, 4))),
        inputs=(BINARY,),
        expected={"dense_mac": 24, "ac_add": 9, "sop_unit": 9},
        again=lambda: brute.linear(BINARY, 3, spikes=True).counted(),
    ),
    Case(
        name="scaled-sum",
        layer=lambda: Call(
            lambda x: torch.addmm(torch.ones(3), x, torch.ones(4, 3), beta=2, alpha=3)
        ),
        inputs=(BINARY,),
        # as C02, and 6 products with alpha and with beta
        expected={
            "dense_mac": 24,
            "ac_add": 9,
            "sop_unit": 9,
            "bias_add": 6,
            "mul": 12,
        },
        again=scaled_sum,
    ),
    Case(
        name="spikes-on-the-right",
        layer=lambda: Call(lambda x: torch.ones(2, 3) @ x),
        inputs=(RIGHT,),
        # [2, 3] @ [3, 4]: three +1 and one -1 reach 2 rows each
        expected={"dense_mac": 24, "ac_add": 6, "ac_sub": 2, "sop_unit": 8},
        # its transpose: 4 rows of 3 features into 2 outputs
        again=lambda: brute.linear(
            [list(column) for column in zip(*RIGHT, strict=True)], 2, spikes=True
        ).counted(),
    ),
    Case(
        name="batched-product",
        layer=lambda: Call(lambda x: torch.bmm(x, torch.ones(2, 2, 5))),
        inputs=(BATCHED,),
        # two +1 and one -1 of 5 outputs; dense 2 · 1 · 2 · 5
        expected={"dense_mac": 20, "ac_add": 10, "ac_sub": 5, "sop_unit": 15},
        again=lambda: brute.linear(
            [BATCHED[0][0], BATCHED[1][0]], 5, spikes=True
        ).counted(),
    ),
    Case(
        name="einsum",
        layer=lambda: Call(lambda x: torch.einsum("bi,oi->bo", x, torch.ones(3, 4))),
        inputs=(TERNARY,),
        expected={"dense_mac": 24, "ac_add": 6, "ac_sub": 6, "sop_unit": 12},
        again=lambda: brute.linear(TERNARY, 3, spikes=True).counted(),
    ),
    Case(
        name="C16-q-k-v",
        layer=lambda: Call(lambda q, k, v: (q @ k.mT) @ v),
        inputs=(Q, K, V),
        spiking=(True, True, True),
        # Q Kᵀ: channel 0 fires twice in q and once in k (2), channel 1 once and once
        # (1), channel 2 never and once: 3; two spikes of V reach 2 rows each: 4.
        # Dense 2 · 2 · 3, twice
        expected={
            "dense_mac": 24,
            "ac_coincidence": 3,
            "ac_add": 4,
            "sop_unit": 7,
        },
        again=three_products,
    ),
    Case(
        name="shared-module",
        layer=Twice,
        inputs=([BINARY[0]] * 2,),
        # 4 spikes of 3 outputs, twice; 2 · 4 · 3 dense, twice; 6 sums
        expected={"dense_mac": 48, "ac_add": 24, "sop_unit": 24, "add": 6},
        again=lambda: twice([BINARY[0]] * 2),
    ),
    Case(
        name="P1-two-rates",
        layer=Pair,
        inputs=(FEW, HALF),
        spiking=(True, True),
        # 10 spikes of 10 outputs, 5 of 1000; dense 100 · 10 + 10 · 1000
        expected={"dense_mac": 11000, "ac_add": 5100, "sop_unit": 5100},
        again=two_layers,
    ),
    Case(
        name="N2-used-by-its-weight",
        layer=Bypass,
        inputs=([[0.5] * 4] * 2,),
        spiking=(False,),
        expected={"dense_mac": 24, "mac": 24},
        again=lambda: brute.linear([[0.5] * 4] * 2, 3, spikes=False).counted(),
    ),
]
