"""The ATMN coder: a dense value becomes T ternary spikes and what they add up to.

This is what stands before a linear projection. The projection of the decoded value is
the weighted sum of the projections of the spikes, so training multiplies once, and an
event-driven machine only adds.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.reference import (
    atmn_code,
    atmn_decode,
    atmn_encode,
    membrane_dtype,
    readout_weights,
)
from mar_snn.neurons.spikes import declare_spikes, is_listening
from mar_snn.neurons.surrogate import (
    SurrogateFunction,
    emits_spikes,
    surrogate_backward,
)

__all__ = ["ATMNCoder", "unit_code"]

Gradient = Literal["straight_through", "surrogate"]


class ATMNCoder(nn.Module):
    """The decoded value of x after T ternary spikes: [..., C] -> [..., C].

    `coder(x)` equals `coder.decode(coder.encode(x))` bit for bit, without building
    the spikes; backward recomputes, so memory does not grow with T. No state is kept
    between calls. One learnable threshold for each channel of the last axis.

    Args:
        num_channels: C, the size of the last axis.
        time_steps: T, spikes for each value.
        tau: a step keeps 1 / tau of the membrane; 0.5 makes binary digits.
        readout: "geometric" weights spike t by tau**t, "sum" by 1.
        fire_ratio: rho, fire at rho V and reset by V.
        v_threshold: the initial threshold of all channels.
        surrogate_function: for gradient="surrogate"; a new `ATan()` if None.
        gradient: "straight_through" passes the gradient where the code does not
            saturate; "surrogate" goes through the T steps in units of the threshold.
        detach_reset: cut the surrogate gradient through the spike in the reset.
        backend: "auto" or "torch".

    Raises:
        ValueError: an argument out of range.
        RuntimeError: a backend that cannot run here.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        time_steps: int = 4,
        tau: float = 0.5,
        readout: str = "geometric",
        fire_ratio: float = 2 / 3,
        v_threshold: float = 1.0,
        surrogate_function: SurrogateFunction | None = None,
        gradient: str = "straight_through",
        detach_reset: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if time_steps < 1:
            raise ValueError(f"time_steps must be at least 1, got {time_steps}")
        if gradient not in get_args(Gradient):
            raise ValueError(
                f"gradient must be 'straight_through' or 'surrogate', got {gradient!r}"
            )
        #: holds the thresholds and the surrogate; the coder never calls it
        self.neuron = ATMNNode(
            tau,
            v_threshold,
            surrogate_function=surrogate_function or surrogate.ATan(),
            detach_reset=detach_reset,
            step_mode="m",
            num_channels=num_channels,
            channel_dim=-1,
            fire_ratio=fire_ratio,
            backend=backend,
        )
        self.num_channels = num_channels
        self.time_steps = time_steps
        self.tau = tau
        self.readout = readout
        self.fire_ratio = fire_ratio
        self.gradient = gradient
        #: w[t] of the read-out
        self.weights = readout_weights(readout, tau, time_steps)

    def forward(
        self, x: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "*batch channels"]:
        """The decoded value of `x`, in its dtype."""
        self._check_channels(x)
        node = self.neuron
        if not emits_spikes(node.surrogate_function):
            return atmn_code(x, node.v_threshold, self.weights, **self._dynamics())
        code = _Code(
            self.weights,
            self.tau,
            self.fire_ratio,
            node.surrogate_function if self.gradient == "surrogate" else None,
            node.detach_reset,
        )
        v_threshold = node.v_threshold.to(membrane_dtype(x.dtype))
        decoded: Tensor = _CodeFunction.apply(x, v_threshold, code).to(x.dtype)
        if is_listening():
            spike_seq = x.new_empty(self.time_steps, *x.shape)
            unit_code(
                x.detach(),
                v_threshold.detach(),
                self.weights,
                self.tau,
                self.fire_ratio,
                spike_seq=spike_seq,
            )
            declare_spikes(self, spike_seq, decoded)
        return decoded

    def encode(
        self, x: Float[Tensor, "*batch channels"]
    ) -> Float[Tensor, "time_steps *batch channels"]:
        """The spikes -1, 0, +1 of an `ATMNNode` that is fed [x, 0, ..., 0]."""
        self._check_channels(x)
        return atmn_encode(
            x,
            self.neuron.v_threshold,
            time_steps=self.time_steps,
            **self._dynamics(),
        )

    def decode(
        self, spike_seq: Float[Tensor, "time_steps *batch channels"]
    ) -> Float[Tensor, "*batch channels"]:
        """The value V sum_t w[t] s[t] of the spikes, in their dtype."""
        if spike_seq.shape[0] != self.time_steps:
            raise ValueError(
                f"expected the spikes of {self.time_steps} time steps on the first "
                f"axis, got the shape {tuple(spike_seq.shape)}"
            )
        self._check_channels(spike_seq)
        return atmn_decode(spike_seq, self.neuron.v_threshold, self.weights)

    def extra_repr(self) -> str:
        return (
            f"{self.num_channels}, time_steps={self.time_steps}, tau={self.tau:.4g}, "
            f"readout={self.readout}, fire_ratio={self.fire_ratio:.4g}, "
            f"gradient={self.gradient}"
        )

    def _check_channels(self, x: Tensor) -> None:
        if not x.is_floating_point():
            raise ValueError(f"expected a floating-point tensor, got {x.dtype}")
        if x.ndim == 0 or x.shape[-1] != self.num_channels:
            raise ValueError(
                f"expected {self.num_channels} channels on the last axis, got the "
                f"shape {tuple(x.shape)}"
            )

    def _dynamics(self) -> dict[str, Any]:
        return {
            "tau": self.tau,
            "fire_ratio": self.fire_ratio,
            "surrogate_function": self.neuron.surrogate_function,
            "detach_reset": self.neuron.detach_reset,
        }


