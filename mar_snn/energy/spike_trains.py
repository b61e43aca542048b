"""Which tensors carry spikes, how declarations follow views, how spikes are counted.

A tensor is known to carry spikes because a neuron declared it. The declaration follows
operations that only move elements and is dropped by any arithmetic. Nothing is moved
and nothing counted before a rule asks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "MOVES",
    "Counts",
    "Events",
    "SpikeTrain",
    "SpikeTrains",
    "Writes",
    "count_by_sign",
    "is_followed",
    "packets",
    "storage_of",
]

_aten = torch.ops.aten


def packets(names: str) -> frozenset[Any]:
    """The aten operations of these names, all their overloads included."""
    return frozenset(getattr(_aten, name) for name in names.split())


#: Moves under which the last axis stays what it is, if its length does.
_RESHAPES = packets("_reshape_alias _unsafe_view view")
#: Moves of elements under which every spike is there once, as before.
_REARRANGES = _RESHAPES | packets("flip permute roll squeeze t transpose unsqueeze")
#: Moves that repeat, drop or join elements. Both: the same operation on each spike
#: plane gives the spike planes of the result.
_SELECTS = packets(
    "cat constant_pad_nd expand index_select repeat select slice split "
    "split_with_sizes stack unbind unfold unsafe_split unsafe_split_with_sizes"
)
#: Copies and casts.
_COPIES = packets("_to_copy alias clone detach lift_fresh")
#: Choices among elements by size: spikes of one plane remain spikes.
_CHOOSES = packets("max_pool2d_with_indices max_pool3d_with_indices")

#: Operations that leave every value as it is.
MOVES = _REARRANGES | _SELECTS | _COPIES
_FOLLOWED = MOVES | _CHOOSES

#: float32 adds up integers exactly below this.
_EXACT = 2**24


class Events(NamedTuple):
    """Numbers of +1 and of -1 spikes, int64 of one shape, mostly without dimensions."""

    pos: Tensor
    neg: Tensor


#: Kept axes of a plane -> spikes by position along them, summed over everything else.
Counts = dict[tuple[int, ...], Events]


def count_by_sign(spikes: Tensor, dims: list[int], *, graded: bool = False) -> Tensor:
    """Unit spikes [2, ...], +1 and -1, summed over the axes `dims`; int64.

    Exact in any dtype and number, for values -1, 0, 1 or, where `graded`, integers:

        pos = (Σ |s| + Σ s) / 2        neg = (Σ |s| - Σ s) / 2
    """
    if spikes.dtype == torch.bool:
        spikes = spikes.byte()
    if not dims:
        return torch.stack((spikes.clamp(min=0), spikes.clamp(max=0).abs())).long()
    few = math.prod(spikes.shape[dim] for dim in dims) < _EXACT
    if few and not graded and spikes.is_floating_point():
        dtype = torch.float64 if spikes.dtype == torch.float64 else torch.float32
        # for a sum of magnitudes without a tensor of magnitudes
        magnitude = torch.linalg.vector_norm(spikes, 1, dims, dtype=dtype)
        signed = spikes.sum(dims, dtype=dtype)
    else:
        magnitude = spikes.abs().sum(dims, dtype=torch.int64)
        signed = spikes.sum(dims, dtype=torch.int64)
    return torch.stack((magnitude + signed, magnitude - signed)).long() // 2


class _Move:
    """A call that moves spikes, put off until somebody wants the moved planes."""

    def __init__(
        self, func: Any, parents: list["SpikeTrain"], args: tuple[Any, ...], kwargs: Any
    ) -> None:
        self.parents = parents
        self._func, self._kwargs = func, kwargs
        self._joins = isinstance(args[0], list | tuple)
        self._rest = args[1:]
        self._moved: list[Any] | None = None

    def planes(self, index: int | None) -> tuple[Tensor, ...]:
        """The planes of the result, or of the result at `index` of several."""
        if self._moved is None:
            self._moved = [
                self._func(
                    list(planes) if self._joins else planes[0],
                    *self._rest,
                    **self._kwargs,
                )
                for planes in zip(*(p.planes for p in self.parents), strict=True)
            ]
        return tuple(plane if index is None else plane[index] for plane in self._moved)


class SpikeTrain:
    """The spikes behind one tensor: what a rule is given.

    `readout` says what the tensor is made of:

        "unit"        one plane of spikes -1, 0, +1; the tensor is the plane, or the
                      plane times a threshold that folds into the next weights
        "graded"      one plane of integers; an element k stands for |k| unit spikes
        "sum"         T planes of unit spikes, added up
        "geometric"   T planes of unit spikes, rescaled from plane to plane

    Args:
        planes: the planes, each of the tensor's shape.
        readout: one of the above.
        counts: what `counts` would return, by axes that are kept, where it is known.
    """

    __slots__ = (
        "_counts",
        "_index",
        "_move",
        "_planes",
        "_touched",
        "ndim",
        "readout",
        "steps",
    )

    def __init__(
        self,
        planes: Sequence[Tensor],
        readout: str,
        counts: Counts | None = None,
    ) -> None:
        self._planes: tuple[Tensor, ...] | None = tuple(planes)
        self._move: _Move | None = None
        self._index: int | None = None
        self.readout = readout
        #: T, the number of planes, and how many axes each has
        self.steps, self.ndim = len(planes), planes[0].dim()
        self._counts = {} if counts is None else counts
        self._touched: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def moved(
        cls,
        move: _Move,
        index: int | None,
        ndim: int,
        counts: Counts,
    ) -> "SpikeTrain":
        """The spikes of the result of a move, or of result `index` of several."""
        train = cls.__new__(cls)
        first = move.parents[0]
        train._planes, train._move, train._index = None, move, index
        train.readout, train.steps, train.ndim = first.readout, first.steps, ndim
        train._counts, train._touched = counts, {}
        return train

    @property
    def planes(self) -> tuple[Tensor, ...]:
        """The spikes, one plane of the tensor's shape for each step."""
        if self._planes is None:
            self._planes = self._move.planes(self._index) if self._move else ()
            self._move = None
        return self._planes

    @property
    def rescalings(self) -> int:
        """Multiplications that each output of a projection needs between the planes."""
        return self.steps - 1 if self.readout == "geometric" else 0

    @property
    def events(self) -> Events:
        """All unit spikes of all planes by sign, without dimensions."""
        return self.counts()

    def counts(self, *axes: int) -> Events:
        """Unit spikes of all planes by sign and by position along `axes`.

        The sum runs over the planes and over all other axes of a plane. A graded
        element k counts |k| times.
        """
        kept = self._kept(axes)
        if kept not in self._counts:
            self._counts[kept] = self._count(kept)
        return self._counts[kept]

    def touched(self, *axes: int) -> Tensor:
        """How many positions along `axes` hold a spike, in whichever plane."""
        kept = self._kept(axes)
        if kept not in self._touched:
            pos, neg = self.counts(*kept)
            self._touched[kept] = (pos + neg > 0).sum()
        return self._touched[kept]

    def fired(self, *axes: int) -> Tensor:
        """Elements of all planes that are not zero, by position along `axes`."""
        if self.readout != "graded":
            pos, neg = self.counts(*axes)
            return pos + neg
        kept = self._kept(axes)
        others = [axis for axis in range(self.ndim) if axis not in kept]
        return count_by_sign(self.planes[0].sign(), others).sum(0)

    def _kept(self, axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(axis % self.ndim for axis in axes))

    def _count(self, kept: tuple[int, ...]) -> Events:
        for known, (pos, neg) in self._counts.items():
            if set(kept) < set(known):
                rest = [i for i, axis in enumerate(known) if axis not in kept]
                return Events(pos.sum(rest), neg.sum(rest))
        others = [axis for axis in range(self.ndim) if axis not in kept]
        graded = self.readout == "graded"
        by_plane = [count_by_sign(p, others, graded=graded) for p in self.planes]
        return Events(
            *(by_plane[0] if len(by_plane) == 1 else torch.stack(by_plane).sum(0))
        )

    def known_after(self, packet: Any, before: Tensor, after: Tensor) -> "Counts":
        """Those counts that hold for the result of a move too."""
        if packet in _COPIES:
            return self._counts
        if packet not in _REARRANGES:
            return {}
        kept: Counts = {(): self._counts[()]} if () in self._counts else {}
        last = (self.ndim - 1,)
        same = before.shape[-1:] == after.shape[-1:] != ()
        if packet in _RESHAPES and same and last in self._counts:
            kept[(after.dim() - 1,)] = self._counts[last]
        return kept

    def outlive(self, storages: set[int]) -> None:
        """Keep the spikes although memory that they may lie in is about to change."""
        if any(storage_of(source) in storages for source in self._sources()):
            self._planes = tuple(plane.clone() for plane in self.planes)

    def _sources(self) -> Iterator[Tensor]:
        if self._planes is not None:
            yield from self._planes
        elif self._move is not None:
            for parent in self._move.parents:
                yield from parent._sources()


