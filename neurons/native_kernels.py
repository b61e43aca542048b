"""The coder in C on the CPU; everything else as `torch_kernels` does it.

One token through the coder is two dozen operations for PyTorch, which cost more than
their arithmetic: this is what decodes a token at a time.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons.backends import Dynamics
from mar_snn.neurons.native import load
from mar_snn.neurons.reference import membrane_dtype
from mar_snn.neurons.torch_kernels import (
    code_backward,
    multi_step,
    multi_step_backward,
)

__all__ = ["code", "code_backward", "multi_step", "multi_step_backward"]

_REALS: dict[torch.dtype, Any] = {
    torch.float32: ctypes.c_float,
    torch.float64: ctypes.c_double,
}


def code(
    x: Float[Tensor, "R C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    dynamics: Dynamics,
    *,
    out_code: Float[Tensor, "R C"],
) -> None:
    """V sum_t w[t] s[t] for every x, fed at the first of the T steps."""
    dtype = membrane_dtype(x.dtype)
    wide = x.to(dtype).contiguous()
    same = out_code.dtype == dtype and out_code.is_contiguous()
    target = out_code if same else torch.empty_like(wide)
    _function(dtype)(
        wide.data_ptr(),
        v_threshold.contiguous().data_ptr(),
        *x.shape,
        _as_array(weights, dtype),
        len(weights),
        1.0 / dynamics.tau,
        dynamics.fire_ratio,
        target.data_ptr(),
    )
    if not same:
        out_code.copy_(target)


@cache
def _function(dtype: torch.dtype) -> Any:
    """The function of code.c for membranes of this dtype."""
    library = load(Path(__file__).with_name("code.c"), "-ffp-contract=off")
    function = library.code_f64 if dtype == torch.float64 else library.code_f32
    pointer, size, real = ctypes.c_void_p, ctypes.c_int64, _REALS[dtype]
    function.argtypes = [
        pointer,
        pointer,
        size,
        size,
        pointer,
        size,
        real,
        real,
        pointer,
    ]
    function.restype = None
    return function


@cache
def _as_array(weights: tuple[float, ...], dtype: torch.dtype) -> Any:
    return (_REALS[dtype] * len(weights))(*weights)
