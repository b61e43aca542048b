"""What the counter does about a torch operation, looked up once for each."""

from typing import Any, NamedTuple

from torch import Tensor
from torch._ops import OpOverload

from mar_snn.energy.moves import SHAPES_IN_PLACE, Move, packets
from mar_snn.energy.rules.registry import (
    OPERANDS,
    OpRule,
    find_op_rule,
    is_composite,
    is_free,
)

__all__ = ["Handling"]

#: Kernels that compute a whole module of torch.
_FUSED = packets(
    "_cudnn_rnn _native_multi_head_attention _transformer_encoder_layer_fwd miopen_rnn "
    "mkldnn_rnn_layer"
)


class Writes:
    """The memory that an operation writes to, looked up once."""

    def __init__(self, func: Any) -> None:
        self._places = [
            (index, argument.name)
            for index, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
            if func.overloadpacket not in SHAPES_IN_PLACE
        ]

    def of(self, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
        """The tensors that a call writes to."""
        written: list[Any] = []
        for index, name in self._places:
            value = args[index] if index < len(args) else kwargs.get(name)
            written += list(value) if isinstance(value, list | tuple) else [value]
        return [value for value in written if isinstance(value, Tensor)]


class Handling(NamedTuple):
    """Of one operation: its rule, and what becomes of spikes and memory."""

    rule: OpRule | None
    free: bool
    #: taken apart first
    composite: bool
    writes: Writes
    #: how it moves spikes
    move: Move | None
    operands: tuple[int, int] | None
    #: a whole module in one kernel
    fused: bool

    @classmethod
    def of(cls, func: OpOverload) -> "Handling":
        """What to do about `func`."""
        rule, free = find_op_rule(func), is_free(func)
        return cls(
            rule=rule,
            free=free,
            composite=rule is None and not free and is_composite(func),
            writes=Writes(func),
            move=Move.of(func),
            operands=OPERANDS.get(func.overloadpacket),
            fused=func.overloadpacket in _FUSED,
        )
