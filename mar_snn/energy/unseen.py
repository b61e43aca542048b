"""Results of kernels that torch does not know of.

A Triton, CuPy or C++ kernel that is launched past torch's dispatcher leaves one trace:
memory that was allocated, that no operation wrote to, and that is read all the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef

from mar_snn.energy.moves import packets
from mar_snn.energy.spike_trains import storage_of

__all__ = ["Unseen"]

_ALLOCATIONS = packets("empty empty_like empty_strided new_empty new_empty_strided")
#: What looks at the shape and the place of its input alone.
_LIKE = packets(
    "full_like is_pinned is_same_size new_full new_ones new_zeros ones_like rand_like "
    "randint_like randn_like zeros_like"
)


class Unseen:
    """Memory that nobody wrote to, while a model runs."""

    def __init__(self) -> None:
        #: address -> who allocated it, and what keeps others from getting the address
        self._blank: dict[int, tuple[str, StorageWeakRef]] = {}

    def written(self, tensors: Iterable[Tensor]) -> None:
        """Somebody wrote to these."""
        if self._blank:
            for tensor in tensors:
                self._blank.pop(storage_of(tensor), None)

    def follow(
        self, func: OpOverload, inputs: Iterable[Any], out: Any, module: str
    ) -> set[str]:
        """The modules that filled what `out = func(*inputs)` read; `module` runs it."""
        if func.overloadpacket in _ALLOCATIONS:
            if out.numel():
                weak = StorageWeakRef(out.untyped_storage())
                self._blank[storage_of(out)] = (module, weak)
            return set()
        if not self._blank or func.overloadpacket in _LIKE:
            return set()
        # a view reads nothing
        return self._filled(inputs, but=(out,))

    def taken(self, inputs: Iterable[Any]) -> set[str]:
        """The modules that filled what a module with a rule takes."""
        return self._filled(inputs) if self._blank else set()

    def returned(self, out: Any) -> set[str]:
        """The modules that filled what the model returns; the pass is over."""
        found = self.taken(out.values() if isinstance(out, Mapping) else (out,))
        self._blank.clear()
        return found

    def _filled(self, read: Iterable[Any], but: Iterable[Any] = ()) -> set[str]:
        storages = set(map(storage_of, _tensors(read)))
        storages -= set(map(storage_of, _tensors(but)))
        return {self._blank.pop(s)[0] for s in storages if s in self._blank}


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
