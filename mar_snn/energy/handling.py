"""What the counter does about a torch operation, looked up once for each."""

from typing import NamedTuple

from torch._ops import OpOverload

from mar_snn.energy.rules.registry import (
    OPERANDS,
    OpRule,
    find_op_rule,
    is_composite,
    is_free,
)
from mar_snn.energy.spike_trains import Writes, is_followed

__all__ = ["Handling"]


class Handling(NamedTuple):
    """Of one operation: its rule, and what becomes of spikes and memory."""

    rule: OpRule | None
    free: bool
    #: taken apart first
    composite: bool
    writes: Writes
    #: spikes are followed through it
    followed: bool
    operands: tuple[int, int] | None

    @classmethod
    def of(cls, func: OpOverload) -> "Handling":
        """What to do about `func`."""
        rule, free = find_op_rule(func), is_free(func)
        return cls(
            rule=rule,
            free=free,
            composite=rule is None and not free and is_composite(func),
            writes=Writes(func),
            followed=is_followed(func),
            operands=OPERANDS.get(func.overloadpacket),
        )
