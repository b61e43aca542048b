"""How neurons declare what they fired, to counters and plots that listen.

A value set cannot prove that a tensor holds spikes, so the neuron that makes them says
so. Nothing is built or stored while nobody listens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Num
from torch import Tensor, nn

__all__ = [
    "SpikeEvent",
    "declare_spikes",
    "is_listening",
    "listen_to_spikes",
    "record_spikes",
]


class SpikeEvent(NamedTuple):
    """What one call of one neuron fired."""

    #: the node or coder that fired
    neuron: nn.Module
    #: unit spikes -1, 0, +1, [T, ...]
    spike_seq: Num[Tensor, " T *neurons"]
    #: what the next layer gets: the spikes themselves, or their decoded value
    output: Tensor


_listeners: list[Callable[[SpikeEvent], None]] = []


def is_listening() -> bool:
    """Whether anybody would hear a declaration; False while a graph is compiled."""
    return bool(_listeners) and not torch.compiler.is_compiling()


def declare_spikes(
    neuron: nn.Module, spike_seq: Num[Tensor, " T *neurons"], output: Tensor
) -> None:
    """Tell every listener that `neuron` fired `spike_seq` and handed on `output`."""
    event = SpikeEvent(neuron, spike_seq, output)
    for listener in tuple(_listeners):
        listener(event)


@contextmanager
def listen_to_spikes(listener: Callable[[SpikeEvent], None]) -> Iterator[None]:
    """Call `listener` with every SpikeEvent declared inside the block.

    Under gradient checkpointing a block runs twice, so its neurons declare twice:
    listen to forward passes without gradients.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@torch.no_grad()
def record_spikes(
    model: nn.Module, *args: Any, **kwargs: Any
) -> dict[nn.Module, Tensor]:
    """The spikes [T, ...] of every neuron that fires in `model(*args, **kwargs)`.

    In the order of firing; of a neuron that is called several times, the last.
    """
    spikes: dict[nn.Module, Tensor] = {}
    with listen_to_spikes(lambda event: spikes.update([event[:2]])):
        model(*args, **kwargs)
    return spikes
