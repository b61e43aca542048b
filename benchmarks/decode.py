"""What silent neurons save in decoding: single projections, and whole tokens.

    python benchmarks/decode.py [--sections kernels densities tokens] [--threads 1 2]

Writes benchmarks/results/decode-cpu.json or decode-cuda.json.

kernels: the four projections of Llamba-1B. Spikes are drawn anew for every call, and
the matrices of a shape take turns and fill many times the last-level cache. In a round
every way has a few calls, so the ratios are of calls side by side. `ideal` is the share
of 1 / density that was reached against the fastest dense product, PyTorch's or ours.

densities: the share of inputs with at least one spike in the tiny Llamba, calibrated
and not trained, for one to four time steps, and what that does to the perplexity.

tokens: Llamba-1B with random weights, decoding one token after the other. Random
weights have no firing rate of their own: the thresholds are set so that the share of
inputs with at least one spike is the one asked for, or, "calibrated", that of the tiny
model at four steps. What came out is reported.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from decode_densities import calibrated_densities, site_of
from decode_tables import (
    densities_markdown,
    kernels_markdown,
    libraries_markdown,
    tokens_markdown,
)
from rich.progress import track
from torch import Tensor, nn

from mar_snn import SpikingConfig, provenance, spikify
from mar_snn.console import show_what_can_be_shown
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.neurons import ATMNCoder
from mar_snn.sparse import (
    DenseLinear,
    EventLinear,
    dense_linear,
    event_linear,
    optimize_for_decoding,
)
from mar_snn.spiking import coders, projections

RESULTS = Path(__file__).parent / "results"
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
LLAMBA_1B = LlambaConfig(
    vocab_size=128256,
    d_model=2048,
    n_layer=16,
    tie_embeddings=True,
    mlp_cfg={"intermediate_size": 8192},
    ssm_cfg={"d_state": 64, "n_v_heads": 32, "n_qk_heads": 32},
)


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


# ---- kernels


def kernel_rows(threads: int, rounds: int) -> list[dict[str, Any]]:
    """Every shape in every precision at every density."""
    torch.set_num_threads(threads)
    return [
        row | {"threads": threads}
        for weights in ("bfloat16", "float32", "int8")
        for shape in track(SHAPES, f"{weights}, threads: {threads}")
        for row in shape_rows(shape, weights, rounds)
    ]


@torch.inference_mode()
def shape_rows(shape: str, weights: str, rounds: int) -> list[dict[str, Any]]:
    """The ways to multiply one shape, side by side at each density."""
    inputs, outputs = SHAPES[shape]
    dtype = torch.float32 if weights == "float32" else torch.bfloat16
    how = "int8" if weights == "int8" else "same"
    size = inputs * outputs * (1 if how == "int8" else dtype.itemsize)
    linears = [
        nn.Linear(inputs, outputs, bias=False, device=DEVICE, dtype=dtype)
        for _ in range(-(-WORKING_SET // size))
    ]
    events = [EventLinear(linear, weights=how) for linear in linears]
    denses = [DenseLinear(linear, weights=how) for linear in linears]
    dense_ways: dict[str, Callable[[int, Tensor], object]] = {
        "ours": lambda i, x: dense_linear(
            x, denses[i].stored, None, denses[i].weight_scale
        )
    }
    if how == "same":
        dense_ways["torch"] = lambda i, x: F.linear(x, linears[i].weight)
    rows = []
    for density in DENSITIES:
        ways = {f"dense, {name}": way for name, way in dense_ways.items()}
        ways["event-driven"] = lambda i, x: event_linear(
            x, events[i].stored, None, events[i].weight_scale
        )
        if how == "same":
            ways["embedding_bag"] = lambda i, x: embedding_bag(events[i], x)
            ways["index_select"] = lambda i, x: index_select(events[i], x)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        turn = 0
        for _ in range(rounds):
            for name, way in ways.items():
                drawn = [spikes(inputs, density, dtype) for _ in range(BURST)]
                times = []
                for x in drawn:
                    turn += 1  # no way meets weights that another has just read
                    times.append(seconds(partial(way, turn % len(linears), x)))
                taken[name] += times[1:]
        found = {name: quantiles(times) for name, times in taken.items()}
        dense = min(q["us"] for n, q in found.items() if n.startswith("dense"))
        speedup = dense / found["event-driven"]["us"]
        rows.append(
            {
                "shape": shape,
                "inputs": inputs,
                "outputs": outputs,
                "weights": weights,
                "density": density,
                "matrices": len(linears),
                "rounds": rounds,
                "ways": found,
                "speedup": speedup,
                "ideal": speedup * density,
            }
        )
    return rows


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


# ---- tokens


def token_rows(
    config: LlambaConfig, threads: list[int], rounds: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Time of a token for dense and spiking models that take turns."""
    torch.manual_seed(seed)
    teacher = random_llamba(config)
    models = {"dense, torch": teacher, "dense, ours": with_our_products(teacher)}
    for weights in ("same", "int8"):
        student = spikify(sharing_copy(teacher), SpikingConfig(time_steps=4))
        optimize_for_decoding(student, weights=weights, head=weights)
        models[f"spiking, {weights}"] = student
    rows = []
    for density in (*DENSITIES, "calibrated"):
        wanted = calibrated_densities(4)["densities"]
        if density != "calibrated":
            wanted = dict.fromkeys(wanted, density)
        for name, model in models.items():
            if name.startswith("spiking"):
                set_densities(model, wanted)
        for count in threads:
            torch.set_num_threads(count)
            rows.append({"density": density, "threads": count} | race(models, rounds))
    return sorted(rows, key=lambda row: row["threads"])


