"""The numbers of operations by doing them one by one: plain Python, without torch.

Every function walks over the products and sums that a layer consists of and notes each
in a Tally. Nested lists are tensors, innermost last. Nothing here is clever, so that it
can be checked by reading.
"""

import math
from collections import Counter
from itertools import product
from typing import Any

Values = Any


class Tally(Counter):
    """How often each operation was noted, by field of OpCounts."""

    def note(self, field: str, times: int = 1) -> None:
        self[field] += times

    def spike(self, value: float) -> None:
        """A synapse of the dense layer, at which a spike arrives or not."""
        self.note("dense_mac")
        if value:
            self.note("ac_add" if value > 0 else "ac_sub", int(abs(value)))
            self.note("sop_unit", int(abs(value)))

    def multiply(self) -> None:
        """A product of the dense layer that is left."""
        self.note("dense_mac")
        self.note("mac")

    def meet(self, a: float, b: float) -> None:
        """A product of two things that may spike."""
        self.note("dense_mac")
        if a and b:
            self.note("ac_coincidence")
            self.note("sop_unit")

    def counted(self) -> dict[str, int]:
        return {field: count for field, count in self.items() if count}


def linear(rows: Values, outputs: int, *, spikes: bool, bias: bool = False) -> Tally:
    """Rows of features times a dense matrix."""
    tally = Tally()
    for row in rows:
        for _ in range(outputs):
            for value in row:
                tally.spike(value) if spikes else tally.multiply()
            tally.note("bias_add", bias)
    return tally


def graded(rows: Values, outputs: int) -> Tally:
    """Integer spikes: k accumulations each, and one graded operation."""
    tally = linear(rows, outputs, spikes=True)
    for row in rows:
        for value in row:
            tally.note("sop_graded", outputs * (value != 0))
    return tally


def planes(spike_seq: Values, outputs: int, *, geometric: bool) -> Tally:
    """T planes of rows into one projection, rescaled between the planes."""
    tally = Tally()
    for step, rows in enumerate(spike_seq):
        of_step = linear(rows, outputs, spikes=True)
        if step:  # the dense layer runs once
            del of_step["dense_mac"]
            if geometric:
                tally.note("mul", len(rows) * outputs)
        tally.update(of_step)
    return tally


def both_spike(a: Values, b: Values) -> Tally:
    """A @ B with spikes in both: rows of a against columns of b."""
    tally = Tally()
    for row in a:
        for column in range(len(b[0])):
            for k, value in enumerate(row):
                tally.meet(value, b[k][column])
    return tally


