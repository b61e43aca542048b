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

HEADS, HEAD_SIZE, STATE_SIZE = 32, 64, 64
#: rows and tokens
SHAPES = {"cuda": ((4, 2048), (1, 16384)), "cpu": ((1, 64),)}
CHUNKS = (32, 64, 128, 256)

Scan = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Forward, and forward with backward, in both dtypes."""
    for dtype in (torch.bfloat16, torch.float32):
        for batch, length in SHAPES[device.type]:
            x, b, c = torch.randn(
                3, batch, length, HEADS, HEAD_SIZE, device=device, dtype=dtype
            )
            a_log = torch.randn(batch, length, HEADS, device=device) - 3
            decay = F.logsigmoid(-a_log)
            inputs = [t.clone().requires_grad_() for t in (x, b / 8, c, decay)]
            doubles = [t.detach().double() for t in inputs]
            exact = ssd_chunked(*doubles, chunk_size=64)[0]
            for name, run in ways(device).items():
                with torch.no_grad():
                    y = run(*inputs)
                    forward = milliseconds(partial(run, *inputs), device)
                error = (y.double() - exact).norm() / exact.norm()
                yield {
                    "case": "scan",
                    "dtype": str(dtype),
                    "rows": batch,
                    "tokens": length,
                    "name": name,
                    "error": error.item(),
                    "forward_ms": forward,
                    "ms": milliseconds(gradients_of(run, *inputs), device),
                }


def ways(device: torch.device) -> dict[str, Scan]:
    """The output y of every form that can run here."""
    found: dict[str, Scan] = {
        name: lambda *inputs, name=name: scan(*inputs, backend=name)[0]
        for name, obstacle in available_scan_backends(device).items()
        if not obstacle
    }
    for chunk in CHUNKS:
        found[f"chunked, {chunk}"] = lambda *inputs, chunk=chunk: ssd_chunked(
            *inputs, chunk_size=chunk
        )[0]
    if device.type == "cuda":
        found["chunked, 64, compiled"] = torch.compile(
            lambda *inputs: ssd_chunked(*inputs, chunk_size=64)[0]
        )
    return found