def storage_of(tensor: Tensor) -> int:
    """The address of the memory that a tensor and its views share."""
    return tensor.untyped_storage()._cdata


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

    def before_write(self, written: list[Tensor]) -> None:
        """Drop every declaration about memory that is going to be written to."""
        if not written or not self._trains:
            return
        storages = {storage_of(tensor) for tensor in written}
        for tensor, train in list(self._trains.items()):
            if storage_of(tensor) in storages:
                del self._trains[tensor]
            else:
                train.outlive(storages)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Carry the declarations over `out = func(*args, **kwargs)`."""
        if not self._trains:
            return
        sources = args[0] if isinstance(args[0], list | tuple) else [args[0]]
        trains = [train for source in sources if (train := self.of(source))]
        if not trains or len(trains) < len(sources):
            return
        first, packet = trains[0], func.overloadpacket
        if len({(train.readout, train.steps) for train in trains}) > 1:
            return
        if packet is _aten.constant_pad_nd and any((*args[2:], *kwargs.values())):
            return
        if packet in _CHOOSES and first.readout not in ("unit", "graded"):
            return
        move = _Move(func, trains, args, kwargs)
        if packet in _CHOOSES:
            out = out[:1]
        outs = list(enumerate(out)) if isinstance(out, list | tuple) else [(None, out)]
        for index, tensor in outs:
            known = first.known_after(packet, sources[0], tensor)
            self.declare(tensor, SpikeTrain.moved(move, index, tensor.dim(), known))
        if any(isinstance(value, Tensor) for value in (*args[1:], *kwargs.values())):
            move.planes(None)  # an index may be written to


def is_followed(func: Any) -> bool:
    """Whether declarations follow this operation."""
    return func.overloadpacket in _FOLLOWED


class Writes:
    """Which arguments of an operation it writes to, looked up once."""

    def __init__(self, func: Any) -> None:
        self._places = [
            (index, argument.name)
            for index, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]

    def of(self, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
        """The tensors that a call writes to."""
        written: list[Any] = []
        for index, name in self._places:
            value = args[index] if index < len(args) else kwargs.get(name)
            written += list(value) if isinstance(value, list | tuple) else [value]
        return [value for value in written if isinstance(value, Tensor)]