def random_llamba(config: LlambaConfig) -> LlambaForCausalLM:
    """Llamba of this shape in bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return LlambaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def sharing_copy(model: LlambaForCausalLM) -> LlambaForCausalLM:
    """A model of its own whose parameters are those of `model`."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def with_our_products(model: LlambaForCausalLM) -> LlambaForCausalLM:
    """The dense model by the kernels that spiking ones have for their heads."""
    model = sharing_copy(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, DenseLinear(module))
    return model


@torch.inference_mode()
def set_densities(
    model: LlambaForCausalLM, densities: dict[str, float], tokens: int = 64
) -> None:
    """One threshold a coder, so that this share of its inputs fires at any step."""

    def fit(site: str, coder: ATMNCoder, args: tuple[Tensor]) -> None:
        silent = args[0].float().abs().flatten().quantile(1 - densities[site])
        # the smallest value that fires, at the last step, is rho V tau^(T - 1)
        smallest = coder.fire_ratio * coder.tau ** (coder.time_steps - 1)
        coder.v_threshold = torch.full_like(coder.v_threshold, silent / smallest)

    hooks = [
        coder.register_forward_pre_hook(partial(fit, site_of(name)))
        for name, coder in coders(model)
    ]
    model(random_tokens(tokens))
    for hook in hooks:
        hook.remove()


def random_tokens(count: int) -> Tensor:
    """Token ids; the weights are random too."""
    return torch.randint(LLAMBA_1B.vocab_size, (1, count), device=DEVICE)


@torch.inference_mode()
def race(models: dict[str, LlambaForCausalLM], rounds: int) -> dict[str, Any]:
    """Each model decodes the same tokens, in turns."""
    prompt = random_tokens(16)
    caches = {name: model(prompt)[CACHE_NAME] for name, model in models.items()}
    taken: dict[str, list[float]] = {name: [] for name in models}
    for call in track(range(rounds + 2), "tokens"):
        token = random_tokens(1)
        for name, model in models.items():
            taken_now = seconds(partial(next_token, model, token, caches[name]))
            if call >= 2:
                taken[name].append(taken_now)
    found = {name: quantiles(times) for name, times in taken.items()}
    dense = {n: q["us"] for n, q in found.items() if n.startswith("dense")}
    spiking = {n: q["us"] for n, q in found.items() if n.startswith("spiking")}
    return {
        "measured_density": {
            name: read_share(models[name], caches[name]) for name in spiking
        },
        "rounds": rounds,
        "models": {
            n: q | {"tokens_per_second": 1e6 / q["us"]} for n, q in found.items()
        },
        "speedup": {n: min(dense.values()) / us for n, us in spiking.items()},
        "speedup_over_torch": {
            n: dense["dense, torch"] / us for n, us in spiking.items()
        },
    }


def next_token(model: LlambaForCausalLM, token: Tensor, cache: Any) -> Tensor:
    """The likeliest token behind this one."""
    return model(token, **{CACHE_NAME: cache}).logits.argmax(-1)


def read_share(model: LlambaForCausalLM, cache: Any, tokens: int = 4) -> float:
    """The share of the projections' weights whose input was not zero."""
    read = total = 0.0

    def look(linear: nn.Linear, args: tuple[Tensor]) -> None:
        nonlocal read, total
        total += linear.out_features * linear.in_features
        read += linear.out_features * int((args[0] != 0).sum())

    hooks = [linear.register_forward_pre_hook(look) for linear in event_linears(model)]
    for _ in range(tokens):
        model(random_tokens(1), **{CACHE_NAME: cache})
    for hook in hooks:
        hook.remove()
    return read / total


def event_linears(model: nn.Module) -> Iterator[nn.Linear]:
    """The projections behind coders."""
    for _, linear, _ in projections(model):
        yield linear


def main() -> None:
    """Measure what was asked for and write it beside what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sections", nargs="+", default=["kernels", "densities", "tokens"]
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=12, help="turns of each way")
    options = parser.parse_args()
    path = RESULTS / f"decode-{DEVICE}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for section in options.sections:
        torch.manual_seed(0)
        if section == "kernels":
            rows = [
                row
                for threads in options.threads
                for row in kernel_rows(threads, options.rounds)
            ]
        elif section == "densities":
            rows = [calibrated_densities(steps) for steps in (1, 2, 3, 4)]
        else:
            rows = token_rows(LLAMBA_1B, options.threads, 2 * options.rounds)
        results |= {
            "script": "benchmarks/decode.py",
            "machine": provenance.machine(),
            "versions": provenance.versions(),
            section: rows,
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {section} to {path}")
    for threads in options.threads:
        if "kernels" in results:
            print(f"threads: {threads}")
            print(kernels_markdown(results["kernels"], threads))
    if "kernels" in results:
        print(libraries_markdown(results["kernels"]))
    if "densities" in results:
        print(densities_markdown(results["densities"]))
    if "tokens" in results:
        print(tokens_markdown(results["tokens"]))


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
