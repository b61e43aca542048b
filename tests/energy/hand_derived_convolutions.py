"""Hand-derived cases: convolutions. See `hand_derived`."""

from functools import partial
from typing import Any

from torch import nn

from mar_snn.llamba.modeling_llamba import CausalConv1d
from tests.energy import brute
from tests.energy.hand_derived import Case

CORNER = [[[[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]]]
FULL = [[[[-1.0] * 3] * 3]]
ANALOGUE = [[[[0.5] * 3] * 3]]
CHANNELS = [[[[0.0]], [[1.0]], [[0.0]], [[0.0]]]]
PATCHES = [[[[0.0] * 4, [0, 0, 1, 0], [0.0] * 4, [0.0] * 4]]]
LINES = [[[1.0, 0, -1, 0, 0, 1, 0]] * 2]
CUBE = [[[[[1.0, 0], [0, -1]], [[0, 0], [0, 0]]]]]
SEQUENCE = [[[0.5, 0.5]] * 4]


def border(bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(1, 2, 3, padding=1, bias=bias)


def again(x: Any, out_channels: int, taps: tuple[int, ...], **how: Any) -> Any:
    """`brute.convolution`, called later."""

    def derive() -> dict[str, int]:
        return brute.convolution(x, out_channels, taps, **how).counted()

    return derive


CONVOLUTIONS = [
    Case(
        name="C09-corner",
        layer=border,
        inputs=(CORNER,),
        # 2 · 2 of the 9 positions see the corner, 2 channels. Dense: the corners see 4
        # inputs, the edges 6, the centre 9: 4 · 4 + 4 · 6 + 9 = 49, 2 channels
        expected={"dense_mac": 98, "ac_add": 8, "sop_unit": 8},
        again=again(CORNER, 2, (3, 3), spikes=True, padding=1),
    ),
    Case(
        name="C10-full-image",
        layer=border,
        inputs=(FULL,),
        # every product of C09's dense layer is there
        expected={"dense_mac": 98, "ac_sub": 98, "sop_unit": 98},
        again=again(FULL, 2, (3, 3), spikes=True, padding=1),
    ),
    Case(
        name="C11-analogue-border",
        layer=border,
        inputs=(ANALOGUE,),
        spiking=(False,),
        # not 9 · 9 · 2 = 162
        expected={"dense_mac": 98, "mac": 98},
        again=again(ANALOGUE, 2, (3, 3), spikes=False, padding=1),
    ),
    Case(
        name="C11-analogue-border-included",
        layer=border,
        inputs=(ANALOGUE,),
        spiking=(False,),
        settings={"padding": "include"},
        # 9 positions · 9 taps · 2 channels
        expected={"dense_mac": 162, "mac": 162},
        again=again(ANALOGUE, 2, (3, 3), spikes=False, padding=1, include_padding=True),
    ),
    Case(
        name="C12-depthwise",
        layer=lambda: nn.Conv2d(4, 4, 1, groups=4, bias=False),
        inputs=(CHANNELS,),
        # a spike stays in its channel
        expected={"dense_mac": 4, "ac_add": 1, "sop_unit": 1},
        again=again(CHANNELS, 4, (1, 1), spikes=True, groups=4),
    ),
    Case(
        name="C13-stride",
        layer=lambda: nn.Conv2d(1, 1, 2, stride=2, bias=False),
        inputs=(PATCHES,),
        # windows do not overlap: one sees the spike; 4 windows of 4
        expected={"dense_mac": 16, "ac_add": 1, "sop_unit": 1},
        again=again(PATCHES, 1, (2, 2), spikes=True, stride=2),
    ),
    Case(
        name="C14-bias",
        layer=partial(border, bias=True),
        inputs=(CORNER,),
        # as C09, and 9 positions · 2 channels
        expected={"dense_mac": 98, "ac_add": 8, "sop_unit": 8, "bias_add": 18},
        again=again(CORNER, 2, (3, 3), spikes=True, padding=1, bias=True),
    ),
    Case(
        name="dilated-groups",
        layer=lambda: nn.Conv1d(2, 4, 3, padding=2, dilation=2, groups=2, bias=False),
        inputs=(LINES,),
        # 7 + 4 - 5 + 1 = 7 positions; taps at n - 2, n, n + 2 exist 5, 7 and 5 times:
        # 17 pairs of 2 channels of 2 outputs. Position 0 is seen by 2 taps, 2 by 3,
        # 5 by 2: +1 twice 2, -1 3; 2 channels · 2 outputs
        expected={"dense_mac": 68, "ac_add": 16, "ac_sub": 12, "sop_unit": 28},
        again=again(LINES, 4, (3,), spikes=True, padding=2, dilation=2, groups=2),
    ),
    Case(
        name="cube",
        layer=lambda: nn.Conv3d(1, 3, 2, padding=1, bias=False),
        inputs=(CUBE,),
        # 3³ positions; every input is seen by all 8 taps: 8 inputs · 8 taps · 3
        expected={"dense_mac": 192, "ac_add": 24, "ac_sub": 24, "sop_unit": 48},
        again=again(CUBE, 3, (2, 2, 2), spikes=True, padding=1),
    ),
    Case(
        name="transposed",
        layer=lambda: nn.ConvTranspose2d(1, 2, 3, stride=2, padding=1, bias=False),
        inputs=(CORNER,),
        # along an axis 3 inputs reach 2 · 2 - 2 + 3 = 5 outputs: 0 reaches 0 and 1 (its
        # first tap is padding), 1 reaches 1, 2, 3 and 2 reaches 3, 4: 7 pairs; the
        # corner reaches 2 · 2 outputs of 2 channels; dense 7 · 7 · 2
        expected={"dense_mac": 98, "ac_add": 8, "sop_unit": 8},
        again=again(
            CORNER, 2, (3, 3), spikes=True, stride=2, padding=1, transposed=True
        ),
    ),
    Case(
        name="transposed-groups-bias",
        layer=lambda: nn.ConvTranspose1d(2, 4, 2, stride=3, groups=2),
        inputs=(LINES,),
        # nothing is cut off: each of 7 inputs reaches 2 taps of 2 outputs, 2 channels;
        # two +1 and one -1 a channel; 6 · 3 + 2 = 20 positions of 4 biases
        expected={
            "dense_mac": 56,
            "ac_add": 16,
            "ac_sub": 8,
            "sop_unit": 24,
            "bias_add": 80,
        },
        again=again(
            LINES, 4, (2,), spikes=True, stride=3, groups=2, bias=True, transposed=True
        ),
    ),
    Case(
        name="causal",
        layer=lambda: CausalConv1d(2, 3, bias=True),
        inputs=(SEQUENCE,),
        spiking=(False,),
        # tokens see 1, 2, 3, 3 inputs of 2 channels, and 4 · 2 biases
        expected={"dense_mac": 18, "mac": 18, "bias_add": 8},
        again=lambda: brute.causal_convolution(4, 2, 3, bias=True).counted(),
    ),
]
