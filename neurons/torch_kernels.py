"""The equations of `reference` in PyTorch, in place and tile by tile, on any device.

No tensor with a time axis beyond those asked for, and on the CPU no step that leaves
the cache. The arithmetic is the reference's, operation by operation: spikes, membranes
and codes are the same bits.
"""

import math
from collections.abc import Callable, Iterator

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
    rho, steps = dynamics.fire_ratio, len(h_seq)
    for tile, threshold in beside.tiles(grad_v):
        fire_threshold = rho * threshold
        grad, spike, negative, up, down = _buffers(grad_v[tile], 5)
        of_v, of_threshold = grad_v[tile].zero_(), grad_threshold[tile].zero_()
        for t in reversed(range(steps)):
            if len(grad_v_seq) == steps:
                of_v.add_(grad_v_seq[t][tile])
            elif t == steps - 1:
                of_v.copy_(grad_v_seq[0][tile])
            h = h_seq[t][tile]
            _fire(h, fire_threshold, spike, negative)
            grad.copy_(grad_spike_seq[t][tile])
            if not dynamics.detach_reset:
                grad.addcmul_(of_v, threshold, value=-1.0)
            torch.sub(h, fire_threshold, out=up)
            torch.neg(h, out=down).sub_(fire_threshold)
            for side in (up, down):
                _surrogate_slope_(side, dynamics).mul_(grad)
            of_threshold.addcmul_(of_v, spike, value=-1.0)
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
    value, slope = torch.zeros_like(h), torch.zeros_like(h)
    h_slope = torch.ones_like(h)
    spike, up, down = _buffers(h, 3)
    for t, weight in enumerate(weights):
        if t > 0:
            h.addcmul_(spike, v_threshold, value=-1.0).mul_(1.0 / dynamics.tau)
            if not dynamics.detach_reset:
                h_slope.sub_(up)
            h_slope.mul_(1.0 / dynamics.tau)
        _fire(h, fire_threshold, spike, up)
        value.add_(spike, alpha=weight)
        torch.div(h, v_threshold, out=up)
        torch.neg(up, out=down)
        for side in (up, down):
            _surrogate_slope_(side.sub_(dynamics.fire_ratio), dynamics)
        up.add_(down).mul_(h_slope)
        slope.add_(up, alpha=weight)
    return value, slope


def _fire(h: Tensor, fire_threshold: Tensor, spike: Tensor, negative: Tensor) -> None:
    """Fill `spike` with [h >= fire_threshold] - [h <= -fire_threshold]."""
    # comparisons into floating-point memory: ten times faster than a cast of booleans
    torch.ge(h, fire_threshold, out=spike)
    torch.le(h, -fire_threshold, out=negative)
    spike.sub_(negative)


#: surrogate -> its derivative at x, written over x; the formulas are SpikingJelly's
_SLOPES: dict[str, Callable[[Tensor, float], Tensor]] = {
    # s (1 - s) is even: at -|x| nothing cancels in s - s ** 2
    "Sigmoid": lambda x, alpha: _minus_square_(x.abs_().mul_(-alpha).sigmoid_()).mul_(
        alpha
    ),
    "ATan": lambda x, alpha: (
        x.mul_(math.pi / 2 * alpha).square_().add_(1).reciprocal_().mul_(alpha / 2)
    ),
    "PiecewiseQuadratic": lambda x, alpha: (
        x.abs_().mul_(-(alpha**2)).add_(alpha).clamp_min_(0)
    ),
    "PiecewiseExp": lambda x, alpha: x.abs_().mul_(-alpha).exp_().mul_(alpha / 2),
    "SoftSign": lambda x, alpha: (
        x.abs_().add_(1 / alpha).square_().mul_(2 * alpha).reciprocal_()
    ),
    "SuperSpike": lambda x, alpha: x.abs_().add_(1).square_().reciprocal_().mul_(alpha),
    "Erf": lambda x, alpha: (
        x.mul_(alpha).square_().neg_().exp_().mul_(alpha / math.sqrt(math.pi))
    ),
}


def _surrogate_slope_(x: Tensor, dynamics: Dynamics) -> Tensor:
    """The derivative of the surrogate at `x`, in the memory of `x`."""
    if dynamics.surrogate is None:
        raise ValueError("only codes have a straight-through gradient, steps have none")
    return _SLOPES[dynamics.surrogate](x, dynamics.alpha)


def _minus_square_(x: Tensor) -> Tensor:
    return torch.addcmul(x, x, x, value=-1.0, out=x)


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
