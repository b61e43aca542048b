"""Time of the chunked scan beside transformers' Mamba-2 chunk scan, and of a step.

    python benchmarks/scan.py [--rounds 7]

Writes benchmarks/results/scan-cpu.json. Both compute one recurrence on tensors of
Llamba-1B's mixer: transformers' scales its input by dt, so it gets x / dt, and
dt = -log a with A = -1; outputs and gradients are compared first. All is timed in turn
within a round, and ratios are taken within a round. With one thread it is the time of
the CPU, which other processes disturb less than that of the clock. A step is what a
block of Llamba-1B takes for one token, with made-up outputs of its projections.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from mar_snn import provenance
from mar_snn.console import show_what_can_be_shown
from mar_snn.llamba import LlambaCache, LlambaConfig
from mar_snn.llamba.modeling_llamba import LlambaBlock
from mar_snn.llamba.scan import CPU_CHUNK, ssd_chunked

RESULT = Path(__file__).parent / "results" / "scan-cpu.json"
#: Llamba-1B's: as many groups as heads
HEADS, HEAD_SIZE, STATE_SIZE = 32, 64, 64
LENGTHS = (512, 2048)
CHUNKS = (32, 64, 128)
#: threads, mean of A_log, denormal numbers flushed to zero by the CPU. A decay is
#: sigmoid(-A_log): tokens are remembered at -3 and forgotten at 3, where products of
#: decays inside a chunk would be denormal numbers.
SETTINGS = ((1, -3, False), (2, -3, False), (1, 3, False), (1, 3, True))

Scan = Callable[..., tuple[Tensor, Tensor]]


def ours(
    x: Tensor, b: Tensor, c: Tensor, log_decay: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """(y, last state) by mar_snn."""
    return ssd_chunked(x, b, c, log_decay, chunk_size=chunk_size)


def theirs(
    scaled: Tensor, b: Tensor, c: Tensor, dt: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """(y, last state) by transformers, from x / dt and dt."""
    minus_one = dt.new_full(dt.shape[-1:], -1.0)
    return mamba2_chunk_scan(
        scaled, dt, minus_one, b, c, chunk_size, return_final_states=True
    )


SCANS: dict[str, Scan] = {"mar_snn": ours, "transformers": theirs}


def problem(length: int, mean: float, seed: int = 0) -> dict[str, tuple[Tensor, ...]]:
    """The inputs of each scan, which make them compute the same."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, length, HEADS)
    x = torch.randn(*shape, HEAD_SIZE, generator=generator)
    b, c = torch.randn(2, *shape, STATE_SIZE, generator=generator) / STATE_SIZE**0.25
    a_log = mean + torch.randn(shape, generator=generator)
    log_decay = F.logsigmoid(-a_log)
    dt = -log_decay
    inputs = {
        "mar_snn": (x, b, c, log_decay),
        "transformers": (x / dt[..., None], b, c, dt),
    }
    return {name: tuple(map(leaf, tensors)) for name, tensors in inputs.items()}


def leaf(tensor: Tensor) -> Tensor:
    """A contiguous tensor that wants a gradient."""
    return tensor.detach().clone().requires_grad_()


def backward(
    outputs: tuple[Tensor, Tensor], inputs: tuple[Tensor, ...]
) -> list[Tensor]:
    """Gradients of half the squares of y and the last state."""
    return list(torch.autograd.grad(outputs, inputs, [o.detach() for o in outputs]))


def largest_difference(length: int, mean: float) -> float:
    """Of outputs and gradients, relative to the largest number of each."""
    results = {}
    for name, (x, b, c, rate) in problem(length, mean).items():
        outputs = SCANS[name](x, b, c, rate, CPU_CHUNK)
        d_x, d_b, d_c, d_rate = backward(outputs, (x, b, c, rate))
        if name == "transformers":
            # back to x and log a, of which x / dt and dt = -log a were made
            d_rate = (d_x * x).sum(-1) / rate - d_rate
            d_x = d_x / rate[..., None]
        results[name] = [*outputs, d_x, d_b, d_c, d_rate]
    return max(
        ((one - other).abs().max() / other.abs().max()).item()
        for one, other in zip(*results.values(), strict=True)
    )


def measured(length: int, mean: float) -> Iterator[tuple[str, int, float, float]]:
    """(scan, chunk, seconds of forward, of forward and backward), one after another."""
    inputs = problem(length, mean)
    alone = torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    for chunk in CHUNKS:
        for name, scan in SCANS.items():
            start = clock()
            with torch.no_grad():
                scan(*inputs[name], chunk)
            between = clock()
            backward(scan(*inputs[name], chunk), inputs[name])
            end = clock()
            yield name, chunk, between - start, end - between


