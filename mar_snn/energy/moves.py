"""Which operations move elements, and which of their arguments these come from.

A *move* fills its result with elements of its inputs and with zeros, each as it was, so
the same operation on every spike plane gives the spike planes of the result. Where the
elements come from stands in the operation's schema: tensors called index, indices, mask
or condition say where; every other tensor is a source, and so is every number, which
then has to be 0.

Beside the moves stand three kinds that leave spikes spikes under a condition:

    flips       of the sign
    choices     by size or sign, where a single plane holds the value: the largest of
                spikes is a spike
    gates       products with zeros and ones, or of spikes with spikes
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "COPIES",
    "FILLS",
    "MOVES",
    "RESHAPES",
    "SHAPES_IN_PLACE",
    "STRIDES",
    "TURNS",
    "Move",
    "MoveCall",
    "look_up",
    "packets",
    "pick",
    "places",
]

_aten = torch.ops.aten


def packets(names: str) -> frozenset[Any]:
    """The aten operations of these names, all their overloads included."""
    return frozenset(getattr(_aten, name) for name in names.split())


def _forms(names: str) -> frozenset[Any]:
    """The same, with their forms in place and as a copy."""
    forms = (name + form for name in names.split() for form in ("", "_", "_copy"))
    return frozenset(getattr(_aten, name) for name in forms if hasattr(_aten, name))


#: Moves under which the last axis stays what it is, if its length does.
RESHAPES = _forms("_reshape_alias _unsafe_view view")
#: Moves under which every element is there once, as before.
TURNS = RESHAPES | _forms(
    "channel_shuffle flip permute pixel_shuffle pixel_unshuffle roll rot90 squeeze t "
    "transpose unsqueeze"
)
#: Copies and casts.
COPIES = _forms("_pin_memory _to_copy alias clone copy detach lift lift_fresh")
#: Moves that depend on how the elements lie in memory.
STRIDES = packets("as_strided as_strided_copy")
#: Moves that repeat or drop elements, or set some to zero.
_SELECTS = _forms(
    "_chunk_cat _unsafe_index _unsafe_masked_index block_diag cat constant_pad_nd "
    "diag_embed diagonal expand gather im2col index index_select masked_select "
    "max_unpool2d max_unpool3d narrow reflection_pad1d reflection_pad2d "
    "reflection_pad3d repeat replication_pad1d replication_pad2d replication_pad3d "
    "select slice split split_with_sizes stack take tril triu unbind unfold "
    "unsafe_split unsafe_split_with_sizes upsample_nearest1d upsample_nearest2d "
    "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d"
)
#: Moves that put elements, or a number, among others.
_JOINS = _forms(
    "_index_put_impl _unsafe_index_put diagonal_scatter index_copy index_fill "
    "index_put masked_fill masked_scatter put scatter select_scatter slice_scatter "
    "where"
)
#: Operations that leave every value as it is, and cost nothing.
MOVES = TURNS | COPIES | STRIDES | _SELECTS | _JOINS

#: New tensors of one number.
FILLS = _forms(
    "empty empty_like empty_strided eye fill full full_like new_empty "
    "new_empty_strided new_full new_ones new_zeros ones ones_like scalar_tensor zero "
    "zeros zeros_like"
)
_KINDS = {
    # an embedding costs a look-up a row
    "move": MOVES | packets("embedding"),
    "flip": _forms("neg"),
    "choice": _forms(
        "abs adaptive_max_pool2d adaptive_max_pool3d amax amin aminmax clamp clamp_max "
        "clamp_min cummax cummin fmax fmin kthvalue max max_pool2d_with_indices "
        "max_pool3d_with_indices maximum median min minimum nanmedian relu sgn sign "
        "sort threshold topk"
    ),
    "gate": _forms("bitwise_and logical_and mul"),
    "fill": FILLS,
}
_ONES = packets("eye new_ones ones ones_like")

#: What changes the shape of a tensor in place, and no memory.
SHAPES_IN_PLACE = packets("detach_ squeeze_ t_ transpose_ unsqueeze_")
_OVERWRITES = packets("copy copy_ fill_ zero_")
_PLACES = frozenset({"condition", "index", "indices", "mask"})
#: What reads the bits of elements as another type.
_NO_MOVES = frozenset({_aten.view.dtype, _aten.view_copy.dtype})


class Move(NamedTuple):
    """How one operation moves elements."""

    #: "move", "flip", "choice", "gate" or "fill"
    kind: str
    packet: Any
    #: name of every argument -> "source", "place", "target" (written to, and not read),
    #: or "" for what is neither tensor nor element
    roles: dict[str, str]
    #: arguments that are written to
    written: frozenset[str]

    @staticmethod
    @cache
    def of(func: Any) -> "Move | None":
        """How `func` moves elements; None if it does more."""
        packet = func.overloadpacket
        kind = next((kind for kind, ops in _KINDS.items() if packet in ops), None)
        if kind is None or func in _NO_MOVES:
            return None
        roles, written = {}, set()
        for argument in func._schema.arguments:
            name, of_type = argument.name, str(argument.type)
            if name == "reduce":
                return None
            if argument.alias_info is not None and argument.alias_info.is_write:
                written.add(name)
            roles[name] = ""
            if argument.is_out or (name == "self" and packet in _OVERWRITES):
                roles[name] = "target"
            elif "Tensor" in of_type or "number" in of_type:
                roles[name] = "place" if name in _PLACES else "source"
        return Move(kind, packet, roles, frozenset(written))

    @property
    def fills_with(self) -> float:
        """The number of a fill that is given none."""
        return float(self.packet in _ONES)


class Operand(NamedTuple):
    """A tensor among the arguments of a call."""

    tensor: Tensor
    role: str
    #: whether the call writes to it
    written: bool


class MoveCall:
    """One call of an operation that moves elements.

    Args:
        move: how it moves them.
        func: the operation, and what it is called with.
    """

    def __init__(
        self, move: Move, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.move = move
        #: the tensors among the arguments, and the numbers among the sources
        self.operands: list[Operand] = []
        self.numbers: list[float] = []
        #: whether it adds to what is there
        self.accumulates = False
        for name, value in (*zip(move.roles, args, strict=False), *kwargs.items()):
            role, written = move.roles.get(name, ""), name in move.written
            if role == "source" and isinstance(value, bool | int | float):
                self.numbers.append(value)
            self.accumulates |= name == "accumulate" and value
            self.operands += [Operand(t, role, written) for t in _tensors(value)]
        #: on(tensors): the result of the call on these in place of the operands; keeps
        #: no operand alive
        self.on: Callable[[Iterable[Tensor]], Any] = partial(
            _call_again,
            func,
            _with(args, repeat(_SLOT)),
            _with(kwargs, repeat(_SLOT)),
            [operand.written for operand in self.operands],
        )


_SLOT = object()


def _call_again(
    func: Any, args: Any, kwargs: Any, written: list[bool], tensors: Iterable[Tensor]
) -> Any:
    given = iter([t.clone() if w else t for t, w in zip(tensors, written, strict=True)])
    return func(*_with(args, given), **_with(kwargs, given))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _with(value: Any, given: Iterator[Any]) -> Any:
    """The same arguments with others in place of their tensors."""
    if isinstance(value, Tensor) or value is _SLOT:
        return next(given)
    if isinstance(value, list | tuple):
        return [_with(part, given) for part in value]
    if isinstance(value, dict):
        return {name: _with(part, given) for name, part in value.items()}
    return value


# ---- elements in one memory


def places(tensor: Tensor) -> Tensor:
    """Where in its memory each element of a tensor lies."""
    return torch.arange(_room(tensor)).as_strided(
        tensor.size(), tensor.stride(), tensor.storage_offset()
    )


def look_up(wanted: Tensor, tensor: Tensor) -> Tensor:
    """Which element of `tensor`, flattened, lies at each of `wanted`; -1 for none."""
    found = torch.full((_room(tensor),), -1)
    found[places(tensor).flatten()] = torch.arange(tensor.numel())
    return found[wanted]


def pick(values: Tensor, found: Tensor, otherwise: Tensor | int) -> Tensor:
    """Of the flattened `values` those that were found, and something for the rest."""
    found = found.to(values.device)
    return torch.where(found < 0, otherwise, values.flatten()[found.clamp(min=0)])


def _room(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() // tensor.element_size()
