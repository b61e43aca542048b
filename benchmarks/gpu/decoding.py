"""Event-driven products against dense ones, and tokens of a Llamba-1B shape."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from decode import LLAMBA_1B, random_llamba, set_densities, sharing_copy
from torch import Tensor, nn

from gpu.timing import recorded_milliseconds, wall_milliseconds
from mar_snn import SpikingConfig, spikify
from mar_snn.llamba import LlambaConfig
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.sparse import EventLinear, GraphedStep, event_linear, optimize_for_decoding

#: inputs and outputs: Llamba-1B's feed-forward, and that of an 8B model
SHAPES = {
    "cuda": ((2048, 8192), (8192, 2048), (4096, 14336)),
    "cpu": ((64, 96),),
}
DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 1.0)
#: bytes of the matrices that take turns: many times the L2 cache
WORKING_SET = {"cuda": 2**30, "cpu": 2**16}
TINY = LlambaConfig(
    vocab_size=LLAMBA_1B.vocab_size,
    d_model=16,
    n_layer=2,
    mlp_cfg={"intermediate_size": 24},
    ssm_cfg={"d_state": 4, "n_v_heads": 2, "n_qk_heads": 2},
)
SITES = ("mixer.in", "mixer.out", "mlp.in", "mlp.out")


def rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Single products first, then whole models."""
    for weights in ("bfloat16", "int8"):
        for inputs, outputs in SHAPES[device.type]:
            yield from product_rows(device, weights, inputs, outputs)
    yield from token_rows(device)


@torch.inference_mode()
def product_rows(
    device: torch.device, weights: str, inputs: int, outputs: int
) -> Iterator[dict[str, Any]]:
    """One product of one token, of as many matrices as no cache holds."""
    size = inputs * outputs * (2 if weights == "bfloat16" else 1)
    count = max(WORKING_SET[device.type] // size, 1)
    linears = [
        nn.Linear(inputs, outputs, bias=False, device=device, dtype=torch.bfloat16)
        for _ in range(count)
    ]
    events = [
        EventLinear(linear, weights="int8" if weights == "int8" else "same")
        for linear in linears
    ]
    case = {
        "case": "product",
        "weights": weights,
        "inputs": inputs,
        "outputs": outputs,
        "matrices": count,
        "weight_bytes": size,
    }

    def each(run: Callable[[int], Tensor]) -> float:
        def all_of_them() -> None:
            for i in range(count):
                run(i)

        return recorded_milliseconds(all_of_them, device) / count

    x = torch.randn(1, inputs, device=device, dtype=torch.bfloat16)
    dense = each(lambda i: F.linear(x, linears[i].weight))
    yield case | {"name": "dense, bfloat16", "density": 1.0, "ms": dense}
    for density in DENSITIES:
        fires = torch.rand(count, 1, inputs, device=device) < density
        xs = torch.where(fires, torch.randint_like(fires, 1, 16, dtype=x.dtype) / 8, 0)
        ms = each(
            lambda i, xs=xs: event_linear(
                xs[i], events[i].stored, None, events[i].weight_scale
            )
        )
        read = fires.float().mean().item() * size
        yield case | {
            "name": "event-driven",
            "density": density,
            "ms": ms,
            "bytes_per_second": 1e3 * read / ms,
            "speedup": dense / ms,
        }


def token_rows(device: torch.device) -> Iterator[dict[str, Any]]:
    """Milliseconds of a token: dense and spiking, launched and replayed."""
    config = LLAMBA_1B if device.type == "cuda" else TINY
    torch.manual_seed(0)
    teacher = random_llamba(config)
    yield from steps_of(teacher, device, {"name": "dense", "density": 1.0})
    for weights in ("same", "int8"):
        student = spikify(sharing_copy(teacher), SpikingConfig(time_steps=4))
        optimize_for_decoding(student, weights=weights, head=weights, break_even=1.0)
        for density in (0.5, 0.3, 0.1):
            set_densities(student, dict.fromkeys(SITES, density))
            yield from steps_of(
                student, device, {"name": f"spiking, {weights}", "density": density}
            )


@torch.inference_mode()
def steps_of(
    model: Any, device: torch.device, case: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The time of a token, as generate waits for it and from a CUDA graph."""
    words = model.config.vocab_size
    cache = model(torch.randint(words, (1, 16), device=device))[CACHE_NAME]
    token = torch.randint(words, (1, 1), device=device)

    def step() -> None:
        model(token, **{CACHE_NAME: cache})

    case = {"case": "token"} | case
    yield case | {"how": "launched", "ms": wall_milliseconds(step, device, 20)}
    if device.type == "cuda":
        graphed = GraphedStep(model, cache)
        replayed = wall_milliseconds(lambda: graphed(token), device, 50)
        yield case | {"how": "replayed", "ms": replayed}
