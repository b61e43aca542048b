"""Hand-derived cases: neurons over T steps, norms, scans. See `hand_derived`."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from mar_snn.llamba.scan import LlambaScan
from mar_snn.neurons.coder import ATMNCoder
from tests.energy import brute
from tests.energy.hand_derived import Call, Case


def at_rest(*modules: nn.Module) -> Callable[[], nn.Module]:
    """A chain that starts every call from rest."""

    def build() -> nn.Module:
        net = nn.Sequential(*modules)
        net.register_forward_pre_hook(lambda module, _: functional.reset_net(module))
        return net

    return build


def projected(tally: brute.Tally, spike_seq: Any, outputs: int) -> dict[str, int]:
    """The neurons' own operations and those of a projection of every step."""
    for rows in spike_seq:
        tally.update(brute.linear([rows], outputs, spikes=True))
    return tally.counted()


def coded(
    x: list[float], outputs: int, *, readout: str = "geometric", **how: Any
) -> dict[str, int]:
    tally, spike_seq = brute.code(x, **how)
    tally.update(brute.planes(spike_seq, outputs, geometric=readout == "geometric"))
    return tally.counted()


def counted_levels() -> dict[str, int]:
    tally, rows = brute.ilif([LEVELS], tau=2.0, levels=4)
    tally.update(brute.graded(rows, 3))
    return tally.counted()


