"""The scan of Llamba-1B's mixer: PyTorch, compiled PyTorch, fla, mamba_ssm."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu.timing import gradients_of, milliseconds
from mar_snn.llamba.scan import scan, ssd_chunked
from mar_snn.llamba.scan_backends import available_scan_backends

#: as wide as its state
HEADS, HEAD_SIZE = 32, 64
#: rows and tokens
SHAPES = {"cuda": ((4, 2048), (1, 16384)), "cpu": ((1, 64),)}
CHUNKS = (32, 64, 128, 256)

Scan = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Forward, and forward with backward; what is tuned or compiled comes last."""
    for name, run in ways(device).items():
        for dtype in (torch.bfloat16, torch.float32):
            for batch, length in SHAPES[device.type]:
                inputs = problem(device, dtype, batch, length)
                doubles = [t.detach().double() for t in inputs]
                exact = ssd_chunked(*doubles, chunk_size=64)[0]
                with torch.no_grad():
                    error = (run(*inputs).double() - exact).norm() / exact.norm()
                    forward = milliseconds(partial(run, *inputs), device)
                yield {
                    "case": "scan",
                    "name": name,
                    "dtype": str(dtype),
                    "rows": batch,
                    "tokens": length,
                    "error": error.item(),
                    "forward_ms": forward,
                    "ms": milliseconds(gradients_of(run, *inputs), device),
                }


def problem(
    device: torch.device, dtype: torch.dtype, batch: int, length: int
) -> list[Tensor]:
    """The tensors x, B, C and log a, which want a gradient."""
    torch.manual_seed(0)
    shape = (batch, length, HEADS)
    x, b, c = torch.randn(3, *shape, HEAD_SIZE, device=device, dtype=dtype)
    decay = F.logsigmoid(3 - torch.randn(shape, device=device))
    return [t.clone().requires_grad_() for t in (x, b / 8, c, decay)]


def ways(device: torch.device) -> dict[str, Scan]:
    """The output y of every form that can run here."""
    found: dict[str, Scan] = {
        f"chunked, {chunk}": lambda *inputs, chunk=chunk: ssd_chunked(
            *inputs, chunk_size=chunk
        )[0]
        for chunk in CHUNKS
    }
    if device.type == "cuda":
        found["chunked, 64, compiled"] = torch.compile(
            lambda *inputs: ssd_chunked(*inputs, chunk_size=64)[0]
        )
    for name, obstacle in available_scan_backends(device).items():
        if name != "torch" and not obstacle:
            found[name] = lambda *inputs, name=name: scan(*inputs, backend=name)[0]
    return found
