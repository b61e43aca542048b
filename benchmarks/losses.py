"""Memory, precision and time of the chunked loss beside the dense one, on a CPU.

    python benchmarks/losses.py [--sections precision time memory]

Writes benchmarks/results/losses-cpu.json, section by section. Every memory is measured
in a process of its own: the kernel's high-water mark of its resident set (VmHWM, reset
when inputs and heads are there and touched), minus what it was then, over a forward and
backward pass with gradients of hidden states and head. The dense loss at 4,096 tokens
fits on few machines: its memory is the line through two smaller counts of tokens, and
the row says so.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from mar_snn import provenance
from mar_snn.console import show_what_can_be_shown
from mar_snn.distill import bidirectional_kl, chunked_bidirectional_kl

RESULTS = Path(__file__).parent / "results"
#: Llamba-1B's
VOCABULARY, HIDDEN = 128_256, 2_048
TOKENS = 4_096
#: loss, tokens, dtype
MEMORY = (
    ("dense", 512, "float32"),
    ("dense", 1024, "float32"),
    ("dense", TOKENS, "float32"),  # 17 GB
    ("chunked", 256, "float32"),
    ("chunked", 512, "float32"),
    ("chunked", TOKENS, "float32"),
    ("chunked", 256, "bfloat16"),
)
#: KL in nats that student and teacher are brought apart
NATS = (1.0, 0.1, 0.01)
SEEDS = (0, 1, 2)


def dense(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor) -> Tensor:
    """The loss from logits in the dtype of the head."""
    with torch.no_grad():
        wanted = teacher_hidden @ weight.T
    return bidirectional_kl(hidden @ weight.T, wanted).loss


def dense_in_float32(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor) -> Tensor:
    """The loss from logits that no one rounded."""
    return dense(hidden.float(), weight.float(), teacher_hidden.float())


def chunked(hidden: Tensor, weight: Tensor, teacher_hidden: Tensor) -> Tensor:
    """The loss without logits."""
    return chunked_bidirectional_kl(hidden, weight, teacher_hidden, weight).loss


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "dense": dense,
    "dense, float32 logits": dense_in_float32,
    "chunked": chunked,
}


# ---- memory


def resident(field: str) -> int:
    """Bytes of this process, from VmRSS (now) or VmHWM (the most so far)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (row for row in status.splitlines() if row.startswith(field))
    return int(line.split()[1]) * 1024


def measure(name: str, tokens: int, dtype: str) -> dict[str, float]:
    """Peak bytes above the inputs, and seconds, of one forward and backward pass."""
    weight = torch.empty(VOCABULARY, HIDDEN, dtype=getattr(torch, dtype))
    weight.normal_(std=0.05).requires_grad_()
    hidden, teacher_hidden = torch.randn(2, tokens, HIDDEN).to(weight.dtype)
    hidden = hidden.clone().requires_grad_()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, start = resident("VmRSS"), time.perf_counter()
    LOSSES[name](hidden, weight, teacher_hidden).backward()
    seconds = time.perf_counter() - start
    return {"peak_bytes": resident("VmHWM") - before, "seconds": seconds}


def memory_rows() -> list[dict[str, Any]]:
    """What every loss takes at every number of tokens, one process each."""
    rows = []
    for name, tokens, dtype in track(MEMORY, "memory"):
        command = [sys.executable, __file__, "--measure", name, str(tokens), dtype]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        row = {"loss": name, "tokens": tokens, "dtype": dtype}
        rows.append(row | json.loads(run.stdout))
    return rows


# ---- precision


def precision_rows() -> list[dict[str, Any]]:
    """Errors of the gradients from bfloat16 inputs, against float64 on the same."""
    cases = [(nats, seed) for nats in NATS for seed in SEEDS]
    return [row for case in track(cases, "precision") for row in errors(*case)]


