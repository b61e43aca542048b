"""Which implementation of the neuron's equations runs, and why another one cannot."""

from typing import Literal, get_args

__all__ = ["Backend", "resolve_backend"]

Backend = Literal["auto", "torch", "triton", "cupy"]

_MISSING_KERNEL = {
    "triton": "a Triton kernel would come with PyTorch on Linux",
    "cupy": "a CuPy kernel would need pip install 'mar-snn[cupy]'",
}


def resolve_backend(backend: str) -> str:
    """The backend that runs: "torch", the reference equations on the input's device.

    Args:
        backend: "auto" takes the fastest one there is; a name takes that one or fails.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a known one that this version has no kernel for.
    """
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend must be one of {', '.join(map(repr, get_args(Backend)))}, "
            f"got {backend!r}"
        )
    if backend in _MISSING_KERNEL:
        raise RuntimeError(
            f"backend={backend!r} has no kernel in this version of mar-snn "
            f"({_MISSING_KERNEL[backend]}): use backend='auto' or backend='torch'"
        )
    return "torch"
