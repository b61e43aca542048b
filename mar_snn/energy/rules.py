"""The rules by which calls are priced, as registries anybody can add to.

An operation is priced by its op rule, or is free because it computes nothing, or is
listed as uncounted. A module with a module rule is priced as a whole and the operations
inside it are not looked at.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from mar_snn.energy.counts import Cost
from mar_snn.energy.spike_trains import MOVES, Events, SpikeTrain, packets

__all__ = [
    "RULES_VERSION",
    "ModuleCall",
    "OpCall",
    "find_module_rule",
    "find_op_rule",
    "is_composite",
    "is_free",
    "register_module_rule",
    "register_op_rule",
]

#: Raised whenever a rule changes what it returns; stands in every report.
RULES_VERSION = "1"


class OpCall(NamedTuple):
    """One call of one torch operation, as its rule sees it."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    #: the spikes that a tensor carries, or None
    spikes: Callable[[object], SpikeTrain | None]

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument wherever the caller put it."""
        return _argument(self, index, name, default)


class ModuleCall(NamedTuple):
    """One call of one module, as its rule sees it."""

    module: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    #: what the module declared during this call, or None
    events: Events | None
    #: declare(spike_seq, output) for a module that does not declare its spikes itself
    declare: Callable[[Tensor, Tensor], Events]

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument wherever the caller put it."""
        return _argument(self, index, name, default)


#: A rule may return None: it has no answer for this form of the call.
OpRule = Callable[[OpCall], Cost | None]
ModuleRule = Callable[[ModuleCall], Cost | None]
_OpRule = TypeVar("_OpRule", bound=OpRule)
_ModuleRule = TypeVar("_ModuleRule", bound=ModuleRule)

_op_rules: dict[OpOverload, OpRule] = {}
_module_rules: dict[type[nn.Module] | str, ModuleRule] = {}


def register_op_rule(*operations: OpOverload) -> Callable[[_OpRule], _OpRule]:
    """A decorator: the function prices calls of these operations.

    Raises:
        ValueError: for an operation that has a rule, or that is made of others (it
            would be counted under inference_mode only).
    """
    for operation in operations:
        if operation in _op_rules or is_free(operation):
            raise ValueError(f"{operation} has a rule already; a second would hide it")
        if is_composite(operation):
            raise ValueError(
                f"{operation} is taken apart before it is counted; register a rule for "
                "the operations it is made of"
            )

    def register(rule: _OpRule) -> _OpRule:
        _op_rules.update(dict.fromkeys(operations, rule))
        return rule

    return register


def register_module_rule(
    *classes: type[nn.Module] | str,
) -> Callable[[_ModuleRule], _ModuleRule]:
    """A decorator: the function prices calls of modules of exactly these classes.

    A subclass may compute something else, so it needs a rule of its own. A class of a
    package that need not be installed is given by its dotted path.

    Raises:
        ValueError: for a class that has a rule.
    """
    for cls in classes:
        path = cls if isinstance(cls, str) else _path(cls)
        if cls in _module_rules or path in _module_rules:
            raise ValueError(f"{path} has a rule already; a second would hide it")

    def register(rule: _ModuleRule) -> _ModuleRule:
        _module_rules.update(dict.fromkeys(classes, rule))
        return rule

    return register


def find_op_rule(operation: OpOverload) -> OpRule | None:
    """The rule of an operation, if it has one."""
    return _op_rules.get(operation)


def find_module_rule(cls: type[nn.Module]) -> ModuleRule | None:
    """The rule of a module's class, if it has one."""
    return _module_rules.get(cls) or _module_rules.get(_path(cls))


def is_free(operation: OpOverload) -> bool:
    """Whether the operation only moves, makes, casts or picks values or flips signs."""
    return operation.overloadpacket in _FREE or operation.namespace == "prim"


def is_composite(operation: OpOverload) -> bool:
    """Whether the operation is made of others (inference_mode shows it undivided)."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        operation.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    )


def _argument(
    call: OpCall | ModuleCall, index: int, name: str, default: Any = None
) -> Any:
    if index < len(call.args):
        return call.args[index]
    return call.kwargs.get(name, default)


def _path(cls: type[nn.Module]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_FREE = (
    MOVES
    | packets("as_strided detach_ diagonal gather index scatter squeeze_ t_ tril triu")
    | packets(
        "index_copy index_copy_ index_put index_put_ select_scatter slice_scatter"
    )
    | packets("transpose_ unsqueeze_ _local_scalar_dense copy copy_ is_pinned")
    | packets("is_same_size lift_fresh_copy resize_ set_")
    # new tensors
    | packets(
        "arange empty empty_like empty_strided eye fill fill_ full full_like ones"
    )
    | packets("new_empty new_empty_strided new_full new_ones new_zeros ones_like rand")
    | packets("rand_like randint randn randn_like randperm scalar_tensor zero zero_")
    | packets("zeros zeros_like")
    # choices by a mask, logic, signs
    | packets("abs abs_ all any bitwise_and bitwise_not bitwise_or logical_and")
    | packets("logical_not logical_or masked_fill masked_fill_ neg neg_ where")
)