class Scan(nn.Module):
    """Llamba's scan with a skip of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scan, self.d = LlambaScan(), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, b: Tensor, c: Tensor, a_log: Tensor) -> Any:
        return self.scan(x, b, c, a_log, self.d)


def one_softmax() -> dict[str, int]:
    tally = brute.Tally()
    brute.softmax(tally, 4)
    return tally.counted()


def one_layer_norm() -> dict[str, int]:
    tally = brute.Tally()
    for index in range(4):
        for note in ("add",) * (index > 0):
            tally.note(note)  # the sum of the mean
            tally.note(note)  # the sum of the squares
        tally.note("add")  # the difference
        tally.note("mul")  # its square
        tally.note("mul")  # its scaling
        tally.note("mul")  # the weight
        tally.note("add")  # the shift
    tally.note("mul", 2)  # 1 / n, twice
    tally.note("add")  # epsilon
    tally.note("special")  # rsqrt
    return tally.counted()


#: T = 4 steps, N = 1 sample, 2 neurons
CONSTANT = [[[2.2, 0.6]]] * 4
STEPS = [[[1.5, -1.5, 0.0]], [[0.0, 0.0, 2.0]]]
LEVELS = [3.0, 0.0, 2.0, 0.0]
CODED = [1.5, -1.25]
ROW = [[0.5, 1.0, 2.0, 0.25]]

NEURONS = [
    Case(
        name="S1-lif-over-time",
        layer=at_rest(
            neuron.LIFNode(tau=2.0, step_mode="m"),
            layer.Linear(2, 3, bias=False, step_mode="m"),
        ),
        inputs=(CONSTANT,),
        spiking=(False,),
        # neuron 0: h = 1.1 fires at every step; neuron 1: 0.3, 0.45, 0.525, 0.5625
        # never does. 8 elements over the steps of 1 mul, 1 add, 1 cmp, and 4 resets;
        # 4 spikes of 3 outputs; the layer runs 4 times: 4 · 2 · 3
        expected={
            "dense_mac": 24,
            "ac_add": 12,
            "sop_unit": 12,
            "mul": 8,
            "add": 12,
            "cmp": 8,
        },
        again=lambda: projected(*brute.lif([x[0] for x in CONSTANT], tau=2.0), 3),
    ),
    Case(
        name="J3-lif-alone",
        layer=at_rest(neuron.LIFNode(tau=2.0, step_mode="m")),
        inputs=(CONSTANT,),
        spiking=(False,),
        expected={"mul": 8, "add": 12, "cmp": 8},
        again=lambda: brute.lif([x[0] for x in CONSTANT], tau=2.0)[0].counted(),
    ),
    Case(
        name="if-soft-reset",
        layer=at_rest(
            neuron.IFNode(v_reset=None, step_mode="m"),
            layer.Linear(3, 2, bias=False, step_mode="m"),
        ),
        inputs=(STEPS,),
        spiking=(False,),
        # fires at 1.5 and at 2.0: 6 charges and 2 resets, 6 comparisons; 2 spikes of 2
        # outputs; 2 · 3 · 2 dense
        expected={
            "dense_mac": 12,
            "ac_add": 4,
            "sop_unit": 4,
            "add": 8,
            "cmp": 6,
        },
        again=lambda: projected(
            *brute.integrate([x[0] for x in STEPS], ternary=False), 2
        ),
    ),
    Case(
        name="ternary-if",
        layer=at_rest(
            neuron.TernaryIFNode(v_reset=None, step_mode="m"),
            layer.Linear(3, 2, bias=False, step_mode="m"),
        ),
        inputs=(STEPS,),
        spiking=(False,),
        # and -1 at -1.5; the rests of 0.5 stay below the threshold
        expected={
            "dense_mac": 12,
            "ac_add": 4,
            "ac_sub": 2,
            "sop_unit": 6,
            "add": 9,
            "cmp": 12,
        },
        again=lambda: projected(
            *brute.integrate([x[0] for x in STEPS], ternary=True), 2
        ),
    ),
    Case(
        name="C05-scaled-and-folded",
        layer=lambda: nn.Sequential(
            ATMNCoder(4, time_steps=1, v_threshold=0.25, fire_ratio=1.0),
            nn.Linear(4, 3, bias=False),
        ),
        inputs=([[0.25, -0.25, 0.0, 0.0]],),
        spiking=(False,),
        # V = 0.25 folds into the weights: two spikes of 3 outputs. The coder: 2
        # comparisons of 4 elements, 2 resets
        expected={
            "dense_mac": 12,
            "ac_add": 3,
            "ac_sub": 3,
            "sop_unit": 6,
            "cmp": 8,
            "add": 2,
        },
        # in units of the threshold
        again=lambda: coded(
            [1.0, -1.0, 0.0, 0.0], 3, time_steps=1, tau=0.5, fire_ratio=1.0
        ),
    ),
    Case(
        name="C06-integer-spikes",
        layer=at_rest(
            neuron.ILIFNode(tau=2.0, step_mode="m"),
            layer.Linear(4, 3, bias=False, step_mode="m"),
        ),
        inputs=([[LEVELS]],),
        spiking=(False,),
        # h = x from rest: 3 and 2 spikes, 5 · 3 accumulations, 2 graded · 3. The
        # neurons: 4 elements of 1 mul, 1 add and 4 levels, and 5 subtractions
        expected={
            "dense_mac": 12,
            "ac_add": 15,
            "sop_unit": 15,
            "sop_graded": 6,
            "mul": 4,
            "add": 9,
            "cmp": 16,
        },
        again=counted_levels,
    ),
    Case(
        name="coder-geometric",
        layer=lambda: nn.Sequential(
            ATMNCoder(2, time_steps=3, tau=0.5, fire_ratio=1.0),
            nn.Linear(2, 5, bias=False),
        ),
        inputs=([CODED],),
        spiking=(False,),
        # 1.5: +, rest 0.5 doubles to 1: +, 0. -1.25: -, -0.5: 0, -1: -. Two and two
        # spikes of 5 outputs, 2 rescalings of 5; the coder: 2 · 3 comparisons of 2
        # elements, 2 · 2 leaks, 4 resets
        expected={
            "dense_mac": 10,
            "ac_add": 10,
            "ac_sub": 10,
            "sop_unit": 20,
            "mul": 14,
            "cmp": 12,
            "add": 4,
        },
        again=lambda: coded(CODED, 5, time_steps=3, tau=0.5, fire_ratio=1.0),
    ),
    Case(
        name="coder-planes-cancel",
        layer=lambda: nn.Sequential(
            ATMNCoder(2, time_steps=2, tau=1.0, readout="sum", fire_ratio=0.5),
            nn.Linear(2, 8, bias=False),
        ),
        inputs=([[0.5, -1.5]],),
        spiking=(False,),
        # fire from ±0.5 on. 0.5: +, rest -0.5: - (their sum is 0, their operations are
        # 2). -1.5: -, -0.5: -. One and three spikes of 8; nothing is rescaled
        expected={
            "dense_mac": 16,
            "ac_add": 8,
            "ac_sub": 24,
            "sop_unit": 32,
            "mul": 2,
            "cmp": 8,
            "add": 4,
        },
        again=lambda: coded(
            [0.5, -1.5], 8, readout="sum", time_steps=2, tau=1.0, fire_ratio=0.5
        ),
    ),
    Case(
        name="scan-recurrent",
        layer=Scan,
        inputs=(
            [[[[0.5, 0.25]]] * 3],
            [[[[0.5] * 4]] * 3],
            [[[[0.5] * 4]] * 3],
            [[[0.5]] * 3],
        ),
        spiking=(False,) * 4,
        # L = 3, H = 1, P = 2, N = 4: a token has 8 decays, 16 + 2 products, 1 sigmoid
        expected={"dense_mac": 54, "mac": 54, "mul": 24, "special": 3},
        again=lambda: brute.recurrence(3, 2, 4).counted(),
    ),
    Case(
        name="softmax",
        layer=lambda: nn.Softmax(-1),
        inputs=(ROW,),
        spiking=(False,),
        # 3 comparisons; 4 differences and 3 sums; 4 exp and 1 division; 4 scalings
        expected={"cmp": 3, "add": 7, "special": 5, "mul": 4},
        again=one_softmax,
    ),
    Case(
        name="layer-norm",
        layer=lambda: nn.LayerNorm(4),
        inputs=(ROW,),
        spiking=(False,),
        # mean 3 add, 1 mul; 4 differences; 4 squares, 3 add, 1 mul; epsilon; rsqrt; 4
        # scalings, 4 weights, 4 shifts
        expected={"add": 15, "mul": 14, "special": 1},
        again=one_layer_norm,
    ),
    Case(
        name="S6-upsampling",
        layer=lambda: Call(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        inputs=([[[[0.5] * 2] * 2]] * 4,),
        spiking=(False,),
        # 4 samples of 16 values between 4 neighbours: 3 interpolations of 1 mul, 2 add
        expected={"mul": 192, "add": 384},
        again=lambda: {"mul": 4 * 16 * 3, "add": 4 * 16 * 3 * 2},
    ),
]
