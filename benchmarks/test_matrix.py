"""The tests of numbers, for several seeds, instruction sets and numbers of threads.

    python benchmarks/test_matrix.py --seeds 0 1 2 3 4 --threads 1 2

A table of what failed, and benchmarks/results/test_matrix.json. ATEN_CPU_CAPABILITY
picks the vectors that PyTorch's own kernels use; "unset" is the best that the CPU has.
Other arguments go to pytest: `tests/sparse -k int8` instead of all numbers.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from mar_snn import provenance
from mar_snn.console import show_what_can_be_shown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "test_matrix.json"
#: what compares sums of floats, but for processes and compilers: folder and files
NUMBERS = [
    f"tests/{folder}/test_{name}.py"
    for folder, names in {
        "neurons": "atmn coder lif_coder reference ops native surrogate "
        "spikingjelly_ternary triton_kernels cupy_kernels",
        "llamba": "scan scan_backends documents modeling padding",
        "sparse": "kernels linear projections_c decoding triton_kernels",
        "distill": "losses chunked chunked_precision divergences heads alignment "
        "evaluation triton_divergences",
        "hosts": "view",
    }.items()
    for name in names.split()
]


def main() -> int:
    """Run every cell, print the table; 1 if something failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument(
        "--capabilities", nargs="+", default=["default", "avx2", "unset"]
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options, rest = parser.parse_known_args()
    tests = [] if any(argument.startswith("tests") for argument in rest) else NUMBERS
    command = [
        *("-m", "pytest", "-q", "--tb=line", "-m", "not slow", *tests, *rest),
    ]
    cells: list[dict[str, Any]] = []
    for cell in itertools.product(options.capabilities, options.threads, options.seeds):
        cells.append(run(command, *cell))
        print(describe(cells[-1]), flush=True)
        results = {
            "script": "benchmarks/test_matrix.py",
            "command": ["python", *command],
            "machine": provenance.machine(),
            "versions": provenance.versions(),
            "cells": cells,
        }
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{table(cells, options.seeds)}\n\nwrote {options.output}")
    return int(any(cell["failed"] or cell["status"] for cell in cells))


def run(command: list[str], capability: str, threads: int, seed: int) -> dict[str, Any]:
    """What passed and what failed in one cell."""
    environment = os.environ | {
        "MAR_SNN_TEST_SEED": str(seed),
        "OMP_NUM_THREADS": str(threads),
        "ATEN_CPU_CAPABILITY": capability,
    }
    if capability == "unset":
        del environment["ATEN_CPU_CAPABILITY"]
    start = time.perf_counter()
    found = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    counts = dict.fromkeys(("passed", "failed", "error", "skipped"), 0)
    last = found.stdout.rstrip().rpartition("\n")[2]
    for number, what in re.findall(r"(\d+) (passed|failed|error|skipped)", last):
        counts[what] = int(number)
    return {
        "capability": capability,
        "threads": threads,
        "seed": seed,
        "status": found.returncode,
        "passed": counts["passed"],
        "failed": re.findall(r"(?m)^(?:FAILED|ERROR) (\S+)", found.stdout),
        "skipped": counts["skipped"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def describe(cell: dict[str, Any]) -> str:
    """One line, and one for each test that failed."""
    place = f"{cell['capability']}, threads {cell['threads']}, seed {cell['seed']}"
    line = f"{place}: {cell['passed']} passed, {len(cell['failed'])} failed"
    if cell["status"] and not cell["failed"]:
        line += f", pytest ended with {cell['status']}"
    return "\n    ".join([f"{line}, {cell['seconds']} s", *cell["failed"]])


def table(cells: list[dict[str, Any]], seeds: list[int]) -> str:
    """Markdown: a row for each machine that was simulated, a column for each seed."""
    lines = [
        "| ATEN_CPU_CAPABILITY | threads | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " |",
        "|---|---" + "|---" * len(seeds) + "|",
    ]
    rows = itertools.groupby(cells, lambda cell: (cell["capability"], cell["threads"]))
    for (capability, threads), row in rows:
        found = [f"{len(c['failed'])} of {c['passed'] + len(c['failed'])}" for c in row]
        lines.append(f"| {capability} | {threads} | {' | '.join(found)} |")
    return "failed of all\n\n" + "\n".join(lines)


if __name__ == "__main__":
    show_what_can_be_shown()
    sys.exit(main())
