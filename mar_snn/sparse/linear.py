"""EventLinear and DenseLinear: nn.Linear for decoding, where few rows come at a time.

Both are nn.Linear in everything else: many rows, gradients, state_dict, bias. With
`weights="int8"` they hold rounded weights and serve for inference alone.
"""

import mmap
import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mar_snn.sparse.kernels import dense_linear, event_linear

__all__ = ["DenseLinear", "EventLinear"]


class _DecodingLinear(nn.Linear, ABC):
    """The weights of `linear`, laid out for a kernel that takes up to `max_rows` rows.

    Args:
        linear: what to stand in for.
        weights: "same", or "int8": rounded to 127 steps of the largest weight of a row,
            the row of an input for `EventLinear`, of an output for `DenseLinear`.
        max_rows: more rows than this are one dense product.

    Raises:
        ValueError: for other `weights`, and `max_rows` below one.
    """

    #: the axis of [outputs, inputs] that shares a scale
    _scaled_axis: ClassVar[int]

    def __init__(
        self, linear: nn.Linear, *, weights: str = "same", max_rows: int = 4
    ) -> None:
        if weights not in ("same", "int8"):
            raise ValueError(f"weights must be 'same' or 'int8', got {weights!r}")
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        super().__init__(
            linear.in_features, linear.out_features, bias=False, device="meta"
        )
        self.max_rows = max_rows
        self.bias = linear.bias
        self.train(linear.training)
        self.weight_int8: Tensor | None
        self.weight_scale: Tensor | None
        self.register_buffer("weight_int8", None)
        self.register_buffer("weight_scale", None)
        if weights == "same":
            self.weight = self._laid_out_parameter(linear.weight)
            return
        wide = linear.weight.detach().float()
        largest = wide.abs().amax(1 - self._scaled_axis)
        # a row of zeros has any scale
        self.weight_scale = torch.where(largest > 0, largest / 127, 1.0)
        steps = wide / self.weight_scale.unsqueeze(1 - self._scaled_axis)
        self.weight_int8 = self._laid_out(steps.round_().to(torch.int8))
        self.register_parameter("weight", None)

    @abstractmethod
    def _laid_out(self, weight: Tensor) -> Tensor:
        """The same numbers in the same shape, in the order of the kernel."""

    def _laid_out_parameter(self, weight: Tensor) -> nn.Parameter:
        laid_out = self._laid_out(weight.detach())
        return nn.Parameter(laid_out, requires_grad=weight.requires_grad)

    @property
    def stored(self) -> Tensor:
        """The weights as they are in memory, in nn.Linear's shape."""
        return self.weight if self.weight_int8 is None else self.weight_int8

    @abstractmethod
    def _few(self, x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        """The product of at most `max_rows` rows."""

    def forward(self, x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        """W x + b; by the kernel for few rows, where no gradient is asked for."""
        rows = x.numel() // self.in_features
        if torch.is_grad_enabled() or not 0 < rows <= self.max_rows:
            return F.linear(x, self.dense_weight(x.dtype), self.bias)
        return self._few(x)

    def dense_weight(self, dtype: torch.dtype) -> Float[Tensor, "N K"]:
        """The weights as a matrix of numbers; those of int8 are made for the call."""
        if self.weight_int8 is None or self.weight_scale is None:
            return self.weight
        scale = self.weight_scale.unsqueeze(1 - self._scaled_axis)
        return (self.weight_int8 * scale).to(dtype)

    def _save_to_state_dict(self, *args: Any) -> None:
        if self.weight_int8 is not None:
            raise RuntimeError(
                "these weights were rounded to int8 for decoding and would be lost for "
                "everything else: save the model before optimize_for_decoding"
            )
        super()._save_to_state_dict(*args)

    def extra_repr(self) -> str:
        weights = "same" if self.weight_int8 is None else "int8"
        return f"{super().extra_repr()}, weights={weights}, max_rows={self.max_rows}"


class EventLinear(_DecodingLinear):
    """W x + b that reads only the weights of inputs that are not zero.

    The weights are stored input by input (`weight` is a view of them in nn.Linear's
    shape), so that those of an active input are one stretch of memory.

    Args:
        linear, weights, max_rows: as for `DenseLinear`.
        break_even: density above which all weights are read, by a dense product.
    """

    _scaled_axis = 1

    def __init__(
        self,
        linear: nn.Linear,
        *,
        weights: str = "same",
        max_rows: int = 4,
        break_even: float = 1.0,
    ) -> None:
        super().__init__(linear, weights=weights, max_rows=max_rows)
        self.break_even = break_even

    def _laid_out(self, weight: Tensor) -> Tensor:
        return _on_huge_pages(weight.t()).t()

    def _few(self, x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        return event_linear(
            x, self.stored, self.bias, self.weight_scale, break_even=self.break_even
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, break_even={self.break_even:.2f}"


class DenseLinear(_DecodingLinear):
    """W x + b that reads all weights once, at the speed of the memory.

    `weight` is the parameter of `linear` itself, so tied weights stay tied; on a CPU it
    moves to huge pages, as int8 weights do.
    """

    _scaled_axis = 0

    def _laid_out(self, weight: Tensor) -> Tensor:
        return _on_huge_pages(weight)

    def _laid_out_parameter(self, weight: Tensor) -> nn.Parameter:
        if weight.is_cpu:
            weight.data = self._laid_out(weight.detach())
        return cast(nn.Parameter, weight)

    def _few(self, x: Float[Tensor, "*batch K"]) -> Float[Tensor, "*batch N"]:
        return dense_linear(x, self.stored, self.bias, self.weight_scale)


def _on_huge_pages(t: Tensor) -> Tensor:
    """A contiguous copy; on Linux its memory is asked for in pages of megabytes.

    Rows that are read here and there miss the table of small pages most of the time.
    """
    if t.device.type != "cpu" or sys.platform != "linux" or t.numel() == 0:
        return t.clone(memory_format=torch.contiguous_format)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has small pages
    memory = mmap.mmap(-1, t.numel() * t.element_size(), flags=private)
    memory.madvise(mmap.MADV_HUGEPAGE)
    copy = torch.frombuffer(memory, dtype=t.dtype).view(t.shape)
    return copy.copy_(t)
