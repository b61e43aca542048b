"""Which tensors carry spikes: declarations, and how they follow views.

A tensor is known to carry spikes because a neuron declared it, never because of its
values. The declaration follows operations that only move elements and is dropped by any
arithmetic.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["MOVES", "Events", "SpikeTrain", "SpikeTrains", "packets"]

_aten = torch.ops.aten


def packets(names: str) -> frozenset[Any]:
    """The aten operations of these names, all their overloads included."""
    return frozenset(getattr(_aten, name) for name in names.split())


#: Moves of elements under which every spike is there once, as before.
_REARRANGES = packets(
    "_reshape_alias _unsafe_view flip permute roll squeeze t transpose unsqueeze view"
)
#: Moves that repeat, drop or join elements. Both: the same operation on each spike
#: plane gives the spike planes of the result.
_SELECTS = packets(
    "cat constant_pad_nd expand index_select repeat select slice split "
    "split_with_sizes stack unbind unfold unsafe_split unsafe_split_with_sizes"
)
#: Copies and casts.
_COPIES = packets("_to_copy alias clone detach lift_fresh")
#: Choices among elements by size: unit spikes remain unit spikes.
_CHOOSES = packets("max_pool2d_with_indices max_pool3d_with_indices")

#: Operations that leave every value as it is.
MOVES = _REARRANGES | _SELECTS | _COPIES
_FOLLOWED = MOVES | _CHOOSES


class Events(NamedTuple):
    """Numbers of +1 and of -1 spikes, int64 without dimensions."""

    pos: Tensor
    neg: Tensor


class SpikeTrain:
    """The spikes behind one tensor.

    Args:
        planes: unit spikes, each plane of the tensor's shape.
        readout: "unit" where the tensor is the one plane itself, else how the planes
            make up its value: "sum", or "geometric" (rescaled between the planes).
        events: the spikes of all planes where they are counted already.
    """

    __slots__ = ("_events", "planes", "readout")

    def __init__(
        self, planes: Sequence[Tensor], readout: str, events: Events | None = None
    ) -> None:
        self.planes = tuple(planes)
        self.readout = readout
        self._events = events

    @property
    def rescalings(self) -> int:
        """Multiplications that each output of a projection needs between the planes."""
        return len(self.planes) - 1 if self.readout == "geometric" else 0

    @property
    def events(self) -> Events:
        """All spikes of all planes by sign, counted once."""
        if self._events is None:
            self._events = Events(
                torch.stack([(plane > 0).sum() for plane in self.planes]).sum(),
                torch.stack([(plane < 0).sum() for plane in self.planes]).sum(),
            )
        return self._events


class SpikeTrains:
    """The tensors that carry spikes at this moment; they are not kept alive by it."""

    def __init__(self) -> None:
        self._trains: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def declare(self, tensor: Tensor, train: SpikeTrain) -> None:
        """From now on `tensor` carries `train`."""
        self._trains[tensor] = train

    def of(self, tensor: object) -> SpikeTrain | None:
        """What `tensor` carries, if anything."""
        if not isinstance(tensor, Tensor):
            return None
        return self._trains.get(tensor)

    def drop_written(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> None:
        """Drop every declaration about memory that `func` writes to."""
        if not func._schema.is_mutable or not self._trains:
            return
        for written in _written(func, args, kwargs):
            storage = written.untyped_storage()._cdata
            for tensor in list(self._trains):
                if tensor.untyped_storage()._cdata == storage:
                    del self._trains[tensor]

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Carry the declarations over `out = func(*args, **kwargs)`."""
        packet = func.overloadpacket
        if packet not in _FOLLOWED or not self._trains:
            return
        sources = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        trains = [self.of(source) for source in sources]
        if not trains or any(train is None for train in trains):
            return
        if packet is _aten.constant_pad_nd and any((*args[2:], *kwargs.values())):
            return
        self._carry(func, args, kwargs, out, [t for t in trains if t is not None])

    def _carry(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Any,
        out: Any,
        trains: list[SpikeTrain],
    ) -> None:
        first, packet = trains[0], func.overloadpacket
        if len({(train.readout, len(train.planes)) for train in trains}) > 1:
            return
        if packet in _CHOOSES:
            if first.readout == "unit":
                self.declare(out[0], SpikeTrain([out[0].detach()], "unit"))
            return
        if packet in _COPIES:
            self.declare(out, SpikeTrain(first.planes, first.readout, first.events))
            return
        many = isinstance(out, list | tuple)
        moved: list[Any] = []
        for planes in zip(*(train.planes for train in trains), strict=True):
            source = list(planes) if isinstance(args[0], list | tuple) else planes[0]
            result = func(source, *args[1:], **kwargs)
            moved.append(result if many else [result])
        events = first.events if packet in _REARRANGES else None
        for tensor, *moved_planes in zip(out if many else [out], *moved, strict=True):
            self.declare(tensor, SpikeTrain(moved_planes, first.readout, events))


def _written(func: Any, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
    """The tensors that `func` writes to."""
    written = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written += list(value) if isinstance(value, list | tuple) else [value]
    return [value for value in written if isinstance(value, Tensor)]
