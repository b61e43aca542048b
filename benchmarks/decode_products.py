"""Times of single products with the projections of a decoding step, side by side."""

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from mar_snn.neurons import native
from mar_snn.sparse import DenseLinear, EventLinear, dense_linear, event_linear

__all__ = [
    "DENSITIES",
    "DEVICE",
    "SHAPES",
    "WORKING_SET",
    "kernel_rows",
    "quantiles",
    "seconds",
]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: inputs, outputs
SHAPES = {
    "in_proj": (2048, 8224),
    "out_proj": (2048, 2048),
    "gate_proj": (2048, 8192),
    "down_proj": (8192, 2048),
}
DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.1)
#: calls of one way in a row, as a model makes them; the first finds its code evicted
BURST = 7
#: bytes of the matrices that take turns: many times a last-level cache
WORKING_SET = 2**29


def kernel_rows(
    shapes: Mapping[str, tuple[int, int]],
    threads: list[int],
    rounds: int,
    working_set: int = WORKING_SET,
) -> list[dict[str, Any]]:
    """Every shape in every precision at every density."""
    rows = [
        {"shape": shape, "inputs": inputs, "outputs": outputs, "weights": weights} | row
        for weights in ("bfloat16", "float32", "int8")
        for shape, (inputs, outputs) in track(shapes.items(), weights)
        for row in shape_rows(inputs, outputs, weights, threads, rounds, working_set)
    ]
    return sorted(rows, key=lambda row: row["threads"])


@torch.inference_mode()
def shape_rows(
    inputs: int,
    outputs: int,
    weights: str,
    threads: list[int],
    rounds: int,
    working_set: int,
) -> Iterator[dict[str, Any]]:
    """The ways to multiply one shape, side by side at each density."""
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    how = "int8" if weights == "int8" else "same"
    size = inputs * outputs * (1 if how == "int8" else dtype.itemsize)
    linears = [
        nn.Linear(inputs, outputs, bias=False, device=DEVICE, dtype=dtype)
        for _ in range(-(-working_set // size))
    ]
    events = [EventLinear(linear, weights=how) for linear in linears]
    denses = [DenseLinear(linear, weights=how) for linear in linears]
    ways: dict[str, Callable[[int, Tensor], object]] = {
        "dense, ours": lambda i, x: dense_linear(
            x, denses[i].stored, None, denses[i].weight_scale
        ),
        "event-driven": lambda i, x: event_linear(
            x, events[i].stored, None, events[i].weight_scale
        ),
    }
    if how == "same":
        ways["dense, torch"] = lambda i, x: F.linear(x, linears[i].weight)
        ways["embedding_bag"] = lambda i, x: embedding_bag(events[i], x)
        ways["index_select"] = lambda i, x: index_select(events[i], x)
    elif DEVICE == "cpu":
        scales = [dense.weight_scale.to(dtype) for dense in denses]
        ways["dense, torch"] = lambda i, x: torch._weight_int8pack_mm(
            x, denses[i].stored, scales[i]
        )
    if DEVICE == "cpu" and not native.obstacle():
        ways["read"] = lambda i, _: read(denses[i].stored)
    for count, density in product(threads, DENSITIES):
        torch.set_num_threads(count)
        found = side_by_side(
            ways, len(linears), partial(spikes, inputs, density, dtype), rounds
        )
        dense = min(q["us"] for name, q in found.items() if name.startswith("dense"))
        speedup = dense / found["event-driven"]["us"]
        yield {
            "density": density,
            "matrices": len(linears),
            "rounds": rounds,
            "ways": found,
            "speedup": speedup,
            "ideal": speedup * density,
            "threads": count,
        }


def side_by_side(
    ways: Mapping[str, Callable[[int, Tensor], object]],
    matrices: int,
    draw: Callable[[], Tensor],
    rounds: int,
) -> dict[str, dict[str, float]]:
    """Times of one call of each way, which take turns, as the matrices do."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    turn = 0
    for _ in range(rounds):
        for name, way in ways.items():
            times = []
            for x in [draw() for _ in range(BURST)]:
                turn += 1  # no way meets weights that another has just read
                times.append(seconds(partial(way, turn % matrices, x)))
            taken[name] += times[1:]
    return {name: quantiles(times) for name, times in taken.items()}


def spikes(inputs: int, density: float, dtype: torch.dtype) -> Tensor:
    """A decoded row of this density, each one other neurons."""
    x = torch.zeros(1, inputs, device=DEVICE, dtype=dtype)
    fired = torch.randperm(inputs, device=DEVICE)[: round(density * inputs)]
    x[0, fired] = torch.randint(1, 16, fired.shape, device=DEVICE).to(dtype) / 8
    return x


def embedding_bag(linear: EventLinear, x: Tensor) -> Tensor:
    """PyTorch's weighted sum of chosen rows, as a library has it."""
    (active,) = x[0].nonzero(as_tuple=True)
    factors = x[0, active]
    return F.embedding_bag(
        active[None], linear.weight.t(), per_sample_weights=factors[None], mode="sum"
    )


def index_select(linear: EventLinear, x: Tensor) -> Tensor:
    """The product with a copy of the chosen rows."""
    (active,) = x[0].nonzero(as_tuple=True)
    return x[:, active] @ linear.weight.t().index_select(0, active)


def read(weight: Tensor) -> None:
    """Fetch all of a matrix from memory."""
    read_loop()(weight.data_ptr(), weight.nbytes, torch.get_num_threads())


@cache
def read_loop() -> Any:
    """The function of decode_read.c; declared, it takes plain integers."""
    function = native.load(Path(__file__).with_name("decode_read.c")).read_all
    function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    function.restype = ctypes.c_uint64
    return function


def seconds(way: Callable[[], object]) -> float:
    """Of one call, until the device is done."""
    start = time.perf_counter()
    way()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def quantiles(times: list[float]) -> dict[str, float]:
    """Microseconds: the median, and the quarters around it."""
    low, median, high = statistics.quantiles([1e6 * t for t in times], n=4)
    return {"us": median, "us_low": low, "us_high": high}
