"""Bytes that rules charge: what a call reads and writes once, as its shapes say.

Conventions:

    activation      floating-point inputs and results, each element once a call; what an
                    expanded view repeats is read once; integers and masks are free
    weight_dense    a parameter, or a view of one, every element once a call; of a table
                    the rows that are looked up
    weight_touched  the columns that a spike of any plane and sample reaches; all of
                    them where the input is dense
    spike_bitmap    2 bits for each element and step, a plane rounded up to whole bytes
    neuron_state    a membrane is written after a step and read before the next one
    cache           a scan's state and a convolution's last inputs, read and written at
                    every token; the keys and values that fused attention reads

Moves, casts and views are free, so a concatenation or a copy moves no bytes here. The
dense twin multiplies: its spikes are dense activations and it touches every weight.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mar_snn.energy.rules.registry import OpCall
from mar_snn.energy.spike_trains import SpikeTrain

__all__ = [
    "bitmap_bytes",
    "elementwise_traffic",
    "is_real",
    "projection_traffic",
    "size_in_bytes",
    "spike_bytes",
    "weight_traffic",
]

#: Bytes by field of ByteCounts.
Traffic = Mapping[str, Any]
#: What is multiplied, and the spikes that it carries.
Factor = tuple[Tensor, SpikeTrain | None]


def is_real(value: Any) -> bool:
    """Whether it is a tensor of numbers and not of addresses or of a mask."""
    return isinstance(value, Tensor) and (
        value.is_floating_point() or value.is_complex()
    )


def size_in_bytes(tensor: Tensor) -> int:
    """Its bytes, those that an expanded axis repeats counted once."""
    elements = tensor.numel()
    if elements and 0 in tensor.stride():
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            elements = elements if stride else elements // size
    return elements * tensor.element_size()


def bitmap_bytes(elements: int, steps: int = 1) -> int:
    """2 bits for each element of a plane, rounded up to bytes, for each step."""
    return steps * -(-elements // 4)


def spike_bytes(train: SpikeTrain, tensor: Tensor) -> int:
    """Of all planes behind `tensor`; an integer spike takes a byte."""
    if train.readout == "graded":
        return tensor.numel()
    return bitmap_bytes(tensor.numel(), train.steps)


def weight_traffic(*weights: Tensor | None) -> dict[str, int]:
    """All of these weights, read once."""
    size = sum(size_in_bytes(weight) for weight in weights if weight is not None)
    return {"weight_dense": size, "weight_touched": size}


def elementwise_traffic(call: OpCall, outputs: Iterable[Any] | None = None) -> Traffic:
    """Every floating-point input read once and every result written once."""
    weights = activations = 0
    for value in (*call.args, *call.kwargs.values()):
        if is_real(value):
            if call.is_weight(value):
                weights += size_in_bytes(value)
            else:
                activations += size_in_bytes(value)
    if outputs is None:
        outputs = call.output if isinstance(call.output, tuple) else (call.output,)
    activations += sum(size_in_bytes(out) for out in outputs if is_real(out))
    moved = {"activation": activations}
    if weights:
        moved |= {"weight_dense": weights, "weight_touched": weights}
    return moved


def projection_traffic(
    call: OpCall, x: Tensor, factors: Sequence[Factor], *, bias: Tensor | None = None
) -> tuple[Traffic, Traffic]:
    """(bytes, bytes of the dense twin) of a projection.

    Args:
        call: the call; its first result is the projection's.
        x: its input, whose spikes decide which columns of a weight are read.
        factors: what is multiplied, x among it, each with the spikes that it carries.
        bias: added to the results.
    """
    out = call.output[0] if isinstance(call.output, tuple) else call.output
    written = size_in_bytes(out)
    moved: Counter[str] = Counter(activation=written)
    dense: Counter[str] = Counter(activation=written)
    for tensor, train in factors:
        size = size_in_bytes(tensor)
        if call.is_weight(tensor):
            touched = call.touched(x)
            part: Any = size
            if touched is not None:
                part = touched * (size // max(call.columns(x), 1))
            dense.update(weight_dense=size, weight_touched=size)
            moved.update(weight_dense=size, weight_touched=part)
            continue
        dense["activation"] += size
        if train is None:
            moved["activation"] += size
        else:
            moved["spike_bitmap"] += spike_bytes(train, tensor)
    if bias is not None:
        size = size_in_bytes(bias)
        read = weight_traffic(bias) if call.is_weight(bias) else {"activation": size}
        dense.update(read)
        moved.update(read)
    return moved, dense
