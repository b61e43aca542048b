"""The equations of `reference` in Triton: every element is read once and written once.

The time loop runs in registers. Results are the reference's bits, which takes two
things: no product that has to be rounded is fused with a sum, and numbers like 1 / tau
reach the device as float64 and are rounded there, as PyTorch rounds them.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons.backends import Dynamics
from mar_snn.neurons.reference import saturation

__all__ = ["code", "code_backward", "multi_step", "multi_step_backward"]

# Fixed sizes, not tuned at run time: tuning waits for the device, which a CUDA graph
# cannot record. Memory is the bound, so the sizes keep enough bytes on their way.

#: small blocks: many share a multiprocessor, and some load while others wait
_WARPS = 4
_THREADS = 32 * _WARPS
#: the widest access of a thread
_ACCESS_BYTES = 16
#: what an A100 or H100 runs at once, about 2048 on each multiprocessor; up to there one
#: more thread is worth more than a wider access
_THREADS_OF_A_DEVICE = 2**18
#: bytes of membranes of a thread in `code`: four float32 accesses before the first wait
_CODE_BYTES = 64
#: in `code_backward`, which loads two tensors and needs twice the registers
_CODE_BACKWARD_BYTES = 32
#: blocks that keep a device busy for two rounds
_BLOCKS_OF_A_DEVICE = 2048
#: tiles that a block of `code_backward` adds up at most: its row of partial sums is
#: then next to nothing beside what it reads
_TILES_OF_A_SLAB = 32
#: from here on neurons are counted in int64; a block may reach beyond the last neuron
_INT64_NEURONS = 2**31 - 2**16

# no fused multiply-add: it rounds once where the reference rounds twice
_LAUNCH = {"num_warps": _WARPS, "enable_fp_fusion": False}


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
    steps, neurons = x_seq.shape
    block = _block(v)
    h_stride = 0 if out_h_seq is None else out_h_seq.stride(0)
    _multi_step_kernel[(triton.cdiv(neurons, block),)](
        *(x_seq, v, v_threshold.contiguous(), out_spike_seq, out_v_seq, out_h_seq),
        *(steps, neurons, len(v_threshold), inner),
        *(x_seq.stride(0), out_spike_seq.stride(0), out_v_seq.stride(0), h_stride),
        *(1.0 / dynamics.tau, dynamics.fire_ratio),
        EVERY_V=len(out_v_seq) == steps,
        INDEX=_index(neurons),
        BLOCK=block,
        **_LAUNCH,
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
    steps, neurons = h_seq.shape
    block = _block(out_grad_v)
    by_step = (grad_spike_seq, grad_v_seq, h_seq, out_grad_x_seq)
    _multi_step_backward_kernel[(triton.cdiv(neurons, block),)](
        *(*by_step, v_threshold.contiguous(), out_grad_v, out_grad_threshold),
        *(steps, neurons, len(v_threshold), inner),
        *(rows.stride(0) for rows in by_step),
        *(1.0 / dynamics.tau, dynamics.fire_ratio, dynamics.alpha),
        SURROGATE=dynamics.surrogate,
        DETACH_RESET=dynamics.detach_reset,
        EVERY_V=len(grad_v_seq) == steps,
        INDEX=_index(neurons),
        BLOCK=block,
        **_LAUNCH,
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
    height, width = _tile(x, v_threshold, _CODE_BYTES)
    across = triton.cdiv(x.shape[1], width)
    _code_kernel[(across * triton.cdiv(len(x), height),)](
        *(x, v_threshold.contiguous(), out_code),
        *(*x.shape, across, x.stride(0), out_code.stride(0)),
        *(1.0 / dynamics.tau, dynamics.fire_ratio),
        WEIGHTS=weights,
        HEIGHT=height,
        WIDTH=width,
        **_LAUNCH,
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
    """The gradients of x and of each channel's threshold, recomputed from x.

    A block adds up the thresholds' gradient over one slab of rows, PyTorch over the
    slabs. The sizes depend on nothing but the shape, so the order is always the same.
    """
    height, width = _tile(x, v_threshold, _CODE_BACKWARD_BYTES)
    across, down = triton.cdiv(x.shape[1], width), triton.cdiv(len(x), height)
    tiles = min(max(across * down // _BLOCKS_OF_A_DEVICE, 1), _TILES_OF_A_SLAB)
    slabs = triton.cdiv(down, tiles)
    partial = out_grad_threshold.new_empty(slabs, x.shape[1])
    rho = dynamics.fire_ratio
    _code_backward_kernel[(across * slabs,)](
        *(grad, x, out_grad_x, v_threshold.contiguous(), partial),
        *(*x.shape, across, tiles),
        *(grad.stride(0), x.stride(0), out_grad_x.stride(0)),
        *(1.0 / dynamics.tau, rho, dynamics.alpha, saturation(weights, rho)),
        WEIGHTS=weights,
        SURROGATE=dynamics.surrogate,
        DETACH_RESET=dynamics.detach_reset,
        HEIGHT=height,
        WIDTH=width,
        **_LAUNCH,
    )
    torch.sum(partial, 0, out=out_grad_threshold)


def _block(v: Float[Tensor, " N"]) -> int:
    """How many neighbouring neurons a block runs."""
    # by the membrane's width: 16-bit rows are then read 8 bytes at a time, but float32
    # beside them needs no way through shared memory to be written 16 bytes at a time
    widest = _ACCESS_BYTES // v.element_size()
    spare = triton.next_power_of_2(len(v) // _THREADS_OF_A_DEVICE + 1) // 2
    return _THREADS * min(max(spare, 1), widest)


def _index(neurons: int) -> Any:
    """The type in which neurons are counted: int32 is divided several times faster."""
    return tl.int32 if neurons < _INT64_NEURONS else tl.int64


def _tile(
    x: Float[Tensor, "R C"], v_threshold: Float[Tensor, " C"], thread_bytes: int
) -> tuple[int, int]:
    """Rows and channels of a tile; a warp reads its row with one access a thread."""
    widest = 32 * _ACCESS_BYTES // x.element_size()
    width = min(widest, triton.next_power_of_2(x.shape[1]))
    height = _THREADS * thread_bytes // v_threshold.element_size() // width
    return min(height, triton.next_power_of_2(len(x))), width


# ---- on the device: T steps, N neurons, R rows, C channels, M the membrane's type


@triton.jit
@no_type_check
def _fire(h, fire_threshold):
    """[h >= fire_threshold] - [h <= -fire_threshold]: NaN fires nothing."""
    positive = (h >= fire_threshold).to(h.dtype)
    return positive - (h <= -fire_threshold).to(h.dtype)


@triton.jit
@no_type_check
def _reciprocal(x):
    """1 / x of x > 0 but for the last bits: a quarter of a division's instructions."""
    root = tl.rsqrt(x)
    return root * root


