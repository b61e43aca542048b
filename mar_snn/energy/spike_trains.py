"""The spikes behind a tensor, and how they are counted.

A tensor is known to carry spikes because a neuron declared it, see
`mar_snn.energy.declarations`. Nothing is moved and nothing counted before a rule asks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mar_snn.energy.moves import COPIES, RESHAPES, TURNS

__all__ = [
    "Counts",
    "Events",
    "Moved",
    "SpikeTrain",
    "count_by_sign",
    "storage_of",
]

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


class Moved:
    """Spikes that were moved; put off until somebody wants the moved planes.

    Args:
        parents: what is moved, by operand; a single plane serves at every step.
        move: one plane of each parent -> their result, or several.
    """

    def __init__(
        self, parents: list["SpikeTrain"], move: Callable[[list[Tensor]], Any]
    ) -> None:
        self.parents = parents
        self._move = move
        self._results: list[Any] | None = None

    def planes(self, index: int | None) -> tuple[Tensor, ...]:
        """The planes of the result, or of the result at `index` of several."""
        if self._results is None:
            self._results = [
                self._move([p.planes[step % p.steps] for p in self.parents])
                for step in range(max(p.steps for p in self.parents))
            ]
        return tuple(r if index is None else r[index] for r in self._results)


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
        "_moved",
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
        self._moved: Moved | None = None
        self._index: int | None = None
        self.readout = readout
        #: T, the number of planes, and how many axes each has
        self.steps, self.ndim = len(planes), planes[0].dim()
        self._counts = {} if counts is None else counts
        self._touched: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def moved(
        cls, like: "SpikeTrain", moved: Moved, index: int | None, ndim: int
    ) -> "SpikeTrain":
        """The spikes of a moved result, or of result `index` of several."""
        train = cls.__new__(cls)
        train._planes, train._moved, train._index = None, moved, index
        train.readout, train.steps, train.ndim = like.readout, like.steps, ndim
        train._counts, train._touched = {}, {}
        return train

    @property
    def planes(self) -> tuple[Tensor, ...]:
        """The spikes, one plane of the tensor's shape for each step."""
        if self._planes is None:
            self._planes = self._moved.planes(self._index) if self._moved else ()
            self._moved = None
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

    def learn_counts(self, packet: Any, before: "SpikeTrain", *, same: bool) -> None:
        """Take over those counts of what was moved by `packet` that hold now too.

        `same` says whether the last axis has the length that it had.
        """
        if packet in COPIES:
            self._counts = before._counts
        elif packet in TURNS:
            last = (before.ndim - 1,)
            if () in before._counts:
                self._counts[()] = before._counts[()]
            if packet in RESHAPES and same and last in before._counts:
                self._counts[(self.ndim - 1,)] = before._counts[last]

    def outlive(self, storages: set[int]) -> None:
        """Keep the spikes although memory that they may lie in is about to change."""
        if any(storage_of(source) in storages for source in self._sources()):
            self._planes = tuple(plane.clone() for plane in self.planes)

    def _sources(self) -> Iterator[Tensor]:
        if self._planes is not None:
            yield from self._planes
        elif self._moved is not None:
            for parent in self._moved.parents:
                yield from parent._sources()


def storage_of(tensor: Tensor) -> int:
    """The address of the memory that a tensor and its views share."""
    return tensor.untyped_storage()._cdata
