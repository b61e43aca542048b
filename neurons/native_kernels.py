"""The coder in C on the CPU; everything else as `torch_kernels` does it.

One token through the coder is two dozen operations for PyTorch, which cost more than
their arithmetic: this is what decodes a token at a time.
"""

import ctypes
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons.backends import Dynamics
from mar_snn.neurons.native import address, load
from mar_snn.neurons.reference import membrane_dtype
from mar_snn.neurons.torch_kernels import (
    code_backward,
    multi_step,
    multi_step_backward,
)

__all__ = ["code", "code_backward", "multi_step", "multi_step_backward"]

_SOURCE = Path(__file__).with_name("code.c")


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
    library = load(_SOURCE, "-ffp-contract=off")
    real, run = (
        (ctypes.c_double, library.code_f64)
        if dtype == torch.float64
        else (ctypes.c_float, library.code_f32)
    )
    run(
        address(wide),
        address(v_threshold.contiguous()),
        ctypes.c_int64(x.shape[0]),
        ctypes.c_int64(x.shape[1]),
        (real * len(weights))(*weights),
        ctypes.c_int64(len(weights)),
        real(1.0 / dynamics.tau),
        real(dynamics.fire_ratio),
        address(target),
    )
    if not same:
        out_code.copy_(target)
