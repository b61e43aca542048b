"""The equations of `reference` in CUDA, compiled and launched by CuPy: see `atmn.cu`.

PyTorch's memory by its addresses, PyTorch's current stream, the device of the tensors:
nothing is copied, nothing waits. CuPy is imported at the first launch. What a launch
needs, a compiled kernel and the weights of a code, is made once for each device; as
everywhere with CUDA graphs, make one call before the one that is captured.
"""

import functools
import importlib
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons.backends import Dynamics
from mar_snn.neurons.reference import membrane_dtype, saturation
from mar_snn.neurons.surrogate import KERNEL_SURROGATES

__all__ = ["code", "code_backward", "multi_step", "multi_step_backward"]

_SOURCE = Path(__file__).with_name("atmn.cu")

# the reference rounds products before it adds them
_OPTIONS = ("-std=c++17", "-fmad=false")

#: names in the source
_SCALARS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
}

#: the widest access of a thread to memory
_ACCESS_BYTES = 16

_THREADS_PER_BLOCK = 256

#: enough to keep a large GPU's memory busy; their partial sums still fit its cache
_THREADS_PER_CODE = 2**17


def multi_step(
    x_seq: Float[Tensor, "T N"],
    v: Float[Tensor, " N"],
    v_threshold: Float[Tensor, " C"],
    inner: int,
    dynamics: Dynamics,
    *,
    out_spike_seq: Float[Tensor, "T N"],
    out_v_seq: Float[Tensor, "K N"],
    out_h_seq: Float[Tensor, "T N"] | None,
) -> None:
    """T steps from the membrane v. The last K = T or K = 1 membranes are kept."""
    width = _width(x_seq, v, out_spike_seq, out_v_seq, out_h_seq)
    v_threshold = v_threshold.contiguous()
    _launch(
        f"multi_step<{_scalar(x_seq)}, {width}>",
        x_seq.get_device(),
        _neurons_grid(v, width),
        *(*_rows(x_seq), v.data_ptr()),
        *(v_threshold.data_ptr(), len(v_threshold), inner),
        *(*_rows(out_spike_seq), *_rows(out_v_seq), *_rows(out_h_seq)),
        *(len(x_seq), len(out_v_seq), len(v)),
        *(1.0 / dynamics.tau, float(dynamics.fire_ratio)),
    )


def multi_step_backward(
    grad_spike_seq: Float[Tensor, "T N"],
    grad_v_seq: Float[Tensor, "K N"],
    h_seq: Float[Tensor, "T N"],
    v_threshold: Float[Tensor, " C"],
    inner: int,
    dynamics: Dynamics,
    *,
    out_grad_x_seq: Float[Tensor, "T N"],
    out_grad_v: Float[Tensor, " N"],
    out_grad_threshold: Float[Tensor, " N"],
) -> None:
    """The gradients of x_seq, of the first membrane, of each neuron's threshold."""
    if dynamics.surrogate not in KERNEL_SURROGATES:
        raise ValueError(
            f"steps need a surrogate out of {', '.join(KERNEL_SURROGATES)}, got "
            f"{dynamics.surrogate!r}: only codes have a straight-through gradient"
        )
    results = out_grad_x_seq, out_grad_v, out_grad_threshold
    width = _width(grad_spike_seq, grad_v_seq, h_seq, *results)
    v_threshold = v_threshold.contiguous()
    _launch(
        f"multi_step_backward"
        f"<{_scalar(grad_spike_seq)}, {dynamics.surrogate}, {width}>",
        h_seq.get_device(),
        _neurons_grid(out_grad_v, width),
        *(*_rows(grad_spike_seq), *_rows(grad_v_seq), *_rows(h_seq)),
        *(v_threshold.data_ptr(), len(v_threshold), inner),
        *(*_rows(out_grad_x_seq), out_grad_v.data_ptr()),
        out_grad_threshold.data_ptr(),
        *(len(h_seq), len(grad_v_seq), len(out_grad_v)),
        *(1.0 / dynamics.tau, float(dynamics.fire_ratio), float(dynamics.alpha)),
        int(dynamics.detach_reset),
    )