@torch.no_grad()
def unit_code(
    x: Float[Tensor, "*batch channels"],
    v_threshold: Float[Tensor, " channels"],
    weights: tuple[float, ...],
    tau: float,
    fire_ratio: float,
    *,
    spike_seq: Float[Tensor, " T *batch channels"] | None = None,
) -> Float[Tensor, "*batch channels"]:
    """The code f(x / V) = sum_t w[t] s[t]; times V it is the decoded value of `x`.

    No gradient and no [T, ...] tensor: the arithmetic of `reference.atmn_encode` in
    place, bit for bit. Float32 for 16-bit inputs. The spikes are written to `spike_seq`
    where it is given.
    """
    h = x.to(membrane_dtype(x.dtype), copy=True)
    v_threshold = v_threshold.to(h.dtype)
    fire_threshold = fire_ratio * v_threshold
    code = torch.zeros_like(h)
    spike, negative = torch.empty_like(h), torch.empty_like(h)
    for t, weight in enumerate(weights):
        if t > 0:
            h.addcmul_(spike, v_threshold, value=-1.0).mul_(1.0 / tau)
        _ternary_spike_(h, fire_threshold, spike=spike, negative=negative)
        if spike_seq is not None:
            spike_seq[t] = spike
        code.add_(spike, alpha=weight)
    return code


def _ternary_spike_(
    h: Tensor, fire_threshold: Tensor, *, spike: Tensor, negative: Tensor
) -> None:
    """Fill `spike` with the forward of `surrogate.ternary_spike`."""
    # comparisons into floating-point memory: ten times faster than a cast of booleans
    torch.ge(h, fire_threshold, out=spike)
    torch.le(h, -fire_threshold, out=negative)
    spike.sub_(negative)


class _Code(NamedTuple):
    """How a value is coded: everything but the value and the threshold."""

    weights: tuple[float, ...]
    tau: float
    fire_ratio: float
    #: None for the straight-through gradient
    surrogate_function: SurrogateFunction | None
    detach_reset: bool


class _CodeFunction(torch.autograd.Function):
    """y = V f(x / V), with dy/dx = f'(u) and dy/dV = f(u) - u f'(u) at u = x / V."""

    @staticmethod
    def forward(x: Tensor, v_threshold: Tensor, code: _Code) -> Tensor:
        value = unit_code(
            x, v_threshold, code.weights, tau=code.tau, fire_ratio=code.fire_ratio
        )
        # a new tensor: one that was written in place, or cast to the dtype it has,
        # loses its gradient under torch.compile (pytorch/pytorch#180642)
        return value * v_threshold

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, _Code], _output: Tensor
    ) -> None:
        x, v_threshold, ctx.code = inputs
        ctx.save_for_backward(x, v_threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, v_threshold = ctx.saved_tensors
        surrogate_function = ctx.code.surrogate_function
        if surrogate_function is None:
            value, slope = _straight_through(x, v_threshold, ctx.code)
        else:
            value, slope = _through_surrogate(
                x, v_threshold, ctx.code, surrogate_function
            )
        grad_x = grad_threshold = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad * slope).to(x.dtype)
        if ctx.needs_input_grad[1]:
            # where the slope is zero an infinite u must not turn into 0 * inf
            share = (x / v_threshold).mul_(slope).nan_to_num_(0.0, 0.0, 0.0)
            share = torch.sub(value, share, out=share).mul_(grad)
            grad_threshold = share.flatten(0, -2).sum(0) if x.ndim > 1 else share
        return grad_x, grad_threshold, None


def _straight_through(
    x: Tensor, v_threshold: Tensor, code: _Code
) -> tuple[Tensor, Tensor]:
    """f(u), and 1 where the code reaches u, 0 where it saturates.

    The largest value is sum_t w[t]. A code that has one more digit to spend leaves up
    to rho of the last digit uncoded; the largest code is allowed the same.
    """
    weights = code.weights
    value = unit_code(x, v_threshold, weights, tau=code.tau, fire_ratio=code.fire_ratio)
    limit = (sum(weights) + code.fire_ratio * weights[-1]) * v_threshold
    slope = x.to(value.dtype).abs()
    return value, torch.le(slope, limit, out=slope)


def _through_surrogate(
    x: Tensor,
    v_threshold: Tensor,
    code: _Code,
    surrogate_function: SurrogateFunction,
) -> tuple[Tensor, Tensor]:
    """f(u) and f'(u) by the chain rule through the T steps, the surrogate for [.]'.

    u is one number for each output, so the derivative is carried forward beside the
    membrane: no step has to be kept for a way back.
    """
    h = x.to(membrane_dtype(x.dtype), copy=True)
    value, slope = torch.zeros_like(h), torch.zeros_like(h)
    spike, negative = torch.empty_like(h), torch.empty_like(h)
    h_slope = torch.ones_like(h)
    spent_slope: Tensor | float = 0.0
    for t, weight in enumerate(code.weights):
        if t > 0:
            h.addcmul_(spike, v_threshold, value=-1.0).mul_(1.0 / code.tau)
            h_slope.sub_(spent_slope).mul_(1.0 / code.tau)
        _ternary_spike_(
            h, code.fire_ratio * v_threshold, spike=spike, negative=negative
        )
        value.add_(spike, alpha=weight)
        distance = h / v_threshold
        spike_slope = surrogate_backward(
            surrogate_function, h_slope, distance - code.fire_ratio
        ) + surrogate_backward(surrogate_function, h_slope, -distance - code.fire_ratio)
        slope.add_(spike_slope, alpha=weight)
        spent_slope = 0.0 if code.detach_reset else spike_slope
    return value, slope