def rows_of(
    threads: int, mean: int, flush: bool, rounds: int, step: Callable[[], None]
) -> list[dict[str, Any]]:
    """The rows of one setting: medians, ranges and ratios within a round."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(flush)
    rows = []
    for length in LENGTHS:
        taken: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(rounds + 1):
            for name, chunk, *seconds in measured(length, mean):
                taken.setdefault((name, chunk), []).append((seconds[0], seconds[1]))
            step()
        # the first round warms up
        both = {key: [pair[1] for pair in pairs[1:]] for key, pairs in taken.items()}
        best = min(CHUNKS, key=lambda q: statistics.median(both["transformers", q]))
        for (name, chunk), pairs in taken.items():
            ratios = [
                reference / mine
                for reference, mine in zip(
                    both["transformers", best], both[name, chunk], strict=True
                )
            ]
            rows.append(
                {
                    "threads": threads,
                    "mean_a_log": mean,
                    "flush_denormal": flush,
                    "length": length,
                    "scan": name,
                    "chunk": chunk,
                    "forward": statistics.median(pair[0] for pair in pairs[1:]),
                    "both": statistics.median(both[name, chunk]),
                    "both_range": [min(both[name, chunk]), max(both[name, chunk])],
                    # transformers' best chunk over this one
                    "speedup": statistics.median(ratios),
                    "speedup_range": [min(ratios), max(ratios)],
                }
            )
    return rows


class Made(nn.Module):
    """A projection that costs nothing: the same output whatever comes in."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.bias = None
        self.output = torch.randn(1, 1, projection.out_features)

    def forward(self, x: Tensor) -> Tensor:  # noqa: ARG002
        """What was made up at the start."""
        return self.output


@torch.no_grad()
def step_row(calls: int = 2000) -> dict[str, Any]:
    """Quartiles of a block's microseconds for one token, without projections."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)
    block = LlambaBlock(LlambaConfig(), 0).eval()
    for owner in (block.mixer, block.mlp):
        for name, module in list(owner.named_children()):
            if isinstance(module, nn.Linear):
                setattr(owner, name, Made(module))
    cache, h = LlambaCache(1), torch.randn(1, 1, block.input_layernorm.weight.numel())
    row: dict[str, Any] = {"calls": calls}
    for name, step in (("eager", block), ("compiled", torch.compile(block))):
        taken = []
        for _ in range(calls + 100):  # the first ones compile and warm up
            start = time.perf_counter()
            step(h, cache)
            taken.append(1e6 * (time.perf_counter() - start))
        row[name] = dict(
            zip(
                ("low", "median", "high"),
                statistics.quantiles(taken[100:], n=4),
                strict=True,
            )
        )
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/model.md: forward and backward in milliseconds."""
    chunks = [f"{name}, {chunk}" for name in SCANS for chunk in CHUNKS]
    lines = [
        "| tokens | threads | A | " + " | ".join(chunks) + " |",
        "|---" * (3 + len(chunks)) + "|",
    ]
    plain = [row for row in rows if not row["flush_denormal"]]
    for threads, mean, flush in SETTINGS:
        for length in LENGTHS if not flush else ():
            cells = [
                f"{1e3 * row['both']:.0f}"
                for name in SCANS
                for chunk in CHUNKS
                for row in plain
                if (row["threads"], row["mean_a_log"]) == (threads, mean)
                and (row["length"], row["scan"], row["chunk"]) == (length, name, chunk)
            ]
            lines.append(
                f"| {length} | {threads} | {mean} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Compare, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    difference = max(largest_difference(LENGTHS[0], mean) for mean in (-3, 3))
    rows = []
    with Progress() as progress:
        task = progress.add_task(
            "scan", total=len(SETTINGS) * len(LENGTHS) * (rounds + 1)
        )
        for setting in SETTINGS:
            rows += rows_of(*setting, rounds, lambda: progress.advance(task))
    results = {
        "script": "benchmarks/scan.py",
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "shape": {"heads": HEADS, "head_size": HEAD_SIZE, "state_size": STATE_SIZE},
        "rounds": rounds,
        "seed": 0,
        "default_chunk": CPU_CHUNK,
        "largest_difference": difference,
        "step": step_row(),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULT}")
    print(markdown(rows))
    print(results["step"])


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