def code(
    x: Float[Tensor, "R C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    dynamics: Dynamics,
    *,
    out_code: Float[Tensor, "R C"],
) -> None:
    """V sum_t w[t] s[t] for every x, fed at the first of the T steps."""
    width = _width(x, out_code)
    v_threshold = v_threshold.contiguous()
    _launch(
        f"code<{_scalar(x)}, {width}>",
        x.get_device(),
        _code_grid(x, width),
        *(*_rows(x), v_threshold.data_ptr()),
        _on_device(weights, x.device, v_threshold.dtype).data_ptr(),
        *_rows(out_code),
        *(len(weights), *x.shape),
        *(1.0 / dynamics.tau, float(dynamics.fire_ratio)),
    )


def code_backward(
    grad: Float[Tensor, "R C"],
    x: Float[Tensor, "R C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    dynamics: Dynamics,
    *,
    out_grad_x: Float[Tensor, "R C"],
    out_grad_threshold: Float[Tensor, " C"],
) -> None:
    """The gradients of x and of each channel's threshold, recomputed from x."""
    width = _width(grad, x, out_grad_x)
    grid, block = _code_grid(x, width)
    walks = grid[1] * block[1]
    partial = torch.empty(
        (walks, x.shape[1]), dtype=membrane_dtype(x.dtype), device=x.device
    )
    v_threshold = v_threshold.contiguous()
    _launch(
        f"code_backward<{_scalar(x)}, {dynamics.surrogate or 'Straight'}, {width}>",
        x.get_device(),
        (grid, block),
        *(*_rows(grad), *_rows(x), v_threshold.data_ptr()),
        _on_device(weights, x.device, partial.dtype).data_ptr(),
        *(*_rows(out_grad_x), partial.data_ptr()),
        *(len(weights), *x.shape),
        *(1.0 / dynamics.tau, float(dynamics.fire_ratio)),
        *(float(saturation(weights, dynamics.fire_ratio)), float(dynamics.alpha)),
        int(dynamics.detach_reset),
    )
    torch.sum(partial, 0, out=out_grad_threshold)


# ---- launching

_Grid = tuple[tuple[int, int], tuple[int, int]]


def _launch(kernel: str, device: int, grid: _Grid, *arguments: int | float) -> None:
    """Run a kernel on PyTorch's current stream of the device.

    CuPy hands integers over as 64 bits, floats as float64. The device and the stream
    that were current before are so again behind (from CuPy 12 on, cupy issue 6569).
    """
    cupy: Any = importlib.import_module("cupy")
    stream = torch.cuda.current_stream(device).cuda_stream
    with cupy.cuda.Device(device), cupy.cuda.ExternalStream(stream, device):
        _compiled(kernel, device)(*grid, arguments)


@functools.cache
def _compiled(kernel: str, device: int) -> Any:  # noqa: ARG001
    """The kernel for the current device: nothing else of the source is compiled."""
    cupy: Any = importlib.import_module("cupy")
    module = cupy.RawModule(
        code=_SOURCE.read_text(encoding="utf-8"),
        options=_OPTIONS,
        name_expressions=(kernel,),
    )
    return module.get_function(kernel)


@functools.cache
def _on_device(
    weights: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, " T"]:
    return torch.tensor(weights, dtype=dtype, device=device)


def _neurons_grid(v: Float[Tensor, " N"], width: int) -> _Grid:
    """Blocks and their threads, one thread for `width` neurons."""
    blocks = math.ceil(len(v) / width / _THREADS_PER_BLOCK)
    return (blocks, 1), (_THREADS_PER_BLOCK, 1)


def _code_grid(x: Float[Tensor, "R C"], width: int) -> _Grid:
    """Blocks and their threads, (across the channels, down the rows).

    A thread walks down several rows as soon as there are enough threads.
    """
    rows, channels = x.shape
    across = math.ceil(channels / width)
    blocks_across = math.ceil(across / _THREADS_PER_BLOCK)
    threads_across = math.ceil(across / blocks_across)
    threads_down = _THREADS_PER_BLOCK // threads_across
    walks = min(rows, max(1, _THREADS_PER_CODE // across))
    return (
        (blocks_across, math.ceil(walks / threads_down)),
        (threads_across, threads_down),
    )


def _width(*tensors: Tensor | None) -> int:
    """Neighbours that a thread takes at once; 1 where that would be unaligned.

    The widest dtype then fills an access, so that neighbouring threads leave no gap.
    """
    rows = [tensor for tensor in tensors if tensor is not None]
    width = _ACCESS_BYTES // max(tensor.element_size() for tensor in rows)
    for tensor in rows:
        distance = tensor.stride(0) if tensor.ndim > 1 and len(tensor) > 1 else 0
        access = width * tensor.element_size()
        unaligned = tensor.data_ptr() % access or distance % width
        if unaligned or tensor.shape[-1] % width:
            return 1
    return width


def _rows(x_seq: Float[Tensor, "T N"] | None) -> tuple[int, int]:
    """The address of the first row, and the elements from one row to the next."""
    return (0, 0) if x_seq is None else (x_seq.data_ptr(), x_seq.stride(0))


def _scalar(x: Tensor) -> str:
    if x.dtype not in _SCALARS:
        raise ValueError(
            f"the CUDA kernels take {', '.join(map(str, _SCALARS))}, got {x.dtype}: "
            "convert the input to one of them"
        )
    return _SCALARS[x.dtype]