@triton.jit
@no_type_check
def _slope(x, alpha, SURROGATE: tl.constexpr):
    """The surrogate's derivative at x by SpikingJelly's formulas, all of them even."""
    if SURROGATE == "Sigmoid":
        # at -|x| nothing overflows, and s (1 - s) loses no digits
        decay = tl.exp(-alpha * tl.abs(x))
        half = _reciprocal(1.0 + decay)
        slope = alpha * decay * half * half
    elif SURROGATE == "ATan":
        scaled = 1.5707963267948966 * alpha * x  # pi / 2
        slope = 0.5 * alpha * _reciprocal(tl.fma(scaled, scaled, 1.0))
    elif SURROGATE == "PiecewiseQuadratic":
        slope = alpha - alpha * alpha * tl.abs(x)
        # not a maximum, which would swallow NaN
        slope = tl.where(slope < 0.0, 0.0, slope)
    elif SURROGATE == "PiecewiseExp":
        slope = 0.5 * alpha * tl.exp(-alpha * tl.abs(x))
    elif SURROGATE == "SoftSign":
        near = _reciprocal(1.0 / alpha + tl.abs(x))
        slope = 0.5 / alpha * near * near
    elif SURROGATE == "SuperSpike":
        near = _reciprocal(1.0 + tl.abs(x))
        slope = alpha * near * near
    else:
        tl.static_assert(SURROGATE == "Erf", "no kernel for this surrogate")
        scaled = alpha * x
        slope = 0.5641895835477563 * alpha * tl.exp(-scaled * scaled)  # 1 / sqrt(pi)
    return slope


