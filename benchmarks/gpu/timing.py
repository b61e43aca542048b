"""Milliseconds on a device, and what its memory can do at best."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

#: bytes that a copy moves to find the bandwidth: far beyond any cache
_COPIED = 2**31


def milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    """The median time of a call that finds its inputs outside the caches."""
    if device.type == "cuda":
        from triton.testing import do_bench

        # do_bench clears the L2 cache before every call
        return do_bench(run, warmup=20, rep=60, return_mode="median")
    return 1e3 * Timer("run()", globals={"run": run}).timeit(3).median


def recorded_milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    """The same of a call whose launches are replayed from a CUDA graph."""
    if device.type != "cuda":
        return milliseconds(run, device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()  # whatever is compiled or allocated once is so now
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return milliseconds(graph.replay, device)


def wall_milliseconds(
    run: Callable[[], Any], device: torch.device, calls: int
) -> float:
    """The median time of a call as a caller waits for it, Python included."""
    taken = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(1e3 * (time.perf_counter() - start))
    return statistics.median(taken[2:])


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    count = _COPIED if device.type == "cuda" else 2**24
    source = torch.randint(-100, 100, (count,), device=device, dtype=torch.int8)
    target = torch.empty_like(source)
    return 2 * count / (1e-3 * milliseconds(lambda: target.copy_(source), device))


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes on the device beyond those that were there before; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def gradients_of(run: Callable[..., Tensor], *inputs: Tensor) -> Callable[[], Any]:
    """A call of `run` and of its backward pass, for half the squares of its output."""

    def both() -> tuple[Tensor, ...]:
        output = run(*inputs)
        return torch.autograd.grad(output, inputs, output.detach())

    return both
