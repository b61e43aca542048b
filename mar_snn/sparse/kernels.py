"""The products of a decoding step, as operations that PyTorch knows.

`torch.ops.mar_snn.event_linear` reads the weights of the inputs that fired and no
others; `torch.ops.mar_snn.dense_linear` reads all of them, at the speed of the memory.
On a CPU both run in C where there is a compiler; on a GPU the first is a Triton kernel,
and PyTorch's own product, which is fast there, does the second. Each has its reference
in PyTorch, which also runs where there is neither.

K inputs · N outputs · B rows, of which there are few.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor

from mar_snn.neurons import native

__all__ = [
    "dense_linear",
    "dense_linear_reference",
    "event_linear",
    "event_linear_reference",
    "runs_native",
]

logger = logging.getLogger(__name__)

#: the C name of each dtype of weights
_NATIVE = {torch.float32: "f32", torch.bfloat16: "bf16", torch.int8: "i8"}


def event_linear(
    x: Float[Tensor, "B K"],
    weight: Num[Tensor, "K N"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " K"] | None = None,
    *,
    break_even: float = 1.0,
) -> Float[Tensor, "B N"]:
    """(x · scale) W + bias, from the rows of W whose input fired.

    A row is read if its input is not zero in some row of x, and then once, whatever the
    number of time steps or of rows. The decoded value of a coder is already the sum of
    its spikes times the threshold: sign, weights of the steps and threshold are one
    factor for a row.

    Args:
        x: decoded spikes, mostly zeros.
        weight: the transpose of nn.Linear's, contiguous; int8 with a scale.
        bias: added to the sums.
        scale: of each row of int8 weights.
        break_even: the density above which all rows are read by a dense product. On a
            GPU the density is not known before the kernel runs: it is not looked at.

    Returns:
        y in the dtype of x; the sums are float32, or float64 where x is.
    """
    return torch.ops.mar_snn.event_linear(x, weight, bias, scale, break_even)


def dense_linear(
    x: Float[Tensor, "B K"],
    weight: Num[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "B N"]:
    """The product x Wᵀ · scale + bias, of nn.Linear's weights or of int8 ones."""
    return torch.ops.mar_snn.dense_linear(x, weight, bias, scale)


def event_linear_reference(
    x: Float[Tensor, "B K"],
    weight: Num[Tensor, "K N"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, "B N"]:
    """What `event_linear` computes, in PyTorch's own operations."""
    wide = _wide(x.dtype)
    (active,) = (x != 0).any(0).nonzero(as_tuple=True)
    factors = x[:, active].to(wide)
    if scale is not None:
        factors = factors * scale[active]
    y = factors @ weight[active].to(wide)
    return (y if bias is None else y + bias).to(x.dtype)


def dense_linear_reference(
    x: Float[Tensor, "B K"],
    weight: Num[Tensor, "N K"],
    bias: Float[Tensor, " N"] | None = None,
    scale: Float[Tensor, " N"] | None = None,
) -> Float[Tensor, "B N"]:
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
        and _library() is not None
    )


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return native.load(Path(__file__).with_name("projections.c"))
    except RuntimeError as why:
        logger.warning(
            "decoding on the CPU runs in PyTorch, several times slower: %s", why
        )
        return None


@cache
def _function(name: str) -> Any:
    """A function of projections.c; declared, it takes plain integers."""
    function = getattr(_library(), name)
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    most = [size] if name.startswith("gather") else []
    function.argtypes = [
        *(pointer, size, size, pointer, size, pointer),
        *most,
        *(pointer, ctypes.c_int),
    ]
    function.restype = size
    return function


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
    if x.is_cuda and weight.dtype in _NATIVE:
        from mar_snn.sparse.triton_kernels import event_linear as launch

        return launch(x, weight, bias, scale)
    most = int(break_even * len(weight))
    if runs_native(x, weight):
        y, read = _run("gather", x, weight, weight.shape[1], bias, scale, most)
        if read >= 0:
            return y
    elif int((x != 0).any(0).sum()) <= most:
        return event_linear_reference(x, weight, bias, scale)
    if scale is None:
        return F.linear(x, weight.t(), bias)
    return dense_linear_reference(
        (x.to(scale) * scale).to(x.dtype), weight.t().to(x.dtype), bias
    )


def _dense_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> Tensor:
    if runs_native(x, weight):
        return _run("dot", x, weight, weight.shape[0], bias, scale)[0]
    return dense_linear_reference(x, weight, bias, scale)


def _run(
    kernel: str,
    x: Tensor,
    weight: Tensor,
    outputs: int,
    bias: Tensor | None,
    scale: Tensor | None,
    *most: int,
) -> tuple[Tensor, int]:
    """(y, the rows that were read), or a negative number of them and no y."""
    wide = x.float().contiguous()
    y = wide.new_empty(len(x), outputs)
    returned = _function(f"{kernel}_{_NATIVE[weight.dtype]}")(
        wide.data_ptr(),
        *x.shape,
        weight.data_ptr(),
        outputs,
        None if scale is None else scale.data_ptr(),
        *most,
        y.data_ptr(),
        torch.get_num_threads(),
    )
    if bias is not None:
        y += bias
    return y.to(x.dtype), returned


def _event_linear_fake(x: Tensor, weight: Tensor, *_how: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _dense_linear_fake(x: Tensor, weight: Tensor, *_how: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_operations.impl("event_linear", _event_linear, "CompositeExplicitAutograd")
_operations.impl("dense_linear", _dense_linear, "CompositeExplicitAutograd")
torch.library.register_fake("mar_snn::event_linear", _event_linear_fake)
torch.library.register_fake("mar_snn::dense_linear", _dense_linear_fake)
