"""`event_linear` on a GPU: a product that skips the weights of silent inputs.

Each program owns a tile of inputs and outputs. Whether an input fired is read before
its weights, and masks their load, so silent rows cost no traffic; no list of them is
made, nothing waits for the device and a CUDA graph can hold the launch (the layout of
TEAL, arXiv 2408.14690, for spikes).
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["event_linear"]

#: inputs and outputs of a program's tile: many small programs fill the machine
_INPUTS, _OUTPUTS = 64, 256


@triton.jit
def _event_linear(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    scale_ptr,
    y_ptr,
    inputs,
    outputs,
    BATCH: tl.constexpr,
    SCALED: tl.constexpr,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)
    inside = k < inputs
    fires = k < 0
    for b in tl.static_range(BATCH):
        x = tl.load(x_ptr + b * inputs + k, mask=inside, other=0.0)
        fires = fires | (x != 0.0)
    weight = tl.load(
        weight_ptr + k[:, None].to(tl.int64) * outputs + n[None, :],
        mask=fires[:, None] & (n < outputs)[None, :],
        other=0,
        eviction_policy="evict_first",  # no other program reads it
    ).to(tl.float32)
    for b in tl.static_range(BATCH):
        x = tl.load(x_ptr + b * inputs + k, mask=inside, other=0.0).to(tl.float32)
        if SCALED:
            x *= tl.load(scale_ptr + k, mask=inside, other=0.0)
        y = tl.sum(x[:, None] * weight, axis=0)
        tl.atomic_add(y_ptr + b * outputs + n, y, mask=n < outputs, sem="relaxed")


def event_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> Tensor:
    """`kernels.event_linear` without a break-even density, for few rows of x."""
    outputs, inputs = weight.shape
    x, weight = x.contiguous(), weight.t().contiguous()
    batch = x.numel() // inputs
    y = torch.zeros(*x.shape[:-1], outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(outputs, _OUTPUTS), triton.cdiv(inputs, _INPUTS))
    run: Any = _event_linear
    run[grid](
        x,
        weight,
        x if scale is None else scale,
        y,
        inputs,
        outputs,
        BATCH=batch,
        SCALED=scale is not None,
        INPUTS=_INPUTS,
        OUTPUTS=_OUTPUTS,
    )
    if bias is not None:
        y += bias
    return y.to(x.dtype)
