"""One ear in each thread: the operations that torch runs there, for all who listen.

Counters may be nested, cross, or run in several threads. What a counter computes for
itself is then no operation of anybody's model, and each operation runs once, however
many count it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import get_ident, local
from typing import Any, Protocol, runtime_checkable

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from mar_snn.energy.handling import Handling

__all__ = ["Arguments", "Ear"]

_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd

#: An operation and what it is called with.
Arguments = tuple[OpOverload, tuple[Any, ...], dict[str, Any]]


@runtime_checkable
class Listener(Protocol):
    """Who wants to know of operations."""

    def wants(self) -> bool:
        """Whether it looks at the operations that run now."""

    def before(self, handling: Handling, call: Arguments) -> Callable[[Any], None]:
        """Learn of a call that is going to run; returns what takes its result."""


class Ear(TorchDispatchMode):
    """The dispatch mode of one thread."""

    _of_thread = local()

    def __init__(self) -> None:
        super().__init__()
        #: the thread
        self.thread = get_ident()
        self.listeners: list[Listener] = []
        #: whether what runs is nobody's model's; for whom alone it runs
        self.paused = False
        self.alone: Listener | None = None
        self._handlings: dict[OpOverload, Handling] = {}

    @classmethod
    def here(cls) -> "Ear":
        """The one of this thread."""
        if not hasattr(cls._of_thread, "ear"):
            cls._of_thread.ear = cls()
        ear: Ear = cls._of_thread.ear
        return ear

    def join(self, listener: Listener) -> None:
        """Hear what runs, until `leave`."""
        if not self.listeners:
            self._handlings.clear()  # rules may have been added
            self.__enter__()
        self.listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        """Hear no more.

        Raises:
            RuntimeError: in another thread.
        """
        if get_ident() != self.thread:
            raise RuntimeError(
                "a SpikeOpCounter was left in another thread than it was entered in, "
                "and it counts what runs in that one: leave its block there"
            )
        self.listeners.remove(listener)
        if not self.listeners:
            self.__exit__(None, None, None)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Our own arithmetic is not the model's."""
        paused, self.paused = self.paused, True
        try:
            with torch.no_grad():
                yield
        finally:
            self.paused = paused

    @contextmanager
    def only(self, listener: Listener) -> Iterator[None]:
        """What runs in the block runs for one of the listeners."""
        alone, self.alone = self.alone, listener
        try:
            yield
        finally:
            self.alone = alone

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        handling = self._handlings.get(func)
        if handling is None:
            handling = self._handlings[func] = Handling.of(func)
        if handling.composite and any(listener.wants() for listener in self.listeners):
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        call = func, args, kwargs
        afterwards = [listener.before(handling, call) for listener in self.listeners]
        out = func(*args, **kwargs)
        for after in afterwards:
            after(out)
        return out
