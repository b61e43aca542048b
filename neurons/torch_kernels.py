"""The equations of `reference` in PyTorch, in place and tile by tile, on any device.

No tensor with a time axis beyond those asked for, and on the CPU no step that leaves
the cache. The arithmetic is the reference's, operation by operation: spikes, membranes
and codes are the same bits.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons.backends import Dynamics
from mar_snn.neurons.reference import membrane_dtype, saturation

__all__ = ["code", "code_backward", "multi_step", "multi_step_backward"]

#: elements of a tile for each thread: half a dozen such buffers fit a core's cache
_TILE = 65536


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
    beside = _Beside(v_threshold, inner)
    x_seq, v, spike_seq, v_seq = map(beside, (x_seq, v, out_spike_seq, out_v_seq))
    h_seq = None if out_h_seq is None else beside(out_h_seq)
    every = len(v_seq) == len(x_seq)
    for tile, threshold in beside.tiles(v):
        fire_threshold = dynamics.fire_ratio * threshold
        h, spike, negative = _buffers(v[tile], 3)
        before = v[tile]
        for t, x in enumerate(x_seq):
            if h_seq is not None:
                h = h_seq[t][tile]
            torch.mul(before, 1.0 / dynamics.tau, out=h).add_(x[tile])
            _fire(h, fire_threshold, spike, negative)
            spike_seq[t][tile] = spike
            before = v_seq[t if every else 0][tile]
            torch.addcmul(h, spike, threshold, value=-1.0, out=before)


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
    beside = _Beside(v_threshold, inner)
    grad_spike_seq, grad_v_seq = beside(grad_spike_seq), beside(grad_v_seq)
    h_seq, grad_x_seq = beside(h_seq), beside(out_grad_x_seq)
    grad_v, grad_threshold = beside(out_grad_v), beside(out_grad_threshold)
    rho, slope, steps = dynamics.fire_ratio, _slope(dynamics), len(h_seq)
    for tile, threshold in beside.tiles(grad_v):
        fire_threshold = rho * threshold
        scaled = slope.scale * fire_threshold
        grad, spike, up, down = _buffers(grad_v[tile], 4)
        of_v, of_threshold = grad_v[tile].zero_(), grad_threshold[tile].zero_()
        for t in reversed(range(steps)):
            if len(grad_v_seq) == steps:
                of_v.add_(grad_v_seq[t][tile])
            elif t == steps - 1:
                of_v.copy_(grad_v_seq[0][tile])
            h = h_seq[t][tile]
            _fire(h, fire_threshold, spike, negative=up)
            of_threshold.addcmul_(of_v, spike, value=-1.0)
            grad.copy_(grad_spike_seq[t][tile])
            if not dynamics.detach_reset:
                grad.addcmul_(of_v, threshold, value=-1.0)
            grad.mul_(slope.gain)
            slope.times(torch.add(-scaled, h, alpha=slope.scale, out=up), grad)
            slope.times(torch.add(-scaled, h, alpha=-slope.scale, out=down), grad)
            of_threshold.add_(down, alpha=rho).sub_(up, alpha=rho)
            of_v.add_(up).add_(down)
            grad_x_seq[t][tile] = of_v
            of_v.mul_(1.0 / dynamics.tau)


def code(
    x: Float[Tensor, "R C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    dynamics: Dynamics,
    *,
    out_code: Float[Tensor, "R C"],
) -> None:
    """V sum_t w[t] s[t] for every x, fed at the first of the T steps."""
    for rows in _rows(x):
        value = _unit_code(x[rows], v_threshold, weights, dynamics)
        out_code[rows] = value.mul_(v_threshold)


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

    With u = x / V the code is y = V f(u): dy/dx = f'(u) and dy/dV = f(u) - u f'(u).
    """
    differentiate = (
        _straight_through if dynamics.surrogate is None else _through_surrogate
    )
    out_grad_threshold.zero_()
    for rows in _rows(x):
        value, slope = differentiate(x[rows], v_threshold, weights, dynamics)
        torch.mul(grad[rows], slope, out=out_grad_x[rows])
        # where the slope is zero an infinite u must not turn into 0 * inf
        share = (x[rows] / v_threshold).mul_(slope).nan_to_num_(0.0, 0.0, 0.0)
        share = torch.sub(value, share, out=share).mul_(grad[rows])
        out_grad_threshold.add_(share.sum(0))


