"""What counting costs: forward time of the tiny Llamba with and without a counter.

    python benchmarks/energy_overhead.py

Writes benchmarks/results/energy_overhead-<device>.json. Every way to run is timed once
a round, all rounds interleaved, so that a change of the machine's speed hits all alike;
"declared" only listens to the spikes, which the neurons then have to make.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from mar_snn import provenance
from mar_snn.assets import TINY_LLAMBA
from mar_snn.console import show_what_can_be_shown
from mar_snn.energy import SpikeOpCounter
from mar_snn.llamba import LlambaForCausalLM
from mar_snn.neurons.spikes import listen_to_spikes
from mar_snn.spiking import calibrate, spikify

RESULTS = Path(__file__).parent / "results"
#: batch and tokens
SHAPES = ((8, 128), (1, 1))
#: the most that counting may cost, as a multiple of the forward pass at 8 x 128
BUDGET = 2.5


def models(device: torch.device) -> dict[str, LlambaForCausalLM]:
    """The tiny Llamba as it is, and with its neurons calibrated on random tokens."""
    dense, spiking = (
        LlambaForCausalLM.from_pretrained(TINY_LLAMBA, dtype=torch.float32).eval()
        for _ in range(2)
    )
    spikify(spiking)
    calibrate(spiking, [{"input_ids": random_ids(spiking, (8, 128))}])
    return {"dense": dense.to(device), "spiking": spiking.to(device)}


def random_ids(model: LlambaForCausalLM, shape: tuple[int, int]) -> Tensor:
    """Token ids of that shape, on the model's device."""
    vocabulary = model.config.vocab_size
    return torch.randint(0, vocabulary, shape, device=model.device)


def ways(
    model: LlambaForCausalLM,
) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Name -> what the forward pass runs in."""
    return {
        "plain": nullcontext,
        "declared": lambda: listen_to_spikes(lambda _: None),
        "counted": lambda: SpikeOpCounter(model),
    }


@torch.inference_mode()
def seconds(
    model: LlambaForCausalLM,
    ids: Tensor,
    way: Callable[[], AbstractContextManager[Any]],
) -> float:
    """The time of one forward pass, entering and leaving the context included."""
    start = time.perf_counter()
    with way():
        model(ids, use_cache=False)
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def race(model: LlambaForCausalLM, ids: Tensor, rounds: int) -> dict[str, Any]:
    """Milliseconds of each way, and their ratios to the plain forward of the round."""
    times: dict[str, list[float]] = {name: [] for name in ways(model)}
    for _ in range(rounds + 1):
        for name, way in ways(model).items():
            times[name].append(seconds(model, ids, way))
    row: dict[str, Any] = {}
    for name, taken in times.items():
        measured = taken[1:]  # the first round warms up
        ratios = [t / p for t, p in zip(measured, times["plain"][1:], strict=True)]
        row[name] = {
            "ms": 1e3 * statistics.median(measured),
            "ms_range": [1e3 * min(measured), 1e3 * max(measured)],
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return row


def main() -> None:
    """Time everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    cases = [(kind, m, s) for kind, m in models(device).items() for s in SHAPES]
    for kind, model, shape in track(cases, "forward passes"):
        ids = random_ids(model, shape)
        # a short pass needs more rounds to be told from the noise
        rounds = options.rounds * (1 if ids.numel() > 1 else 5)
        case = {"model": kind, "batch": shape[0], "tokens": shape[1], "rounds": rounds}
        rows.append(case | race(model, ids, rounds))
    results = {
        "script": "benchmarks/energy_overhead.py",
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "budget": BUDGET,
        "rows": rows,
    }
    path = RESULTS / f"energy_overhead-{device.type}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_rows(rows)
    print(f"wrote {path}")


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table of medians, with the range of the ratios."""
    table = Table("model", "batch x tokens", "plain ms", "declared", "counted")
    for row in rows:
        ratios = (
            f"{row[way]['ratio']:.2f} ({low:.2f}-{high:.2f})"
            for way in ("declared", "counted")
            for low, high in [row[way]["ratio_range"]]
        )
        shape = f"{row['batch']} x {row['tokens']}"
        table.add_row(row["model"], shape, f"{row['plain']['ms']:.1f}", *ratios)
    Console().print(table)


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
