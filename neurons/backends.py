"""Which kernels run the equations: what every backend offers, and why one cannot run.

Each backend is a module with the four functions of `Kernels`. They get dense rows, and
memory to fill: shapes, strides and gradients are the business of `ops`.
"""

import functools
import importlib
import logging
import os
from importlib.util import find_spec
from typing import Literal, NamedTuple, Protocol, cast, get_args, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mar_snn.neurons import native
from mar_snn.neurons.surrogate import (
    KERNEL_SURROGATES,
    SurrogateFunction,
    emits_spikes,
    kernel_surrogate,
)

__all__ = [
    "ENVIRONMENT",
    "Backend",
    "Dynamics",
    "Kernels",
    "available_backends",
    "check_backend",
    "kernels_for",
    "requested_backend",
    "surrogate_for_kernels",
]

logger = logging.getLogger(__name__)

Backend = Literal["auto", "torch", "native", "triton", "cupy"]
_NAMES: tuple[str, ...] = get_args(Backend)

#: what "auto" stands for, where this environment variable is set
ENVIRONMENT = "MAR_SNN_BACKEND"

#: fastest first; "auto" leaves out "native", which compiles C at its first use
_PREFERENCE = ("triton", "cupy", "native", "torch")

_INSTALL = {
    "triton": "Triton comes with PyTorch on Linux, elsewhere: pip install triton",
    "cupy": "pip install 'mar-snn[cupy]'",
}


class Dynamics(NamedTuple):
    """How the neurons of a call behave, beside their threshold."""

    tau: float
    fire_ratio: float
    #: one of `surrogate.KERNEL_SURROGATES`; None, in codes: straight through
    surrogate: str | None
    #: the width parameter of the surrogate
    alpha: float
    detach_reset: bool


@runtime_checkable
class Kernels(Protocol):
    """The equations of `reference` on rows whose last axis has stride 1.

    M is the dtype of the membrane: float64 for float64 inputs, float32 for all others.
    Everything is of dtype M but x, spikes, codes and their gradients, which are of the
    input's. Neuron n has the threshold v_threshold[n // inner % C]. A kernel writes
    every element of the keyword arguments whose name begins with `out_`; it neither
    waits for the device nor changes anything else.
    """

    def multi_step(
        self,
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

    def multi_step_backward(
        self,
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

    def code(
        self,
        x: Float[Tensor, "R C"],
        v_threshold: Float[Tensor, " C"],
        weights: tuple[float, ...],
        dynamics: Dynamics,
        *,
        out_code: Float[Tensor, "R C"],
    ) -> None:
        """V sum_t w[t] s[t] for every x, fed at the first of the T steps."""

    def code_backward(
        self,
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


def check_backend(backend: str) -> None:
    """Refuse a backend that could run on no device of this machine.

    Raises:
        ValueError: an unknown name.
        RuntimeError: its package or its compiler is not installed.
    """
    if backend not in _NAMES:
        raise ValueError(
            f"backend must be one of {', '.join(map(repr, _NAMES))}, got {backend!r}"
        )
    if backend in _INSTALL and find_spec(backend) is None:
        raise RuntimeError(
            f"backend={backend!r} needs a package that is not installed "
            f"({_INSTALL[backend]}): install it, or use backend='auto'"
        )
    if backend == "native" and (why := native.obstacle()):
        raise RuntimeError(
            f"backend='native' cannot run here: {why}; or use backend='auto'"
        )


def available_backends(device: torch.device | str) -> dict[str, str]:
    """For every backend: "" where it can run on `device`, or else why it cannot."""
    return {name: _obstacle(name, torch.device(device).type) for name in _PREFERENCE}


def requested_backend(backend: str) -> str:
    """What was asked for by name, with `MAR_SNN_BACKEND` in the place of "auto".

    Raises:
        ValueError: the environment names none that there is; empty, it names nothing.
    """
    named = os.environ.get(ENVIRONMENT, "").strip()
    if backend != "auto" or not named:
        return backend
    if named not in _NAMES:
        raise ValueError(
            f"the environment variable {ENVIRONMENT} must be one of "
            f"{', '.join(map(repr, _NAMES))}, got {named!r}"
        )
    return named


@functools.cache
def kernels_for(backend: str, device_type: str) -> Kernels:
    """The kernels of `backend` for tensors on devices of this type.

    "auto" is the fastest that can run; which one it became is logged once.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a backend asked for by name cannot run there.
    """
    check_backend(backend)
    if backend == "auto":
        # on the CPU Triton only interprets
        usable = ("triton", "cupy", "torch") if device_type == "cuda" else ("torch",)
        backend = next(n for n in usable if not _obstacle(n, device_type))
        logger.info("ATMN runs on %s with backend=%r", device_type, backend)
    elif obstacle := _obstacle(backend, device_type):
        raise RuntimeError(
            f"backend={backend!r} cannot run here: {obstacle}; use backend='auto', or "
            "one of "
            + ", ".join(repr(n) for n in _PREFERENCE if not _obstacle(n, device_type))
        )
    return cast(Kernels, importlib.import_module(f"mar_snn.neurons.{backend}_kernels"))


def _obstacle(backend: str, device_type: str) -> str:
    """Why `backend` cannot run on devices of this type; "" if it can."""
    if backend == "torch":
        return ""
    if backend == "native":
        on_cpu = device_type == "cpu"
        elsewhere = f"C kernels run on the CPU, the tensors are on {device_type}"
        return native.obstacle() if on_cpu else elsewhere
    if find_spec(backend) is None:
        return f"it is not installed ({_INSTALL[backend]})"
    if backend == "triton":
        # the interpreter runs kernels on the CPU, slowly: for tests and debugging
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if device_type != "cuda" and not interpreted:
            return f"Triton kernels run on GPUs, the tensors are on {device_type}"
    elif device_type != "cuda" or torch.version.hip is not None:
        return f"CUDA kernels run on NVIDIA GPUs, the tensors are on {device_type}"
    return ""


def surrogate_for_kernels(
    surrogate_function: SurrogateFunction, backend: str
) -> tuple[str, float] | None:
    """The name and alpha by which kernels know it; None: the reference has to run.

    Raises:
        RuntimeError: "triton" or "cupy" was asked for, and has no kernel for it.
    """
    known = kernel_surrogate(surrogate_function)
    # the smooth primitive is for looking at, not for speed
    if known is None and emits_spikes(surrogate_function):
        _tell_that_there_is_no_kernel(type(surrogate_function).__name__, backend)
    return known


_reported: set[str] = set()


@torch.compiler.assume_constant_result  # speaks while a graph is traced, too
def _tell_that_there_is_no_kernel(surrogate: str, backend: str) -> None:
    """Raise where a kernel was asked for by name, or else say it once."""
    if backend in _INSTALL:
        raise RuntimeError(
            f"backend={backend!r} has no kernel for the surrogate {surrogate}: use "
            f"backend='auto', or one of {', '.join(KERNEL_SURROGATES)} of "
            "spikingjelly.activation_based.surrogate with a number for alpha"
        )
    if surrogate not in _reported:
        _reported.add(surrogate)
        logger.warning(
            "the surrogate %s has no kernel: its neurons run the reference equations, "
            "which take more time and memory",
            surrogate,
        )