def _unit_code(
    x: Float[Tensor, "R C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    dynamics: Dynamics,
) -> Float[Tensor, "R C"]:
    """The code in units of the threshold, f(x / V) = sum_t w[t] s[t]."""
    h = x.to(membrane_dtype(x.dtype), copy=True)
    fire_threshold = dynamics.fire_ratio * v_threshold
    spike, negative = _buffers(h, 2)
    value = torch.zeros_like(h)
    for t, weight in enumerate(weights):
        if t > 0:
            h.addcmul_(spike, v_threshold, value=-1.0).mul_(1.0 / dynamics.tau)
        _fire(h, fire_threshold, spike, negative)
        value.add_(spike, alpha=weight)
    return value


def _straight_through(
    x: Float[Tensor, "R C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    dynamics: Dynamics,
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R C"]]:
    """f(u), and 1 where the code reaches u, 0 where it saturates."""
    value = _unit_code(x, v_threshold, weights, dynamics)
    limit = saturation(weights, dynamics.fire_ratio) * v_threshold
    slope = x.to(value.dtype).abs()
    return value, torch.le(slope, limit, out=slope)


def _through_surrogate(
    x: Float[Tensor, "R C"],
    v_threshold: Float[Tensor, " C"],
    weights: tuple[float, ...],
    dynamics: Dynamics,
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R C"]]:
    """f(u) and f'(u) by the chain rule through the T steps, the surrogate for [.]'.

    u is one number for each output, so the derivative is carried forward beside the
    membrane: no step has to be kept for a way back.
    """
    h = x.to(membrane_dtype(x.dtype), copy=True)
    fire_threshold = dynamics.fire_ratio * v_threshold
    slope = _slope(dynamics)
    scale = slope.scale / v_threshold
    scaled_ratio = torch.full_like(v_threshold, slope.scale * dynamics.fire_ratio)
    value, of_u = torch.zeros_like(h), torch.zeros_like(h)
    h_of_u = torch.full_like(h, slope.gain)
    spike, up, down = _buffers(h, 3)
    for t, weight in enumerate(weights):
        if t > 0:
            h.addcmul_(spike, v_threshold, value=-1.0).mul_(1.0 / dynamics.tau)
            if not dynamics.detach_reset:
                h_of_u.sub_(up, alpha=slope.gain)
            h_of_u.mul_(1.0 / dynamics.tau)
        _fire(h, fire_threshold, spike, negative=up)
        value.add_(spike, alpha=weight)
        torch.mul(h, scale, out=up)
        torch.sub(-scaled_ratio, up, out=down)
        slope.times(up.sub_(scaled_ratio), h_of_u)
        slope.times(down, h_of_u)
        of_u.add_(up.add_(down), alpha=weight)
    return value, of_u


def _fire(h: Tensor, fire_threshold: Tensor, spike: Tensor, negative: Tensor) -> None:
    """Fill `spike` with [h >= fire_threshold] - [h <= -fire_threshold]."""
    # comparisons into floating-point memory: ten times faster than a cast of booleans
    torch.ge(h, fire_threshold, out=spike)
    torch.le(h, -fire_threshold, out=negative)
    spike.sub_(negative)


class _Slope(NamedTuple):
    """The derivative of a surrogate: gain shape(scale x), even in x."""

    scale: float
    gain: float
    #: shape(z) times a gradient, in the memory of z
    times: Callable[[Tensor, Tensor], Tensor]


def _slope(dynamics: Dynamics) -> _Slope:
    """SpikingJelly's formulas."""
    alpha = dynamics.alpha
    match dynamics.surrogate:
        case "Sigmoid":
            return _Slope(alpha, alpha, _logistic)
        case "ATan":
            return _Slope(math.pi / 2 * alpha, alpha / 2, _cauchy)
        case "PiecewiseQuadratic":
            return _Slope(alpha, alpha, _triangle)
        case "PiecewiseExp":
            return _Slope(alpha, alpha / 2, _laplace)
        case "SoftSign":
            return _Slope(alpha, alpha / 2, _inverse_square)
        case "SuperSpike":
            return _Slope(1.0, alpha, _inverse_square)
        case "Erf":
            return _Slope(alpha, alpha / math.sqrt(math.pi), _gauss)
    raise ValueError(
        "only codes have a straight-through gradient, steps need a surrogate, "
        f"got {dynamics.surrogate!r}"
    )


def _logistic(z: Tensor, grad: Tensor) -> Tensor:
    torch.ops.aten.sigmoid_backward.grad_input(grad, z.sigmoid_(), grad_input=z)
    return z


def _cauchy(z: Tensor, grad: Tensor) -> Tensor:
    return torch.div(grad, z.square_().add_(1.0), out=z)


def _triangle(z: Tensor, grad: Tensor) -> Tensor:
    return z.abs_().neg_().add_(1.0).clamp_min_(0.0).mul_(grad)


def _laplace(z: Tensor, grad: Tensor) -> Tensor:
    return z.abs_().neg_().exp_().mul_(grad)


def _inverse_square(z: Tensor, grad: Tensor) -> Tensor:
    return torch.div(grad, z.abs_().add_(1.0).square_(), out=z)


def _gauss(z: Tensor, grad: Tensor) -> Tensor:
    return z.square_().neg_().exp_().mul_(grad)


class _Beside:
    """Views [..., N] as [..., N / row, row], where a row repeats the thresholds."""

    def __init__(self, v_threshold: Float[Tensor, " C"], inner: int) -> None:
        self.one = len(v_threshold) == 1
        self.thresholds = (
            v_threshold if self.one else v_threshold.repeat_interleave(inner)
        )

    def __call__(self, neurons: Float[Tensor, "*steps N"]) -> Tensor:
        row = neurons.shape[-1] if self.one else len(self.thresholds)
        return neurons.unflatten(-1, (-1, row))

    def tiles(self, v: Tensor) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """The parts of a view [N / row, row] that are worked on at a time."""
        rows, row = v.shape
        width = min(row, _tile(v))
        height = max(1, _tile(v) // width)
        for left in range(0, row, width):
            columns = slice(left, left + width)
            threshold = self.thresholds if self.one else self.thresholds[columns]
            for top in range(0, rows, height):
                yield (slice(top, top + height), columns), threshold


def _rows(x: Float[Tensor, "R C"]) -> Iterator[slice]:
    height = max(1, _tile(x) // x.shape[1])
    for top in range(0, len(x), height):
        yield slice(top, top + height)


def _tile(x: Tensor) -> int:
    # elsewhere a launch costs more than a trip to memory
    return _TILE * torch.get_num_threads() if x.device.type == "cpu" else x.numel()


def _buffers(like: Tensor, count: int) -> tuple[Tensor, ...]:
    return torch.empty(
        (count, *like.shape), dtype=like.dtype, device=like.device
    ).unbind()
