"""`reference`'s two operations by the fastest kernel: registered with PyTorch.

`torch.ops.mar_snn.atmn_multi_step` and `torch.ops.mar_snn.atmn_code` are opaque to
torch.compile, break no graph and can be captured in a CUDA graph. This file turns
tensors of any layout into the rows that kernels take, and knows which gradient is
whose; what is computed stands in `reference`, and how in the kernels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons import reference
from mar_snn.neurons.backends import (
    Dynamics,
    kernels_for,
    requested_backend,
    surrogate_for_kernels,
)
from mar_snn.neurons.layout import (
    as_channel_rows,
    as_rows,
    channels,
    channels_last_order,
    new_tensor,
    order_of,
    steps_first,
    sum_to_threshold,
)
from mar_snn.neurons.reference import membrane_dtype
from mar_snn.neurons.surrogate import SurrogateFunction

__all__ = ["atmn_code", "atmn_multi_step"]


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
    backend: str = "auto",
) -> tuple[
    Float[Tensor, " T *neurons"],
    Float[Tensor, "*neurons"],
    Float[Tensor, " T *neurons"] | None,
]:
    """The spikes of T steps, the last membrane and, if asked for, all of them.

    `reference.atmn_multi_step` in one kernel, for thresholds that differ along at most
    one axis. Without gradients nothing but the results is written. Inside torch.compile
    on a CPU it is the reference itself, which the compiler fuses.

    Raises:
        ValueError: `x_seq` has no time step or holds integers, or `v` or `v_threshold`
            does not fit.
        RuntimeError: the backend cannot run here, or has no kernel for the surrogate.
    """
    if v.shape != x_seq.shape[1:]:
        raise ValueError(
            f"the membrane v has the shape {tuple(v.shape)}, and a step of x_seq "
            f"{tuple(x_seq.shape[1:])}: they must be the same"
        )
    backend = requested_backend(backend)
    surrogate = surrogate_for_kernels(surrogate_function, backend)
    fused = _is_fused_by_compiler(x_seq, backend)
    if surrogate is None or fused or len(x_seq) == 0:
        return reference.atmn_multi_step(
            x_seq,
            v,
            v_threshold,
            tau=tau,
            fire_ratio=fire_ratio,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            store_v_seq=store_v_seq,
        )
    dtype = membrane_dtype(x_seq.dtype)
    v, v_threshold = v.to(dtype), v_threshold.to(dtype)
    needs_h = torch.is_grad_enabled() and (
        x_seq.requires_grad or v.requires_grad or v_threshold.requires_grad
    )
    spike_seq, v, v_seq, _ = torch.ops.mar_snn.atmn_multi_step(
        x_seq,
        v,
        v_threshold,
        store_v_seq,
        needs_h,
        tau,
        fire_ratio,
        *surrogate,
        detach_reset,
        backend,
    )
    return spike_seq, v, v_seq if store_v_seq else None


def atmn_code(
    x: Float[Tensor, "*batch channels"],
    v_threshold: Float[Tensor, " channels"],
    weights: Sequence[float],
    *,
    tau: float,
    fire_ratio: float = 1.0,
    surrogate_function: SurrogateFunction | None,
    detach_reset: bool = False,
    backend: str = "auto",
) -> Float[Tensor, "*batch channels"]:
    """What decoding returns of encoded `x`.

    `reference.atmn_code` in one kernel for each direction: no spike reaches memory, and
    backward recomputes from x, so what is kept does not grow with T.

    Raises:
        ValueError: `x` holds integers.
        RuntimeError: the backend cannot run here, or has no kernel for the surrogate.
    """
    backend = requested_backend(backend)
    surrogate: tuple[str | None, float] | None = (None, 1.0)
    if surrogate_function is not None:
        surrogate = surrogate_for_kernels(surrogate_function, backend)
    if surrogate is None:
        return reference.atmn_code(
            x,
            v_threshold,
            weights,
            tau=tau,
            fire_ratio=fire_ratio,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
        )
    return torch.ops.mar_snn.atmn_code(
        x,
        v_threshold.to(membrane_dtype(x.dtype)),
        weights,
        tau,
        fire_ratio,
        *surrogate,
        detach_reset,
        backend,
    )


def _is_fused_by_compiler(x_seq: Tensor, backend: str) -> bool:
    """Whether torch.compile makes a better kernel of the reference than ours is.

    On the CPU it writes C++, twice as fast (benchmarks/neurons.py); beyond 16 steps,
    which it unrolls, compiling takes minutes.
    """
    compiles = torch.compiler.is_compiling() and backend == "auto"
    return compiles and x_seq.device.type == "cpu" and len(x_seq) <= 16


# ---- atmn_multi_step


@torch.library.custom_op("mar_snn::atmn_multi_step", mutates_args=())
def _multi_step(
    x_seq: Tensor,
    v: Tensor,
    v_threshold: Tensor,
    store_v_seq: bool,
    store_h_seq: bool,
    tau: float,
    fire_ratio: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    outputs = _multi_step_outputs(x_seq, store_v_seq, store_h_seq)
    spike_seq, v_last, v_seq, h_seq = outputs
    if spike_seq.numel():
        order = order_of(x_seq[0])
        _, inner = channels(v_threshold, v.shape, order)
        kept = v_seq if store_v_seq else v_last.unsqueeze(0)
        with torch.cuda.device_of(x_seq):
            kernels_for(backend, x_seq.device.type).multi_step(
                as_rows(x_seq, order),
                as_rows(v.unsqueeze(0), order)[0],
                v_threshold.flatten(),
                inner,
                Dynamics(tau, fire_ratio, surrogate, alpha, detach_reset),
                out_spike_seq=as_rows(spike_seq, order),
                out_v_seq=as_rows(kept, order),
                out_h_seq=as_rows(h_seq, order) if store_h_seq else None,
            )
        if store_v_seq:
            v_last.copy_(v_seq[-1])
    return outputs


@_multi_step.register_fake
def _multi_step_fake(
    x_seq: Tensor,
    _v: Tensor,
    _v_threshold: Tensor,
    store_v_seq: bool,
    store_h_seq: bool,
    *_how: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _multi_step_outputs(x_seq, store_v_seq, store_h_seq)


def _multi_step_outputs(
    x_seq: Tensor, store_v_seq: bool, store_h_seq: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the spikes, the last membrane, all membranes, and those that fired."""
    order, dtype = order_of(x_seq[0]), membrane_dtype(x_seq.dtype)
    shape, steps = x_seq.shape, steps_first(order)
    nothing = (0, *shape[1:])
    return (
        new_tensor(shape, steps, x_seq, x_seq.dtype),
        new_tensor(shape[1:], order, x_seq, dtype),
        new_tensor(shape if store_v_seq else nothing, steps, x_seq, dtype),
        new_tensor(shape if store_h_seq else nothing, steps, x_seq, dtype),
    )


