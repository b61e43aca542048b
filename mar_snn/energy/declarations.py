"""Which tensors carry spikes, and how declarations follow them.

A declaration follows what only moves elements, see `mar_snn.energy.moves`, in place or
not, and is dropped by any arithmetic.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from mar_snn.energy.moves import (
    RESHAPES,
    SHAPES_IN_PLACE,
    STRIDES,
    Move,
    MoveCall,
    look_up,
    pick,
    places,
)
from mar_snn.energy.spike_trains import Moved, SpikeTrain, storage_of

__all__ = ["SpikeTrains"]

_aten = torch.ops.aten

#: What is known of a tensor: its spikes, or that it holds zeros, or zeros and ones.
Known = SpikeTrain | str
_ZEROS, _BITS = "zeros", "zeros and ones"


class SpikeTrains:
    """The tensors that carry spikes at this moment; they are not kept alive by it.

    Zeros may stand between spikes, and zeros and ones may choose among them, so what
    was made of these is known too.
    """

    def __init__(self) -> None:
        self._trains: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        #: tensor -> _ZEROS or _BITS
        self._plain: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def declare(self, tensor: Tensor, known: Known) -> None:
        """From now on `tensor` carries these spikes."""
        self._forget(tensor)
        (self._plain if isinstance(known, str) else self._trains)[tensor] = known

    def _forget(self, tensor: Tensor) -> None:
        self._trains.pop(tensor, None)
        self._plain.pop(tensor, None)

    def of(self, tensor: object) -> SpikeTrain | None:
        """What `tensor` carries, if anything."""
        if not isinstance(tensor, Tensor):
            return None
        return self._trains.get(tensor)

    def _known(self, tensor: Tensor) -> Known | None:
        return self.of(tensor) or self._plain.get(tensor) or _evident(tensor)

    # ---- what only moves elements

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """Carry what is known over `out = func(*args, **kwargs)`."""
        move = Move.of(func)
        if move is None or (move.written and move.packet not in SHAPES_IN_PLACE):
            return  # see before_write
        if not (
            self._trains or self._plain or move.kind == "fill" or any(map(_bits, args))
        ):
            return
        call = MoveCall(move, func, args, kwargs)
        sources = [o.tensor for o in call.operands if o.role == "source"]
        known = _joined(call, map(self._known, sources))
        several = isinstance(out, list | tuple)
        outs = list(out) if several else [out]
        if move.kind == "choice" and move.packet is not _aten.aminmax:
            outs = outs[:1]  # the other says where it was
        if isinstance(known, str):
            for tensor in outs:
                self.declare(tensor, known)
        elif known is not None and (moved := self._moved(call, known, outs[0])):
            for index, tensor in enumerate(outs):
                at = index if several else None
                train = SpikeTrain.moved(known, moved, at, tensor.dim())
                if not _cuts(sources, tensor):
                    same = tensor.shape[-1:] == sources[0].shape[-1:] != ()
                    train.learn_counts(move.packet, known, same=same)
                self.declare(tensor, train)

    def _moved(self, call: MoveCall, known: SpikeTrain, out: Tensor) -> Moved | None:
        """The planes of `out`, put off."""
        tensors = [operand.tensor for operand in call.operands]
        parents = [
            self.of(tensor) or SpikeTrain([tensor], "unit") for tensor in tensors
        ]
        packet, again = call.move.packet, call.on
        if _cuts(tensors, out):
            # the threshold too, so that the result's own values are its spikes
            if known.steps > 1 or out.is_complex():
                return None
            parents = [SpikeTrain([tensor], "unit") for tensor in tensors]
            if known.readout == "unit":
                return Moved(parents, lambda values: again(values).sign())
            return Moved(parents, again)
        if packet in RESHAPES:
            shape = out.shape
            return Moved(parents, lambda planes: planes[0].reshape(shape))
        if packet in STRIDES:
            found = look_up(again([places(tensors[0])]), tensors[0])
            if bool((found < 0).any()):
                return None
            return Moved(parents, lambda planes: pick(planes[0], found, 0))
        return Moved(parents, partial(_on_planes, again, [t.dtype for t in tensors]))

    # ---- what is written to

    def before_write(
        self, written: list[Tensor], call: MoveCall | None = None
    ) -> list[tuple[Tensor, Known]]:
        """Forget what is known of memory that is going to be written to.

        Returns what will be known of it if `call`, which writes, only moves elements.
        """
        if not written:
            return []
        storages = {storage_of(tensor) for tensor in written}
        touched = [
            tensor
            for tensor in (*self._trains, *self._plain)
            if storage_of(tensor) in storages
        ]
        after: list[tuple[Tensor, Known]] = []
        if call is not None and len(written) == 1:
            target = written[0]
            others = [tensor for tensor in touched if tensor is not target]
            for whole in (target, *others):
                known = self._after_write(call, target, whole)
                after += [] if known is None else [(whole, known)]
        for tensor in touched:
            self._forget(tensor)
        for train in list(self._trains.values()):
            train.outlive(storages)
        return after

    def _after_write(self, call: MoveCall, part: Tensor, whole: Tensor) -> Known | None:
        """What will be known of `whole` once `call` has written to `part` of it."""
        before = self._known(whole)
        sources: list[Known | None] = []
        for operand in call.operands:
            if operand.role == "source":
                written = operand.written
                sources.append(before if written else self._known(operand.tensor))
        known = _joined(call, sources)
        same = whole is part or _lie_alike(whole, part)
        if not same:
            known = None if before is None else _alike([before, known])
        if known is None or isinstance(known, str):
            return known
        if whole.dtype != part.dtype or not (same or part.numel()):
            return None
        if _cuts([operand.tensor for operand in call.operands], part):
            return None
        # of each element of one, which element of the other it is
        inner = None if same else look_up(places(part), whole)
        outer = None if same else look_up(places(whole), part)
        dtypes = [operand.tensor.dtype for operand in call.operands]
        planes = []
        for step in range(known.steps):
            old = _plane(before, whole, step)
            given = [
                (old if inner is None else pick(old, inner, 0))
                if operand.written
                else _plane(self._known(operand.tensor), operand.tensor, step)
                for operand in call.operands
            ]
            new = _on_planes(call.on, dtypes, given)
            if not isinstance(new, Tensor):
                return None
            planes.append(new if outer is None else pick(new, outer, old))
        return SpikeTrain(planes, known.readout)


def _bits(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype == torch.bool


def _evident(tensor: Tensor) -> str | None:
    """What a tensor holds by itself: a boolean one, or a number that torch wrapped."""
    if _is_number(tensor) and type(tensor) is Tensor and tensor.device.type == "cpu":
        return _of_number(tensor.item())
    return _BITS if _bits(tensor) else None


def _is_number(tensor: Tensor) -> bool:
    return tensor.dim() == 0 and not _bits(tensor) and not tensor.is_complex()


def _plane(known: Known | None, tensor: Tensor, step: int) -> Tensor:
    if isinstance(known, SpikeTrain):
        return known.planes[step % known.steps]
    # memory that nobody has written to yet holds anything
    return torch.zeros_like(tensor) if known == _ZEROS else tensor


def _on_planes(
    call: Callable[[Iterable[Tensor]], Any],
    dtypes: list[torch.dtype],
    planes: Sequence[Tensor],
) -> Any:
    """A call on planes, which may be of a smaller type than the tensors behind them."""
    if len(planes) == 1:
        return call(planes)
    return call([p.to(dtype) for p, dtype in zip(planes, dtypes, strict=True)])


def _cuts(tensors: list[Tensor], out: Tensor) -> bool:
    """Whether real values become whole numbers."""
    real = any(tensor.is_floating_point() for tensor in tensors)
    return real and not out.is_floating_point()


def _lie_alike(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.stride(), a.storage_offset(), a.dtype) == (
        b.shape,
        b.stride(),
        b.storage_offset(),
        b.dtype,
    )


def _joined(call: MoveCall, sources: Iterable[Known | None]) -> Known | None:
    """What the result of a call holds, given what its sources hold."""
    kind = call.move.kind
    if kind == "fill":
        number = (call.numbers or [call.move.fills_with])[0]
        # NaN in existing memory marks that nobody has written to it yet
        marks = number != number and any(o.written for o in call.operands)
        return _ZEROS if marks else _of_number(number)
    known = [*sources, *map(_of_number, call.numbers)]
    trains = [k for k in known if isinstance(k, SpikeTrain)]
    if call.accumulates or None in known or not known:
        return None
    if kind == "flip" and not trains:
        return _ZEROS if set(known) == {_ZEROS} else None
    if kind == "choice" and trains and trains[0].readout not in ("unit", "graded"):
        return None
    if kind != "gate":
        return _alike(known)
    if call.numbers or any(_is_number(operand.tensor) for operand in call.operands):
        return None  # a scale, even where it is 1
    if not trains:
        return _ZEROS if _ZEROS in known else _BITS
    several = [train for train in trains if train.readout != "unit"]
    if len(several) > 1:
        return None
    return several[0] if several else trains[0]


def _alike(known: Sequence[Known | None]) -> Known | None:
    """What a tensor holds whose elements are from tensors that hold these."""
    trains = [k for k in known if isinstance(k, SpikeTrain)]
    if None in known:
        return None
    if not trains:
        return _ZEROS if set(known) == {_ZEROS} else _BITS
    kinds = {(train.readout, train.steps) for train in trains}
    return None if len(kinds) > 1 or _BITS in known else trains[0]


def _of_number(number: int | float) -> str | None:
    if number == 0:
        return _ZEROS
    return _BITS if number == 1 else None
