"""The rules by which calls are priced, as registries anybody can add to.

An operation is priced by its op rule, or is free because it computes nothing, or is
listed as uncounted. A module with a module rule is priced as a whole and the operations
inside it are not looked at; or only its own operations are, and the modules inside it
have rows of their own.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from mar_snn.energy.counts import Cost
from mar_snn.energy.moves import FILLS, MOVES, packets
from mar_snn.energy.spike_trains import Events, SpikeTrain

__all__ = [
    "OPERANDS",
    "RULES_VERSION",
    "CountingSettings",
    "ModuleCall",
    "OpCall",
    "RuleOfModule",
    "find_module_rule",
    "find_op_rule",
    "is_composite",
    "is_free",
    "register_module_rule",
    "register_op_rule",
]

#: Raised whenever a rule changes what it returns; stands in every report.
RULES_VERSION = "3"


_CHOICES = {
    "spikes": ("declared", "inferred"),
    "padding": ("exclude", "include"),
    "causal": ("exact", "full"),
    "scan": ("recurrent", "chunked"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CountingSettings:
    """What a counter was asked to count; rules read it from their call.

    Attributes:
        spikes: "declared" by the neurons, or "inferred" from values.
        padding: whether to "exclude" or "include" products with padded zeros.
        causal: "exact" counts the pairs that a causal mask leaves, "full" all pairs.
        scan: the form of a state-space scan that is counted, whichever ran.

    Raises:
        ValueError: for any other value.
    """

    spikes: str = "declared"
    padding: str = "exclude"
    causal: str = "exact"
    scan: str = "recurrent"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(
                    f"{name} must be {choices[0]!r} or {choices[1]!r}, got {value!r}"
                )


def _none(_: object) -> SpikeTrain | None:
    return None


def _no_weight(_: object) -> bool:
    return False


def _unheard(_key: str, _value: str) -> None:
    pass


class OpCall(NamedTuple):
    """One call of one torch operation, as its rule sees it."""

    func: OpOverload
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    #: the spikes that a tensor carries, or None
    spikes: Callable[[object], SpikeTrain | None] = _none
    #: whether a tensor is a parameter, a view or cast of one, or made of nothing else
    is_weight: Callable[[object], bool] = _no_weight
    settings: CountingSettings = CountingSettings()
    #: note("scan", "recurrent") puts into the report's settings how something ran
    note: Callable[[str, str], None] = _unheard

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument wherever the caller put it."""
        return _argument(self, index, name, default)

    def columns(self, tensor: Tensor) -> int:
        """Input features of this projection: K of a product, channels of an image."""
        return math.prod(tensor.shape[axis] for axis in _feature_axes(self, tensor))

    def touched(self, tensor: Tensor) -> Tensor | None:
        """How many of `columns` fired at any step, for any sample; None if no spikes.

        int64 without dimensions. A column of weights is fetched where its feature fires
        once, so this is the union over steps, samples and positions.
        """
        train = self.spikes(tensor)
        return None if train is None else train.touched(*_feature_axes(self, tensor))


