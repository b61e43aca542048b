"""The loss at Llamba-1B's vocabulary: time and memory, dense and chunked."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpu.timing import milliseconds, peak_bytes
from mar_snn.distill import bidirectional_kl, chunked_bidirectional_kl

#: words, width, tokens
SHAPE = {"cuda": (128_256, 2_048, 4_096), "cpu": (512, 32, 64)}

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Forward and backward of every way, for gradients of hidden states and head."""
    words, width, tokens = SHAPE[device.type]
    for dtype in (torch.bfloat16, torch.float32):
        weight = 0.05 * torch.randn(words, width, device=device)
        weight = weight.to(dtype).requires_grad_()
        hidden, teacher = torch.randn(2, tokens, width, device=device).to(dtype)
        hidden = hidden.clone().requires_grad_()
        for name, loss in ways(device).items():
            run = gradients(loss, hidden, weight, teacher)
            run()
            yield {
                "case": "loss",
                "dtype": str(dtype),
                "tokens": tokens,
                "words": words,
                "name": name,
                "loss": loss(hidden, weight, teacher).item(),
                "ms": milliseconds(run, device),
                "peak_bytes": peak_bytes(run, device),
            }


def gradients(loss: Loss, hidden: Tensor, weight: Tensor, teacher: Tensor) -> Any:
    """A call of the loss and of its backward pass."""
    return lambda: torch.autograd.grad(loss(hidden, weight, teacher), (hidden, weight))


def ways(device: torch.device) -> dict[str, Loss]:
    """Loss of hidden states, head and the teacher's hidden states."""

    def dense(hidden: Tensor, weight: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = teacher @ weight.T
        return bidirectional_kl(hidden @ weight.T, wanted).loss

    def chunked(backend: str) -> Loss:
        return lambda hidden, weight, teacher: (
            chunked_bidirectional_kl(
                hidden, weight, teacher, weight, backend=backend
            ).loss
        )

    found = {"dense": dense, "chunked, torch": chunked("torch")}
    if device.type == "cuda":
        found["chunked, triton"] = chunked("triton")
        found["dense, compiled"] = torch.compile(dense)
    return found
