"""Which tensors are weights: parameters, and what is made of parameters alone."""

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.weak import WeakTensorKeyDictionary

from mar_snn.energy.spike_trains import storage_of

__all__ = ["Weights"]


class Weights:
    """The weights of one model while it runs."""

    def __init__(self) -> None:
        self._storages: set[int] = set()
        self._made: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        #: parameters without a shape, which the first pass gives them
        self._lazy: list[nn.Parameter] = []

    def collect(self, model: nn.Module) -> None:
        """Learn where the parameters lie now; they may have moved since."""
        self._storages.clear()
        self._lazy = list(model.parameters())
        self._collect_lazy()

    def _collect_lazy(self) -> None:
        shaped = [p for p in self._lazy if not is_lazy(p)]
        self._storages.update(map(storage_of, shaped))
        self._lazy = [p for p in self._lazy if is_lazy(p)]

    def __contains__(self, tensor: object) -> bool:
        if not isinstance(tensor, Tensor):
            return False
        if self._lazy:
            self._collect_lazy()
        if storage_of(tensor) in self._storages:
            return True
        return bool(self._made) and tensor in self._made

    def follow(self, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """What an operation makes of weights and numbers alone is a weight.

        Such as the cast that autocast inserts, or a quantised copy.
        """
        if not args or args[0] not in self or not isinstance(out, Tensor):
            return
        others = [v for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)]
        if storage_of(out) not in self._storages and all(v in self for v in others):
            self._made[out] = True
