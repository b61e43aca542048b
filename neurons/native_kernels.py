"""The coder in C on the CPU; everything else as `torch_kernels` does it.

One token through the coder is two dozen operations for PyTorch, which cost more than
their arithmetic: this is what decodes a token at a time.
"""

import ctypes
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons import native
from mar_snn.neurons.backends import Dynamics
from mar_snn.neurons.reference import membrane_dtype
from mar_snn.neurons.torch_kernels import (
    code_backward,
    multi_step,
    multi_step_backward,
)

__all__ = ["code", "code_backward", "multi_step", "multi_step_backward", "run_code"]

#: dtype of values -> the C function, and the numbers of its membranes
_FUNCTIONS: dict[torch.dtype, tuple[str, Any]] = {
    torch.float32: ("code_f32", ctypes.c_float),
    torch.float64: ("code_f64", ctypes.c_double),
    torch.bfloat16: ("code_bf16", ctypes.c_float),
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
    dtype = x.dtype if x.dtype in _FUNCTIONS else membrane_dtype(x.dtype)
    how = weights, dynamics.tau, dynamics.fire_ratio
    out_code.copy_(run_code(x.to(dtype), v_threshold, *how))


def run_code(
    x: Float[Tensor, "*batch C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    tau: float,
    fire_ratio: float,
) -> Float[Tensor, "*batch C"]:
    """The code of float32, float64 or bfloat16 values on a CPU, without a gradient.

    This is `code` without what PyTorch does around an operation, which takes longer.
    """
    x, v_threshold = x.contiguous(), v_threshold.contiguous()
    coded = torch.empty_like(x)
    channels = len(v_threshold)
    _function(x.dtype)(
        x.data_ptr(),
        v_threshold.data_ptr(),
        x.numel() // channels,
        channels,
        _as_array(weights, x.dtype),
        len(weights),
        1.0 / tau,
        fire_ratio,
        coded.data_ptr(),
    )
    return coded


@cache
def _function(dtype: torch.dtype) -> Any:
    """The function of code.c for values of this dtype."""
    name, real = _FUNCTIONS[dtype]
    function = getattr(native.coder(), name)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    sizes = size, size, pointer, size
    function.argtypes = [pointer, pointer, *sizes, real, real, pointer]
    function.restype = None
    return function


@cache
def _as_array(weights: tuple[float, ...], dtype: torch.dtype) -> Any:
    return (_FUNCTIONS[dtype][1] * len(weights))(*weights)