@triton.jit(do_not_specialize=["T"])
@no_type_check
def _multi_step_kernel(
    x_seq, v_first, v_threshold, spike_seq, v_seq, h_seq, T, N, C, inner,
    x_stride: tl.int64, spike_stride: tl.int64, v_stride: tl.int64, h_stride: tl.int64,
    tau_inverse: tl.float64, fire_ratio: tl.float64,
    EVERY_V: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    threshold = tl.load(v_threshold + n // inner % C, mask, other=1.0)
    M: tl.constexpr = threshold.dtype
    keep = tl.full([], tau_inverse, M)
    fire_threshold = tl.full([], fire_ratio, M) * threshold
    v = tl.load(v_first + n, mask, other=0.0)
    for t in range(T):
        x = tl.load(x_seq + t * x_stride + n, mask, other=0.0)
        h = v * keep + x.to(M)
        spike = _fire(h, fire_threshold)
        v = h - spike * threshold
        tl.store(spike_seq + t * spike_stride + n, spike.to(x.dtype), mask)
        if h_seq is not None:
            tl.store(h_seq + t * h_stride + n, h, mask)
        if EVERY_V:
            tl.store(v_seq + t * v_stride + n, v, mask)
    if not EVERY_V:
        tl.store(v_seq + n, v, mask)


@triton.jit(do_not_specialize=["T"])
@no_type_check
def _multi_step_backward_kernel(
    grad_spike_seq, grad_v_seq, h_seq, grad_x_seq, v_threshold, grad_v, grad_threshold,
    T, N, C, inner,
    spike_stride: tl.int64, v_stride: tl.int64, h_stride: tl.int64, x_stride: tl.int64,
    tau_inverse: tl.float64, fire_ratio: tl.float64, alpha: tl.float64,
    SURROGATE: tl.constexpr, DETACH_RESET: tl.constexpr, EVERY_V: tl.constexpr,
    INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    threshold = tl.load(v_threshold + n // inner % C, mask, other=1.0)
    M: tl.constexpr = threshold.dtype
    keep = tl.full([], tau_inverse, M)
    rho = tl.full([], fire_ratio, M)
    width = tl.full([], alpha, M)
    fire_threshold = rho * threshold
    of_threshold = tl.full([BLOCK], 0.0, M)
    of_v = tl.full([BLOCK], 0.0, M)
    if not EVERY_V:
        of_v = tl.load(grad_v_seq + n, mask, other=0.0)
    for step in range(T):
        t = T - 1 - step
        if EVERY_V:
            of_v += tl.load(grad_v_seq + t * v_stride + n, mask, other=0.0)
        h = tl.load(h_seq + t * h_stride + n, mask, other=0.0)
        grad = tl.load(grad_spike_seq + t * spike_stride + n, mask, other=0.0)
        of_spike = grad.to(M)
        if not DETACH_RESET:
            of_spike -= of_v * threshold
        up = of_spike * _slope(h - fire_threshold, width, SURROGATE)
        down = of_spike * _slope(h + fire_threshold, width, SURROGATE)
        of_threshold += rho * (down - up) - of_v * _fire(h, fire_threshold)
        of_v += up + down
        tl.store(grad_x_seq + t * x_stride + n, of_v.to(grad.dtype), mask)
        of_v *= keep
    tl.store(grad_v + n, of_v, mask)
    tl.store(grad_threshold + n, of_threshold, mask)


@triton.jit
@no_type_check
def _code_kernel(
    x_rows, v_threshold, code_rows, R, C, across,
    x_stride: tl.int64, code_stride: tl.int64,
    tau_inverse: tl.float64, fire_ratio: tl.float64,
    WEIGHTS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    c = tl.program_id(0) % across * WIDTH + tl.arange(0, WIDTH)
    threshold = tl.load(v_threshold + c, c < C, other=1.0)[None, :]
    M: tl.constexpr = threshold.dtype
    keep = tl.full([], tau_inverse, M)
    fire_threshold = tl.full([], fire_ratio, M) * threshold
    c = c[None, :]
    r = (tl.program_id(0) // across).to(tl.int64) * HEIGHT
    r += tl.arange(0, HEIGHT)[:, None]
    mask = (r < R) & (c < C)
    x = tl.load(x_rows + r * x_stride + c, mask, other=0.0)
    h = x.to(M)
    value = tl.full([HEIGHT, WIDTH], 0.0, M)
    for t in tl.static_range(len(WEIGHTS)):
        if t > 0:
            h = tl.fma(-spike, threshold, h) * keep
        spike = _fire(h, fire_threshold)
        # these may be fused: a product with -1, 0 or 1 is exact
        value = tl.fma(spike, tl.full([], WEIGHTS[t], M), value)
    tl.store(code_rows + r * code_stride + c, (value * threshold).to(x.dtype), mask)


@triton.jit
@no_type_check
def _code_backward_kernel(
    grad_rows, x_rows, grad_x_rows, v_threshold, partial, R, C, across, tiles,
    grad_stride: tl.int64, x_stride: tl.int64, grad_x_stride: tl.int64,
    tau_inverse: tl.float64, fire_ratio: tl.float64,
    alpha: tl.float64, limit: tl.float64,
    WEIGHTS: tl.constexpr, SURROGATE: tl.constexpr, DETACH_RESET: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """With u = x / V the code is y = V f(u): dy/dx = f'(u), dy/dV = f(u) - u f'(u)."""
    c = tl.program_id(0) % across * WIDTH + tl.arange(0, WIDTH)
    slab = (tl.program_id(0) // across).to(tl.int64)
    threshold = tl.load(v_threshold + c, c < C, other=1.0)[None, :]
    M: tl.constexpr = threshold.dtype
    keep = tl.full([], tau_inverse, M)
    rho = tl.full([], fire_ratio, M)
    width = tl.full([], alpha, M)
    fire_threshold = rho * threshold
    reach = tl.full([], limit, M) * threshold
    unit = 1.0 / threshold
    of_threshold = tl.full([HEIGHT, WIDTH], 0.0, M)
    for tile in range(tiles):
        r = (slab * tiles + tile) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
        mask = (r < R) & (c[None, :] < C)
        x = tl.load(x_rows + r * x_stride + c[None, :], mask, other=0.0)
        grad = tl.load(grad_rows + r * grad_stride + c[None, :], mask, other=0.0)
        h = x.to(M)
        u = h * unit
        value = tl.full([HEIGHT, WIDTH], 0.0, M)
        slope = tl.full([HEIGHT, WIDTH], 0.0, M)
        h_slope = tl.full([HEIGHT, WIDTH], 1.0, M)
        if SURROGATE is None:
            slope = (tl.abs(h) <= reach).to(M)
        for t in tl.static_range(len(WEIGHTS)):
            if t > 0:
                h = tl.fma(-spike, threshold, h) * keep
            spike = _fire(h, fire_threshold)
            weight = tl.full([], WEIGHTS[t], M)
            value = tl.fma(spike, weight, value)
            if SURROGATE is not None:
                up = _slope(h * unit - rho, width, SURROGATE)
                down = _slope(h * unit + rho, width, SURROGATE)
                spike_slope = (up + down) * h_slope
                slope = tl.fma(spike_slope, weight, slope)
                if not DETACH_RESET:
                    h_slope -= spike_slope
                h_slope *= keep
        of_x = grad.to(M) * slope
        of_x = of_x.to(grad.dtype)
        tl.store(grad_x_rows + r * grad_x_stride + c[None, :], of_x, mask)
        # where the slope is zero an infinite u must not turn into 0 * inf
        share = tl.where(tl.abs(u * slope) < float("inf"), u * slope, 0.0)
        of_threshold += grad.to(M) * (value - share)
    tl.store(partial + slab * C + c, tl.sum(of_threshold, 0), c < C)
