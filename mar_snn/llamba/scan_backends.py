"""Which kernels run the scan, why one cannot, and how each is called.

    fla        chunk_simple_gla, fused_recurrent_simple_gla: the recurrence as it is,
               with q = C, k = B, v = x, g = log a, scale = 1
    mamba_ssm  mamba_chunk_scan_combined: its input is scaled by dt, which is undone
    torch      the forms of `mar_snn.llamba.scan`

The functions here have the arguments and results of `scan.ssd_chunked`; B batch ·
L tokens · H heads · G groups of heads · P head size · N state size.
"""

import functools
import importlib
import logging
import os
from importlib.util import find_spec
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

__all__ = [
    "ENVIRONMENT",
    "ScanBackend",
    "available_scan_backends",
    "check_scan_backend",
    "choose_scan_backend",
    "fla_scan",
    "mamba_ssm_scan",
]

logger = logging.getLogger(__name__)

ScanBackend = Literal["auto", "torch", "fla", "mamba_ssm"]

#: what "auto" stands for, where this environment variable is set
ENVIRONMENT = "MAR_SNN_SCAN_BACKEND"

#: exact before approximate, then fastest first
_PREFERENCE = ("fla", "mamba_ssm", "torch")

_MODULES = {
    "fla": "fla.ops.simple_gla",
    "mamba_ssm": "mamba_ssm.ops.triton.ssd_combined",
}
_INSTALL = {
    "fla": "pip install 'mar-snn[kernels]'",
    "mamba_ssm": "pip install 'mar-snn[mamba]'",
}

#: Up to so many tokens fla's recurrence is faster than its chunks.
_FLA_CHUNK = 64
#: What the released model's config has; the result does not depend on it.
_MAMBA_CHUNK = 128
#: mamba_ssm multiplies x by dt = -log a, so x is divided by it: this keeps x / dt
#: finite, and makes a decay of exp(-1e-6) of all that are nearer to one.
_SMALLEST_DT = 1e-6


def check_scan_backend(backend: str) -> None:
    """Refuse a backend that could run on no device of this machine.

    Raises:
        ValueError: an unknown name.
        RuntimeError: its package is not installed.
    """
    if backend not in get_args(ScanBackend):
        raise ValueError(
            "scan_backend must be one of "
            f"{', '.join(map(repr, get_args(ScanBackend)))}, got {backend!r}"
        )
    if backend in _INSTALL and find_spec(backend) is None:
        raise RuntimeError(
            f"scan_backend={backend!r} needs a package that is not installed "
            f"({_INSTALL[backend]}): install it, or use scan_backend='auto'"
        )


def available_scan_backends(device: torch.device | str) -> dict[str, str]:
    """For every backend: "" where it can run on `device`, or else why it cannot."""
    kind = torch.device(device).type
    return {name: _obstacle(name, kind, torch.float32) for name in _PREFERENCE}