class ModuleCall(NamedTuple):
    """One call of one module, as its rule sees it."""

    module: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any
    #: what the module declared during this call, or None
    events: Events | None
    #: declare(spike_seq, output, readout=None): from now on `output` carries the spikes
    #: [T, ...] of a module that does not say so itself, by their signs; "graded" takes
    #: their integer values, any other readout of SpikeTrain too, None asks the module
    declare: Callable[..., Events]
    #: the spikes that a tensor carries, or None
    spikes: Callable[[object], SpikeTrain | None] = _none
    #: as in OpCall
    is_weight: Callable[[object], bool] = _no_weight
    settings: CountingSettings = CountingSettings()
    note: Callable[[str, str], None] = _unheard

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument wherever the caller put it."""
        return _argument(self, index, name, default)


#: The two operands of a product among its arguments.
OPERANDS: dict[Any, tuple[int, int]] = {
    torch.ops.aten.mm: (0, 1),
    torch.ops.aten.bmm: (0, 1),
    torch.ops.aten.mv: (0, 1),
    torch.ops.aten.dot: (0, 1),
    torch.ops.aten.addmm: (1, 2),
    torch.ops.aten.baddbmm: (1, 2),
    torch.ops.aten.addmv: (1, 2),
    torch.ops.aten.vdot: (0, 1),
    torch.ops.aten._int_mm: (0, 1),
    torch.ops.aten.addbmm: (1, 2),
    torch.ops.aten._addmm_activation: (1, 2),
    torch.ops.aten.convolution: (0, 1),
}


def _feature_axes(call: OpCall, tensor: Tensor) -> tuple[int, ...]:
    """The axes of `tensor` along which the weights that it meets differ."""
    packet = call.func.overloadpacket
    if packet is torch.ops.aten.convolution:
        return (1,)
    left, right = (call.args[i] for i in OPERANDS.get(packet, (0, 0)))
    if tensor.dim() < 2:
        return tuple(range(tensor.dim()))
    other, axis = (left, -2) if tensor is right is not left else (right, -1)
    # of a batch of products, unless one matrix of weights serves the whole batch
    one_matrix = 2 in (tensor.dim(), other.dim()) or 0 in (
        other.shape[0] - 1,
        other.stride(0),
    )
    return (axis,) if one_matrix else (0, axis)


#: A rule may return None: it has no answer for this form of the call.
OpRule = Callable[[OpCall], Cost | None]
ModuleRule = Callable[[ModuleCall], Cost | None]
_OpRule = TypeVar("_OpRule", bound=OpRule)
_ModuleRule = TypeVar("_ModuleRule", bound=ModuleRule)


class RuleOfModule(NamedTuple):
    """A module rule, and whether it prices the modules inside as well."""

    price: ModuleRule
    whole: bool


_op_rules: dict[OpOverload, OpRule] = {}
_module_rules: dict[type[nn.Module] | str, RuleOfModule] = {}


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
    *classes: type[nn.Module] | str, children: str = "priced"
) -> Callable[[_ModuleRule], _ModuleRule]:
    """A decorator: the function prices calls of modules of exactly these classes.

    A subclass may compute something else, so it needs a rule of its own. A class of a
    package that need not be installed is given by its dotted path.

    Args:
        *classes: the classes, or their dotted paths.
        children: "priced" by the rule too, or "counted" by themselves: the rule stands
            for the operations in the module's own forward only, a kernel for instance.

    Raises:
        ValueError: for a class that has a rule, and for other `children`.
    """
    if children not in ("priced", "counted"):
        raise ValueError(f"children must be 'priced' or 'counted', got {children!r}")
    for cls in classes:
        path = cls if isinstance(cls, str) else _path(cls)
        if cls in _module_rules or path in _module_rules:
            raise ValueError(f"{path} has a rule already; a second would hide it")

    def register(rule: _ModuleRule) -> _ModuleRule:
        found = RuleOfModule(rule, children == "priced")
        _module_rules.update(dict.fromkeys(classes, found))
        return rule

    return register


def find_op_rule(operation: OpOverload) -> OpRule | None:
    """The rule of an operation, if it has one."""
    return _op_rules.get(operation)


def find_module_rule(cls: type[nn.Module]) -> RuleOfModule | None:
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
    | FILLS
    | packets("_local_scalar_dense is_pinned is_same_size resize_ set_")
    # new tensors
    | packets("arange rand rand_like randint randn randn_like randperm")
    # logic, signs
    | packets("abs abs_ all any bitwise_and bitwise_not bitwise_or logical_and")
    | packets("logical_not logical_or neg neg_")
    # how many tokens a router sends where, whether a mask allows a nested tensor
    | packets("histc _nested_tensor_from_mask_left_aligned")
)
