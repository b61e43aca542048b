"""The equations of the ATMN neuron and of its code, in plain differentiable PyTorch.

Charge, fire, soft reset (MAR, arXiv 2601.21503; the fire ratio rho is ours, the paper
has rho = 1):

    h[t] = v[t-1] / tau + x[t]
    s[t] = [h[t] >= rho V] - [h[t] <= -rho V]
    v[t] = h[t] - s[t] V

A value is coded by feeding it at the first step only and read out as
y = V sum_t w[t] s[t]. Every kernel must agree with this file.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons.surrogate import SurrogateFunction, ternary_spike

__all__ = [
    "atmn_code",
    "atmn_decode",
    "atmn_encode",
    "atmn_multi_step",
    "atmn_step",
    "membrane_dtype",
    "readout_weights",
    "saturation",
]


def membrane_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the membrane for inputs of `dtype`: at least float32.

    Raises:
        ValueError: for integers, which have no place for a spike of -1 or for a part of
            a threshold, and whatever else is not a number of 16 bits or more.
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(
            f"expected a floating-point tensor, got {dtype}: neurons take float16, "
            "bfloat16, float32 and float64, convert it with .float()"
        )
    return torch.promote_types(dtype, torch.float32)


def atmn_step(
    x: Float[Tensor, "*neurons"],
    v: Float[Tensor, "*neurons"],
    v_threshold: Float[Tensor, "*#neurons"],
    *,
    tau: float,
    fire_ratio: float = 1.0,
    surrogate_function: SurrogateFunction,
    detach_reset: bool = False,
) -> tuple[Float[Tensor, "*neurons"], Float[Tensor, "*neurons"]]:
    """The spikes of one step in the dtype of `x`, and the membrane after the reset.

    The membrane is float32 for 16-bit inputs and of the input's dtype otherwise.
    `detach_reset` cuts the gradient through the spike in the reset, nothing else.
    """
    dtype = membrane_dtype(x.dtype)
    v_threshold = v_threshold.to(dtype)
    # a product, not a quotient: CUDA divides by a number through its reciprocal,
    # so only the product gives the same bits on every device
    h = v.to(dtype) * (1.0 / tau) + x.to(dtype)
    spike = ternary_spike(h, fire_ratio * v_threshold, surrogate_function)
    spent = spike.detach() if detach_reset else spike
    return spike.to(x.dtype), h - spent * v_threshold


def atmn_multi_step(
    x_seq: Float[Tensor, " T *neurons"],
    v: Float[Tensor, "*neurons"],
    v_threshold: Float[Tensor, "*#neurons"],
    *,
    tau: float,
    fire_ratio: float = 1.0,
    surrogate_function: SurrogateFunction,
    detach_reset: bool = False,
    store_v_seq: bool = False,
) -> tuple[
    Float[Tensor, " T *neurons"],
    Float[Tensor, "*neurons"],
    Float[Tensor, " T *neurons"] | None,
]:
    """The spikes of T steps, the last membrane and, if asked for, all of them.

    Raises:
        ValueError: `x_seq` has no time step.
    """
    if x_seq.shape[0] == 0:
        raise ValueError(
            f"x_seq holds no time step, its shape is {tuple(x_seq.shape)}: "
            "the first axis is time and needs at least one entry"
        )
    spikes, voltages = [], []
    # unbind, not x_seq[t]: the backward of an index fills a whole [T, ...] tensor with
    # zeros for each step, which makes training quadratic in T
    for x in x_seq.unbind():
        spike, v = atmn_step(
            x,
            v,
            v_threshold,
            tau=tau,
            fire_ratio=fire_ratio,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
        )
        spikes.append(spike)
        if store_v_seq:
            voltages.append(v)
    return torch.stack(spikes), v, torch.stack(voltages) if store_v_seq else None


def readout_weights(readout: str, tau: float, time_steps: int) -> tuple[float, ...]:
    """The weights w[t]: tau**t ("geometric", undoes the dynamics) or 1 ("sum").

    Raises:
        ValueError: an unknown read-out.
    """
    if readout == "geometric":
        return tuple(tau**t for t in range(time_steps))
    if readout == "sum":
        return (1.0,) * time_steps
    raise ValueError(f"readout must be 'geometric' or 'sum', got {readout!r}")


def saturation(weights: Sequence[float], fire_ratio: float) -> float:
    """The largest |x / V| that is still coded, sum_t w[t] + rho w[T-1].

    The largest code is the sum. A code that has one more digit to spend leaves up to
    rho of the last digit uncoded; the largest code is allowed the same.
    """
    return sum(weights) + fire_ratio * weights[-1]


def atmn_encode(
    x: Float[Tensor, "*neurons"],
    v_threshold: Float[Tensor, "*#neurons"],
    *,
    time_steps: int,
    tau: float,
    fire_ratio: float = 1.0,
    surrogate_function: SurrogateFunction,
    detach_reset: bool = False,
) -> Float[Tensor, " T *neurons"]:
    """The spikes of a resting neuron that is fed [x, 0, ..., 0].

    The surrogate sees membranes in units of the threshold, so its width follows V.
    """
    width = v_threshold.to(membrane_dtype(x.dtype))

    def surrogate_in_threshold_units(distance: Tensor) -> Tensor:
        return surrogate_function(distance / width)

    silence = torch.zeros_like(x)
    spike_seq, _, _ = atmn_multi_step(
        torch.stack([x] + [silence] * (time_steps - 1)),
        silence,
        v_threshold,
        tau=tau,
        fire_ratio=fire_ratio,
        surrogate_function=surrogate_in_threshold_units,
        detach_reset=detach_reset,
    )
    return spike_seq


def atmn_decode(
    spike_seq: Float[Tensor, " T *neurons"],
    v_threshold: Float[Tensor, "*#neurons"],
    weights: Sequence[float],
) -> Float[Tensor, "*neurons"]:
    """The value y = V sum_t w[t] s[t], summed in float32 or wider, first step first."""
    dtype = membrane_dtype(spike_seq.dtype)
    code = torch.zeros_like(spike_seq[0], dtype=dtype)
    for weight, spike in zip(weights, spike_seq.unbind(), strict=True):
        code = code + weight * spike.to(dtype)
    return (code * v_threshold.to(dtype)).to(spike_seq.dtype)


def atmn_code(
    x: Float[Tensor, "*neurons"],
    v_threshold: Float[Tensor, "*#neurons"],
    weights: Sequence[float],
    *,
    tau: float,
    fire_ratio: float = 1.0,
    surrogate_function: SurrogateFunction | None,
    detach_reset: bool = False,
) -> Float[Tensor, "*neurons"]:
    """What decoding returns of encoded `x`.

    The gradient goes through the T steps, or without a surrogate straight through: as
    if y were x up to the saturation, and constant in x beyond. y = V f(x / V) in both.
    """
    spike_seq = atmn_encode(
        x,
        v_threshold,
        time_steps=len(weights),
        tau=tau,
        fire_ratio=fire_ratio,
        surrogate_function=surrogate_function or _silent_step,
        detach_reset=detach_reset,
    )
    code = atmn_decode(spike_seq, v_threshold, weights)
    if surrogate_function is not None:
        return code
    dtype = membrane_dtype(x.dtype)
    limit = saturation(weights, fire_ratio) * v_threshold.to(dtype)
    reached = torch.where(x.to(dtype).abs() <= limit, x.to(dtype), 0.0)
    ratio = reached / v_threshold.to(dtype)
    return code + (v_threshold.to(dtype) * (ratio - ratio.detach())).to(x.dtype)


def _silent_step(x: Tensor) -> Tensor:
    """The step function, 1 from zero on, without a gradient."""
    return (x.detach() >= 0).to(x.dtype)