def choose_scan_backend(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that scans tensors of this kind: never "auto".

    "auto" is the first of fla, mamba_ssm and PyTorch that can run, or what the
    environment variable `MAR_SNN_SCAN_BACKEND` names; it is PyTorch inside
    `torch.compile`, whose graph would break at a kernel. Which one it became is logged.

    Raises:
        ValueError: an unknown name.
        RuntimeError: a backend asked for by name cannot run there.
    """
    graph = torch.compiler.is_compiling()
    return _chosen(backend, device_type, dtype, graph, torch.compiler.is_exporting())


@torch.compiler.assume_constant_result  # one name for all runs of a graph
def _chosen(
    backend: str, device_type: str, dtype: torch.dtype, graph: bool, exporting: bool
) -> str:
    """`choose_scan_backend`, told whether a graph is made and whether it leaves."""
    if backend == "auto":
        backend = os.environ.get(ENVIRONMENT, backend)
    if exporting and backend in _INSTALL:
        raise RuntimeError(
            f"scan_backend={backend!r} cannot be exported: use 'torch' or 'auto'"
        )
    if backend == "auto" and graph:
        return "torch"
    return _found(backend, device_type, dtype)


@functools.cache
def _found(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend of this name, or the one that "auto" finds; says once which."""
    check_scan_backend(backend)
    if backend == "auto":
        for name in _PREFERENCE:
            obstacle = _obstacle(name, device_type, dtype)
            if not obstacle:
                logger.info("Llamba scans on %s with %r", device_type, name)
                return name
            if device_type == "cuda":
                logger.info("Llamba does not scan with %r: %s", name, obstacle)
    if obstacle := _obstacle(backend, device_type, dtype):
        raise RuntimeError(
            f"scan_backend={backend!r} cannot run here: {obstacle}; use 'auto' or "
            "'torch'"
        )
    return backend


def _obstacle(backend: str, device_type: str, dtype: torch.dtype) -> str:
    """Why `backend` cannot scan tensors of this kind; "" if it can."""
    if backend == "torch":
        return ""
    if find_spec(backend) is None:
        return f"it is not installed ({_INSTALL[backend]})"
    if device_type != "cuda":
        return f"its kernels run on GPUs, the tensors are on {device_type}"
    if dtype == torch.float64:
        return "its kernels compute in float32, the tensors are float64"
    return _import_error(_MODULES[backend])


@functools.cache
def _import_error(module: str) -> str:
    """Why `module` cannot be imported; "" if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  compiled packages fail in any way
        return f"importing {module} failed: {type(error).__name__}: {error}"
    return ""


def fla_scan(
    x: Float[Tensor, "B L H P"],
    b: Float[Tensor, "B L G N"],
    c: Float[Tensor, "B L G N"],
    log_decay: Float[Tensor, "B L H"],
    state: Float[Tensor, "B H P N"] | None = None,
    *,
    seq_idx: Int[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B H P N"]]:
    """(y in x's dtype, last state in float32) by fla; documents are rows of their own.

    Where there are documents, their number is read from the device.
    """
    fla = importlib.import_module(_MODULES["fla"])
    batch, length, heads, _ = x.shape
    short = length <= _FLA_CHUNK
    scan = fla.fused_recurrent_simple_gla if short else fla.chunk_simple_gla
    if b.shape[2] != heads:
        b, c = (t.repeat_interleave(heads // t.shape[2], dim=2) for t in (b, c))
    tensors = {"q": c.to(x.dtype), "k": b.to(x.dtype), "v": x, "g": log_decay.float()}
    # fla's states are [N, P]
    state = None if state is None else state.float().mT.contiguous()
    if seq_idx is None:
        y, last = scan(
            **tensors, scale=1.0, initial_state=state, output_final_state=True
        )
        return y, last.mT
    first = seq_idx.diff(dim=1, prepend=seq_idx[:, :1] - 1) != 0
    starts = first.flatten().nonzero().squeeze(1)
    if state is not None:
        # only the first document of a row goes on from the row's state
        begins_row = (starts % length == 0)[:, None, None, None]
        state = torch.where(begins_row, state[starts // length], 0)
    y, last = scan(
        **{name: t.flatten(0, 1)[None] for name, t in tensors.items()},
        scale=1.0,
        initial_state=state,
        output_final_state=True,
        cu_seqlens=F.pad(starts, (0, 1), value=batch * length),
    )
    of_rows = first.sum(1).cumsum(0) - 1
    return y[0].unflatten(0, (batch, length)), last[of_rows].mT


def mamba_ssm_scan(
    x: Float[Tensor, "B L H P"],
    b: Float[Tensor, "B L G N"],
    c: Float[Tensor, "B L G N"],
    log_decay: Float[Tensor, "B L H"],
    state: Float[Tensor, "B H P N"] | None = None,
    *,
    seq_idx: Int[Tensor, "B L"] | None = None,
) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B H P N"]]:
    """(y, last state), all in float32, by mamba_ssm.

    The kernel computes a = exp(-dt) and adds dt x ⊗ B, so it gets x / dt; dt is at
    least 1e-6, which moves decays nearer to one than that to exp(-1e-6). Only where
    nothing is added either, as at padding, it is zero and the state stays as it is.
    """
    mamba_ssm = importlib.import_module(_MODULES["mamba_ssm"])
    dt = (-log_decay.float()).clamp_min(_SMALLEST_DT)
    x = x.float() / dt[..., None]
    dt = dt.masked_fill((log_decay == 0) & ~x.any(-1), 0)
    return mamba_ssm.mamba_chunk_scan_combined(
        x=x,
        dt=dt,
        A=dt.new_full(dt.shape[-1:], -1.0),
        B=b.float(),
        C=c.float(),
        chunk_size=_MAMBA_CHUNK,
        initial_states=None if state is None else state.float(),
        # the state goes to the document number 0
        seq_idx=None if seq_idx is None else (seq_idx - seq_idx[:, :1]).int(),
        return_final_states=True,
    )