def errors(nats: float, seed: int, tokens: int = 32) -> list[dict[str, Any]]:
    """The relative L2 errors of the gradients of one student."""
    generator = torch.Generator().manual_seed(seed)
    width, spread = 128, 4.4  # which leave the teacher four nats of entropy
    weight = torch.randn(VOCABULARY, width, generator=generator) * spread / width**0.5
    teacher_hidden = torch.randn(tokens, width, generator=generator)
    noise = torch.randn(tokens, width, generator=generator)
    hidden = teacher_hidden + (2 * nats) ** 0.5 / spread * noise
    inputs = [part.bfloat16() for part in (hidden, weight, teacher_hidden)]
    exact_inputs = [part.double() for part in inputs]
    exact = gradients(dense, exact_inputs)
    teacher = (exact_inputs[2] @ exact_inputs[1].T).log_softmax(-1)
    student = (exact_inputs[0] @ exact_inputs[1].T).log_softmax(-1)
    p = teacher.exp()
    common = {
        "nats": nats,
        "seed": seed,
        "forward_kl": (p * (teacher - student)).sum(-1).mean().item(),
        "teacher_entropy": -(p * teacher).sum(-1).mean().item(),
    }
    rows = []
    for name, loss in LOSSES.items():
        found = gradients(loss, inputs)
        error = [
            ((mine.double() - other).norm() / other.norm()).item()
            for mine, other in zip(found, exact, strict=True)
        ]
        rows.append(common | {"loss": name, "hidden": error[0], "head": error[1]})
    return rows


def gradients(
    loss: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of hidden states and head."""
    hidden, weight, teacher_hidden = (part.clone() for part in inputs)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    return torch.autograd.grad(loss(hidden, weight, teacher_hidden), leaves)


# ---- time


def time_row(rounds: int = 7) -> dict[str, Any]:
    """Seconds of dense and chunked passes, alternating, and ratios within a round."""
    tokens, vocabulary, width = 512, 32_000, 1_024
    inputs = [
        torch.randn(shape, width) / width**0.5 for shape in (tokens, vocabulary, tokens)
    ]
    ways: dict[str, Callable[[], Any]] = {
        "dense": lambda: gradients(dense, inputs),
        "chunked": lambda: gradients(chunked, inputs),
        # what a backward pass that makes the scores again would add
        "scores": lambda: chunked(*inputs),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in track(range(rounds + 1), "time"):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    # the first round warms up
    rows = list(zip(*taken.values(), strict=True))[1:]
    ratios = [ours / theirs for theirs, ours, _ in rows]
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "hidden": width,
        "rounds": rounds,
        "seconds": {name: statistics.median(taken[name][1:]) for name in ways},
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "recomputing": statistics.median((o + scores) / o for _, o, scores in rows),
    }


# ---- results


def memory_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/losses.md."""
    lines = ["| loss | dtype | tokens | peak memory |", "|---|---|---|---|"]
    for row in sorted(rows, key=lambda r: (r["dtype"], r["loss"], r["tokens"])):
        peak = f"{row['peak_bytes'] / 1e9:.2f} GB"
        lines.append(f"| {row['loss']} | {row['dtype']} | {row['tokens']:,} | {peak} |")
    return "\n".join(lines)


def precision_markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/losses.md: means over seeds of the larger error of the two."""
    lines = [
        "| KL, nats | " + " | ".join(LOSSES) + " |",
        "|---" * (1 + len(LOSSES)) + "|",
    ]
    for nats in NATS:
        cells = [
            statistics.fmean(
                100 * max(row["hidden"], row["head"])
                for row in rows
                if (row["nats"], row["loss"]) == (nats, name)
            )
            for name in LOSSES
        ]
        kl = statistics.fmean(r["forward_kl"] for r in rows if r["nats"] == nats)
        lines.append(f"| {kl:.3f} | " + " | ".join(f"{c:.2f} %" for c in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for and write it beside what is there."""
    sections = {"precision": precision_rows, "time": time_row, "memory": memory_rows}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    parser.add_argument("--measure", nargs=3, metavar=("LOSS", "TOKENS", "DTYPE"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if options.measure:
        name, tokens, dtype = options.measure
        print(json.dumps(measure(name, int(tokens), dtype)))
        return
    path = RESULTS / "losses-cpu.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for section in options.sections:
        results |= {
            "script": "benchmarks/losses.py",
            "machine": provenance.machine(),
            "versions": provenance.versions(),
            "vocabulary": VOCABULARY,
            "hidden": HIDDEN,
            section: sections[section](),
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {section} to {path}")
    if results.keys() >= sections.keys():
        print(memory_markdown(results["memory"]))
        print(precision_markdown(results["precision"]))


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
