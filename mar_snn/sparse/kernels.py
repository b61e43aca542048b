"""The products of a decoding step, as operations that PyTorch knows.

`torch.ops.mar_snn.event_linear` reads the weights of the inputs that fired and no
others; `torch.ops.mar_snn.dense_linear` reads all of them, at the speed of the memory.
On a CPU both run in C where there is a compiler; on a GPU the first is a Triton kernel,
and PyTorch's own product, which is fast there, does the second. Each has its reference
in PyTorch, which also runs where there is neither.

K inputs · N outputs; rows of x, of which there are few, along all axes but the last.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num
from torch import Tensor

from mar_snn.neurons import native

__all__ = [
    "dense_linear",
    "dense_linear_reference",
    "event_linear",
    "event_linear_reference",
    "has_native",
    "runs_native",
]

logger = logging.getLogger(__name__)

#: GCC fuses no product with its addition in standard C: that halves the speed of sums
_FLAGS = ("-ffp-contract=fast",)
#: the C names of the two operations
_KINDS = ("gather", "dot")
#: the C name of each dtype of weights
_NATIVE = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "i8"}


def event_linear(
    x: Float[Tensor, "*batch K"],
    weight: Num[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " K"] | None = None,
    *,
    break_even: float = 1.0,
) -> Float[Tensor, "*batch N"]:
    """(x · scale) Wᵀ + bias, from the weights of the inputs that fired.

    An input's are read if it is not zero in some row of x, and then once, whatever the
    number of time steps or of rows. The decoded value of a coder is already the sum of
    its spikes times the threshold: sign, weights of the steps and threshold are one
    factor for all weights of an input.

    Args:
        x: decoded spikes, mostly zeros.
        weight: nn.Linear's, int8 with a scale; stored input by input, which means that
            its transpose is contiguous.
        bias: added to the sums.
        scale: of the int8 weights of each input.
        break_even: the density above which all weights are read by a dense product. On
            a GPU the density is not known before the kernel runs: it is not looked at.

    Returns:
        y in the dtype of x; the sums are float32, or float64 where x is.

    Raises:
        ValueError: for an x of another number of inputs than the weights'.
    """
    return torch.ops.mar_snn.event_linear.default(x, weight, bias, scale, break_even)


def dense_linear(
    x: Float[Tensor, "*batch K"],
    weight: Num[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "*batch N"]:
    """The product x Wᵀ · scale + bias, of nn.Linear's weights or of int8 ones."""
    return torch.ops.mar_snn.dense_linear.default(x, weight, bias, scale)


def event_linear_reference(
    x: Float[Tensor, "*batch K"],
    weight: Num[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, "*batch N"]:
    """What `event_linear` computes, in PyTorch's own operations."""
    wide = _wide(x.dtype)
    active = _active(x).nonzero().squeeze(1)
    factors = x[..., active].to(wide)
    if scale is not None:
        factors = factors * scale[active]
    y = factors @ weight.t()[active].to(wide)
    return (y if bias is None else y + bias).to(x.dtype)


def dense_linear_reference(
    x: Float[Tensor, "*batch K"],
    weight: Num[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "*batch N"]:
    """What `dense_linear` computes, in PyTorch's own operations."""
    if scale is None:
        return F.linear(x, weight, bias)
    wide = _wide(x.dtype)
    y = F.linear(x.to(wide), weight.to(wide)) * scale
    return (y if bias is None else y + bias).to(x.dtype)


def runs_native(x: Tensor, weight: Tensor) -> bool:
    """Whether the C kernels take these; why there are none is logged once."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and weight.dtype in _NATIVE
        and has_native()
    )


def has_native() -> bool:
    """Whether C runs here, these kernels and the coder; why not is logged once."""
    return _library() is not None


@cache
def _library() -> ctypes.CDLL | None:
    why = native.obstacle()
    if not why:
        kernels = [f"{kind}_{name}" for kind in _KINDS for name in _NATIVE.values()]
        source = Path(__file__).with_name("projections.c")
        try:
            return native.load(source, *_FLAGS, symbols=tuple(kernels))
        except RuntimeError as error:
            why = str(error)
    logger.warning("decoding on the CPU runs in PyTorch, which is slower: %s", why)
    return None


@cache
def _function(kernel: str, dtype: torch.dtype) -> Any:
    """A function of projections.c; declared, it takes plain integers."""
    function = getattr(_library(), f"{kernel}_{_NATIVE[dtype]}")
    size, flag, pointer = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    most = [size] if kernel == "gather" else []
    x, weight = [pointer, flag, size, size], [pointer, size, pointer]
    function.argtypes = [*x, *weight, *most, pointer, flag]
    function.restype = size
    return function


def _active(x: Float[Tensor, "*batch K"]) -> Bool[Tensor, " K"]:
    return (x != 0).flatten(0, -2).any(0) if x.dim() > 1 else x != 0


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# ---- the operations

_operations = torch.library.Library("mar_snn", "FRAGMENT")
_operations.define(
    "event_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, "
    "float break_even) -> Tensor"
)
_operations.define(
    "dense_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? scale) -> Tensor"
)


def _event_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    break_even: float,
) -> Tensor:
    _check_inputs(x, weight)
    if x.is_cuda and weight.dtype in _NATIVE:
        from mar_snn.sparse.triton_kernels import event_linear as launch

        return launch(x, weight, bias, scale)
    most = int(break_even * weight.shape[1])
    by_input = weight.stride() == (1, len(weight))
    if by_input and runs_native(x, weight):
        y, read = _run("gather", x, weight, bias, scale, most)
        if read >= 0:
            return y
    elif int(_active(x).sum()) <= most:
        return event_linear_reference(x, weight, bias, scale)
    if scale is None:
        return F.linear(x, weight, bias)
    return F.linear((x.to(scale) * scale).to(x.dtype), weight.to(x.dtype), bias)


def _dense_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> Tensor:
    _check_inputs(x, weight)
    if runs_native(x, weight) and weight.is_contiguous():
        y, read = _run("dot", x, weight, bias, scale)
        if read >= 0:
            return y
    return dense_linear_reference(x, weight, bias, scale)


def _check_inputs(x: Tensor, weight: Tensor) -> None:
    """C and Triton would read beyond what does not fit."""
    if x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"expected {weight.shape[1]} inputs on the last axis, got the shape "
            f"{tuple(x.shape)}"
        )


def _run(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    *most: int,
) -> tuple[Tensor, int]:
    """(y, the rows that were read), or a negative number of them and no y."""
    outputs, inputs = weight.shape
    x = x.contiguous()
    scale = None if scale is None else scale.float().contiguous()
    y = x.new_empty(*x.shape[:-1], outputs)
    read = _function(kernel, weight.dtype)(
        x.data_ptr(),
        x.dtype == torch.bfloat16,
        x.shape[:-1].numel(),
        inputs,
        weight.data_ptr(),
        outputs,
        None if scale is None else scale.data_ptr(),
        *most,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if bias is not None:
        y += bias
    return y, read


def _linear_fake(x: Tensor, weight: Tensor, *_how: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


_operations.impl("event_linear", _event_linear, "CompositeExplicitAutograd")
_operations.impl("dense_linear", _dense_linear, "CompositeExplicitAutograd")
for _name in ("event_linear", "dense_linear"):
    torch.library.register_fake(f"mar_snn::{_name}", _linear_fake)