@torch.library.custom_op("mar_snn::atmn_multi_step_backward", mutates_args=())
def _multi_step_backward(
    grad_spike_seq: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    h_seq: Tensor,
    v_threshold: Tensor,
    dtype: torch.dtype,
    tau: float,
    fire_ratio: float,
    surrogate: str,
    alpha: float,
    detach_reset: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    h = h_seq[0]
    order = order_of(h)
    grad_x_seq = new_tensor(h_seq.shape, steps_first(order), h, dtype)
    grad_v0, of_neurons = (new_tensor(h.shape, order, h, h.dtype) for _ in range(2))
    axis, inner = channels(v_threshold, h.shape, order)
    if h_seq.numel():
        if grad_spike_seq is None:
            grad_spike_seq = torch.zeros_like(h, dtype=dtype).expand_as(h_seq)
        if grad_v is None:
            grad_v = torch.zeros_like(h)
        if grad_v_seq is None or len(grad_v_seq) == 0:  # it was not stored
            grad_v_seq = grad_v.unsqueeze(0)
        else:
            grad_v_seq = grad_v_seq.clone()
            grad_v_seq[-1] += grad_v
        with torch.cuda.device_of(h):
            kernels_for(backend, h.device.type).multi_step_backward(
                as_rows(grad_spike_seq, order),
                as_rows(grad_v_seq, order),
                as_rows(h_seq, order),
                v_threshold.flatten(),
                inner,
                Dynamics(tau, fire_ratio, surrogate, alpha, detach_reset),
                out_grad_x_seq=as_rows(grad_x_seq, order),
                out_grad_v=as_rows(grad_v0.unsqueeze(0), order)[0],
                out_grad_threshold=as_rows(of_neurons.unsqueeze(0), order)[0],
            )
    return grad_x_seq, grad_v0, sum_to_threshold(of_neurons, axis, v_threshold)


@_multi_step_backward.register_fake
def _multi_step_backward_fake(
    _grad_spike_seq: Tensor | None,
    _grad_v: Tensor | None,
    _grad_v_seq: Tensor | None,
    h_seq: Tensor,
    v_threshold: Tensor,
    dtype: torch.dtype,
    *_how: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    order = order_of(h_seq[0])
    return (
        new_tensor(h_seq.shape, steps_first(order), h_seq, dtype),
        new_tensor(h_seq.shape[1:], order, h_seq, h_seq.dtype),
        torch.empty_like(v_threshold),
    )


def _keep_h_seq(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_seq, _, v_threshold, _, _, *ctx.how = inputs
    h_seq = output[3]
    ctx.dtype = x_seq.dtype
    ctx.mark_non_differentiable(h_seq)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h_seq, v_threshold)


def _differentiate_multi_step(
    ctx: Any,
    grad_spike_seq: Tensor | None,
    grad_v: Tensor | None,
    grad_v_seq: Tensor | None,
    _grad_h_seq: None,
) -> tuple[Any, ...]:
    gradients = torch.ops.mar_snn.atmn_multi_step_backward(
        grad_spike_seq, grad_v, grad_v_seq, *ctx.saved_tensors, ctx.dtype, *ctx.how
    )
    return (*gradients, *[None] * 8)


_multi_step.register_autograd(_differentiate_multi_step, setup_context=_keep_h_seq)


# ---- atmn_code


@torch.library.custom_op("mar_snn::atmn_code", mutates_args=())
def _code(
    x: Tensor,
    v_threshold: Tensor,
    weights: Sequence[float],
    tau: float,
    fire_ratio: float,
    surrogate: str | None,
    alpha: float,
    detach_reset: bool,
    backend: str,
) -> Tensor:
    order = channels_last_order(x)
    code = new_tensor(x.shape, order, x, x.dtype)
    if x.numel():
        with torch.cuda.device_of(x):
            kernels_for(backend, x.device.type).code(
                as_channel_rows(x, order),
                v_threshold,
                tuple(weights),
                Dynamics(tau, fire_ratio, surrogate, alpha, detach_reset),
                out_code=as_channel_rows(code, order),
            )
    return code


@_code.register_fake
def _code_fake(x: Tensor, *_how: Any) -> Tensor:
    return new_tensor(x.shape, channels_last_order(x), x, x.dtype)


@torch.library.custom_op("mar_snn::atmn_code_backward", mutates_args=())
def _code_backward(
    grad: Tensor,
    x: Tensor,
    v_threshold: Tensor,
    weights: Sequence[float],
    tau: float,
    fire_ratio: float,
    surrogate: str | None,
    alpha: float,
    detach_reset: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    order = channels_last_order(x)
    grad_x = new_tensor(x.shape, order, x, x.dtype)
    grad_threshold = torch.zeros_like(v_threshold)
    if x.numel():
        with torch.cuda.device_of(x):
            kernels_for(backend, x.device.type).code_backward(
                as_channel_rows(grad, order),
                as_channel_rows(x, order),
                v_threshold,
                tuple(weights),
                Dynamics(tau, fire_ratio, surrogate, alpha, detach_reset),
                out_grad_x=as_channel_rows(grad_x, order),
                out_grad_threshold=grad_threshold,
            )
    return grad_x, grad_threshold


@_code_backward.register_fake
def _code_backward_fake(
    _grad: Tensor, x: Tensor, v_threshold: Tensor, *_how: Any
) -> tuple[Tensor, Tensor]:
    return _code_fake(x), torch.empty_like(v_threshold)


def _keep_x(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, v_threshold, *ctx.how = inputs
    ctx.save_for_backward(x, v_threshold)


def _differentiate_code(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.mar_snn.atmn_code_backward(grad, *ctx.saved_tensors, *ctx.how)
    return (*gradients, *[None] * 7)


_code.register_autograd(_differentiate_code, setup_context=_keep_x)
