"""Lets a module run its own forward with coders before some of its projections.

The forward is called on a view of the module, in which a projection is its coder and
then the projection. So there is no second copy of a host's forward to keep up to date,
the module keeps its names and keys, and an adapter that is put around a projection
later reads what the projection reads.
"""

from functools import cache, wraps
from types import MethodType
from typing import Any

from torch import Tensor, nn

from mar_snn.hosts.plans import Plan, plan_of

__all__ = ["run_through_slots", "run_without_slots"]


class _View:
    """A module as its own forward sees it while it spikes."""

    def __init__(self, owner: Any, plan: Plan) -> None:
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_plan", plan)
        #: slot -> (what the coder read last, what it made of it)
        object.__setattr__(self, "_coded", {})

    def __getattr__(self, name: str) -> Any:
        if name in self._plan.overrides:
            return self._plan.overrides[name]
        for site, fed in self._plan.sites.items():
            if name in fed and hasattr(self._owner, self._plan.slot(site)):
                return _Spiked(self, self._plan.slot(site), name)
        value = getattr(self._owner, name)
        if isinstance(value, MethodType) and value.__self__ is self._owner:
            # a step of the forward that is a method of its own
            return MethodType(value.__func__, self)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._owner, name, value)


class _Spiked:
    """A projection and the coder before it."""

    def __init__(self, view: _View, slot: str, name: str) -> None:
        self._view, self._slot, self._name = view, slot, name

    def __call__(self, x: Tensor) -> Any:
        owner, coded = self._view._owner, self._view._coded
        # the projections of one site read the same tensor: it is coded once
        if self._slot not in coded or coded[self._slot][0] is not x:
            coded[self._slot] = x, getattr(owner, self._slot)(x)
        return getattr(owner, self._name)(coded[self._slot][1])

    def __getattr__(self, name: str) -> Any:
        owner = self._view._owner
        value = getattr(getattr(owner, self._name), name)
        if name in ("in_features", "out_features") or value is None:
            return value
        past = f"{type(owner).__name__} uses {self._name}.{name} past the coder"
        if isinstance(value, Tensor):
            return _Untouchable(value, past)
        raise RuntimeError(f"{past}; {_WAY_OUT}")


class _Untouchable:
    """What may be known of a weight: where and what it is, not its values."""

    def __init__(self, weight: Tensor, past: str) -> None:
        self.device, self.dtype, self.shape = weight.device, weight.dtype, weight.shape
        self._past = past

    @classmethod
    def __torch_function__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        values = (*args, *(kwargs or {}).values())
        pasts = [value._past for value in values if isinstance(value, cls)]
        raise RuntimeError(f"{' and '.join(pasts)}; {_WAY_OUT}")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{self._past}; {_WAY_OUT}")


_WAY_OUT = (
    "its plan must turn that off with an override, or leave the projection out "
    "(mar_snn.hosts.Plan)"
)


class _Spiking:
    """What the spiking class of a host adds: it is pickled and copied by its host."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(protocol, 2))
        return _new, (type(self)._host,), *reduced[2:]  # type: ignore[attr-defined]


def _new(host: type) -> Any:
    spiking = _spiking_class(host)
    return spiking.__new__(spiking)


@cache
def _spiking_class(host: Any) -> Any:
    """A subclass of `host`, with its names, whose forward runs on a view."""
    plan: Any = plan_of(host)

    @wraps(host.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return host.forward(_View(self, plan), *args, **kwargs)

    names = {"__module__": host.__module__, "__qualname__": host.__qualname__}
    members = {"forward": forward, "_host": host, "__doc__": host.__doc__}
    return type(host.__name__, (_Spiking, host), names | members)


def run_through_slots(owner: nn.Module) -> None:
    """From now on the forward of `owner` calls the coders in its slots."""
    if not isinstance(owner, _Spiking):
        host: Any = type(owner)
        _change_class(owner, _spiking_class(host))


def run_without_slots(owner: nn.Module) -> None:
    """Undo `run_through_slots`."""
    if isinstance(owner, _Spiking):
        _change_class(owner, type(owner)._host)  # type: ignore[attr-defined]


def _change_class(owner: Any, module_class: Any) -> None:
    owner.__class__ = module_class
    # accelerate has put itself in front of the forward, and calls this one
    if "_old_forward" in owner.__dict__:
        owner._old_forward = MethodType(module_class.forward, owner)