def convolution(
    x: Values,
    out_channels: int,
    taps: tuple[int, ...],
    *,
    spikes: bool,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    transposed: bool = False,
    include_padding: bool = False,
) -> Tally:
    """[N, C, *space] with the same stride, padding and dilation on every axis."""
    tally = Tally()
    channels, space = len(x[0]), shape_of(x[0][0])
    reach = [dilation * (k - 1) + 1 for k in taps]
    if transposed:
        narrow = space
        wide = tuple(
            (n - 1) * stride - 2 * padding + r
            for n, r in zip(space, reach, strict=True)
        )
    else:
        wide = space
        narrow = tuple(
            (w + 2 * padding - r) // stride + 1
            for w, r in zip(space, reach, strict=True)
        )
    for image in x:
        for position in product(*map(range, narrow)):
            for tap in product(*map(range, taps)):
                other = tuple(
                    n * stride - padding + k * dilation
                    for n, k in zip(position, tap, strict=True)
                )
                inside = all(0 <= w < n for w, n in zip(other, wide, strict=True))
                for channel in range(channels):
                    for _ in range(out_channels // groups):
                        if not inside:
                            if include_padding:
                                tally.multiply()
                            continue
                        at = position if transposed else other
                        value = element(image[channel], at)
                        tally.spike(value) if spikes else tally.multiply()
        outputs = math.prod(wide if transposed else narrow) * out_channels
        tally.note("bias_add", outputs * bias)
    return tally


def causal_convolution(
    tokens: int, channels: int, taps: int, *, before: int = 0, bias: bool = False
) -> Tally:
    """Depthwise over tokens; `before` inputs are known from earlier calls."""
    tally = Tally()
    for token in range(tokens):
        for _ in range(channels):
            for back in range(taps):
                if token - back + before >= 0:
                    tally.multiply()
            tally.note("bias_add", bias)
    return tally


def softmax(tally: Tally, size: int) -> None:
    """Largest value, differences, exp, sum, one division, scalings."""
    for index in range(size):
        if index:
            tally.note("cmp")
            tally.note("add")  # the sum
        tally.note("add")  # the difference
        tally.note("special")
        tally.note("mul")
    tally.note("special")


def attention(
    q: Values,
    k: Values,
    v: Values,
    *,
    spiking: str = "",
    causal: bool = False,
    mask: Values = None,
) -> Tally:
    """One head, [L, E] each; `spiking` names those of q, k and v that are spikes."""
    tally = Tally()
    for i, query in enumerate(q):
        seen = [
            j
            for j in range(len(k))
            if (not causal or j <= i) and (mask is None or mask[i][j] > -math.inf)
        ]
        for j in seen:
            for a, b in zip(query, k[j], strict=True):
                if "q" in spiking and "k" in spiking:
                    tally.meet(a, b)
                elif "q" in spiking:
                    tally.spike(a)
                elif "k" in spiking:
                    tally.spike(b)
                else:
                    tally.multiply()
            tally.note("mul")  # the scale
            if mask is not None and mask[i][j]:
                tally.note("add")
        if seen:
            softmax(tally, len(seen))
        for j in seen:
            for value in v[j]:
                tally.spike(value) if "v" in spiking else tally.multiply()
    return tally


def lif(x_seq: Values, *, tau: float, v_threshold: float = 1.0) -> tuple[Tally, Values]:
    """SpikingJelly's LIF with a hard reset to 0: v + (x - v) / tau; and its spikes."""
    tally = Tally()
    v = [0.0] * len(x_seq[0])
    spike_seq = []
    for x in x_seq:
        spikes = []
        for index, current in enumerate(x):
            h = v[index] + (current - v[index]) / tau
            tally.note("mul")
            tally.note("add")
            fires = h >= v_threshold
            tally.note("cmp")
            if fires:
                tally.note("add")  # the reset
            v[index] = 0.0 if fires else h
            spikes.append(float(fires))
        spike_seq.append(spikes)
    return tally, spike_seq


def integrate(x_seq: Values, *, ternary: bool) -> tuple[Tally, Values]:
    """An IF neuron of threshold 1 with a soft reset, and its spikes."""
    tally = Tally()
    v = [0.0] * len(x_seq[0])
    spike_seq = []
    for x in x_seq:
        spikes = []
        for index, current in enumerate(x):
            h = v[index] + current
            tally.note("add")
            spike = float(h >= 1)
            tally.note("cmp")
            if ternary:
                spike -= float(h <= -1)
                tally.note("cmp")
            tally.note("add", int(abs(spike)))
            v[index] = h - spike
            spikes.append(spike)
        spike_seq.append(spikes)
    return tally, spike_seq


def code(
    x: Values, *, time_steps: int, tau: float, fire_ratio: float
) -> tuple[Tally, Values]:
    """The ATMN coder of threshold 1 on one row, and its spikes [T][1][C]."""
    tally = Tally()
    h = list(x)
    spike_seq = []
    for step in range(time_steps):
        spikes = []
        for index in range(len(x)):
            if step:
                h[index] /= tau
                tally.note("mul")
            spike = float(h[index] >= fire_ratio) - float(h[index] <= -fire_ratio)
            tally.note("cmp", 2)
            tally.note("add", int(abs(spike)))
            h[index] -= spike
            spikes.append(spike)
        spike_seq.append([spikes])
    return tally, spike_seq


def ilif(x_seq: Values, *, tau: float, levels: int) -> tuple[Tally, Values]:
    """SpikingJelly's ILIF of threshold 1: round and clamp v - v / tau + x."""
    tally = Tally()
    v = [0.0] * len(x_seq[0])
    counts = []
    for x in x_seq:
        row = []
        for index, current in enumerate(x):
            h = v[index] - v[index] / tau + current
            tally.note("mul")
            tally.note("add")
            k = round(min(max(h, 0.0), levels))
            tally.note("cmp", levels)
            tally.note("add", k)
            v[index] = h - k
            row.append(float(k))
        counts.append(row)
    return tally, counts


def recurrence(tokens: int, head_size: int, state_size: int) -> Tally:
    """One head of a scan: decay, decay · S + x ⊗ B, S C, D x."""
    tally = Tally()
    for _ in range(tokens):
        tally.note("special")
        for _ in range(head_size):
            for _ in range(state_size):
                tally.note("mul")  # decay · S
                tally.multiply()  # x ⊗ B
                tally.multiply()  # S C
            tally.multiply()  # D x
    return tally


def chunks(tokens: int, head_size: int, state_size: int, chunk_size: int) -> Tally:
    """The same scan from rest by products inside chunks, as scan_rules describes."""
    tally = Tally()
    for start in range(0, tokens, chunk_size):
        members = range(start, min(start + chunk_size, tokens))
        for t in members:
            tally.note("special")  # the decay
            tally.note("add", t > start)  # its running sum
            for s in members:
                if s > t:
                    continue
                for _ in range(state_size):
                    tally.multiply()  # C B
                for field in ("add", "special", "mul"):  # the decay from s to t
                    tally.note(field)
                for _ in range(head_size):
                    tally.multiply()  # times x
            for field in ("add", "special"):  # the decay from t to the end
                tally.note(field)
            for _ in range(head_size):
                tally.note("mul")
                for _ in range(state_size):
                    tally.multiply()  # into the state
            if start:
                tally.note("special")  # the decay from the chunk's start
                for _ in range(head_size):
                    tally.note("mul")
                    tally.note("add")
                    for _ in range(state_size):
                        tally.multiply()  # out of the state
            for _ in range(head_size):
                tally.multiply()  # D x
        if start:
            tally.note("special")
            for _ in range(head_size * state_size):
                tally.note("mul")
                tally.note("add")
    return tally


def shape_of(values: Values) -> tuple[int, ...]:
    shape = []
    while isinstance(values, list):
        shape.append(len(values))
        values = values[0]
    return tuple(shape)


def element(values: Values, position: tuple[int, ...]) -> float:
    for index in position:
        values = values[index]
    return values
