"""What is right and how fast on the NVIDIA GPU of this machine: `make gpu`.

    python benchmarks/on_gpu.py [--budget 540] [--parts correctness neurons ...]

Writes benchmarks/results/gpu-<device>.json. Each part is a process with a time limit
of its own and hands over every row as soon as it has it, so whatever was measured is
kept if a part hangs, fails or the machine goes. Nothing is read from the network.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu.tables import markdown

from mar_snn import provenance
from mar_snn.console import show_what_can_be_shown

RESULTS = Path(__file__).parent / "results"
#: seconds of each part, in the order in which they run
SECONDS = {
    "correctness": 60,
    "neurons": 120,
    "losses": 60,
    "scans": 90,
    "decoding": 120,
    "training": 90,
}
#: what an optional package is for
OPTIONAL = {
    "cupy": "the CUDA kernels of neurons and coders",
    "triton": "the Triton kernels",
    "fla": "one backend of the scan",
    "mamba_ssm": "one backend of the scan",
}
#: seconds that a process may take beyond its time, to start and to end a row
GRACE = 30


def main() -> int:
    """Run the parts one after the other; 1 if a comparison failed, 2 without a GPU."""
    options = arguments().parse_args()
    if options.child:
        device = torch.device(options.device)
        return run_part(options.child, device, options.rows, options.budget)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"no NVIDIA GPU that PyTorch {torch.__version__} can use was found, so "
            "there is nothing to measure; --device cpu rehearses every part on tiny "
            "sizes",
            file=sys.stderr,
        )
        return 2
    for package, purpose in OPTIONAL.items():
        if find_spec(package) is None:
            print(f"{package} is not installed: {purpose} will be missing")
    machine = provenance.machine() | {"driver": driver(), "cuda": torch.version.cuda}
    name = machine["device"] if options.device == "cuda" else "rehearsal"
    path = options.output or RESULTS / f"gpu-{name.lower().replace(' ', '-')}.json"
    results: dict[str, Any] = {"script": "benchmarks/on_gpu.py", "parts": {}}
    if path.exists():  # parts that are not run again stay
        results = json.loads(path.read_text(encoding="utf-8"))
    total = sum(SECONDS.values())
    for part in options.parts:
        seconds = SECONDS[part] * options.budget / total
        print(f"{part}: up to {seconds:.0f} s", flush=True)
        child = [sys.executable, __file__, "--child", part, "--device", options.device]
        rows, taken = rows_of(child, seconds)
        results["parts"][part] = {
            "machine": machine,
            "versions": provenance.versions(*filter(find_spec, ("triton",))),
            "seconds": round(taken, 1),
            "rows": rows,
        }
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(summary(results))
    print(f"wrote {path}")
    return int(any(row.get("ok") is False for row in all_rows(results)))


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS))
    parser.add_argument(
        "--budget",
        type=float,
        default=sum(SECONDS.values()),
        help="seconds of all six parts together; the chosen ones keep their shares",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, help="default benchmarks/results/gpu-…")
    parser.add_argument("--child", choices=SECONDS, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser


def driver() -> str | None:
    """The version of the NVIDIA driver, as nvidia-smi names it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def rows_of(command: list[str], seconds: float) -> tuple[list[dict[str, Any]], float]:
    """The rows that a process wrote into `--rows` in time, and how long it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        process = subprocess.Popen(
            [*command, "--rows", path, "--budget", str(seconds)],
            start_new_session=True,
        )
        stopped = None
        try:
            if code := process.wait(seconds + GRACE):
                stopped = f"the process ended with {code}"
        except subprocess.TimeoutExpired:
            stopped = f"stopped after {seconds + GRACE:.0f} s, in the middle of a row"
        finally:
            end_group(process)
        lines = path.read_text(encoding="utf-8") if path.exists() else ""
    # a process that was stopped may leave half a line
    rows = [json.loads(line) for line in lines.splitlines(True) if line[-1:] == "\n"]
    if stopped:
        rows.append({"case": "stopped", "why": stopped})
    return rows, time.monotonic() - start


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def run_part(part: str, device: torch.device, path: Path, seconds: float) -> int:
    """Hand over the rows of a part until its time is up, or until it fails."""
    torch.manual_seed(0)
    with path.open("a", encoding="utf-8") as file:
        try:
            rows = importlib.import_module(f"gpu.{part}").rows(device)
            deadline = time.monotonic() + seconds
            for row in rows:
                file.write(json.dumps(row) + "\n")
                file.flush()
                if time.monotonic() > deadline:
                    file.write(json.dumps({"case": "out of time"}) + "\n")
                    break
        except Exception:  # noqa: BLE001  the next part still has something to say
            why = traceback.format_exc()
            file.write(json.dumps({"case": "error", "ok": False, "why": why}) + "\n")
            return 1
    return 0


def all_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all parts."""
    return [row for part in results["parts"].values() for row in part["rows"]]


def summary(results: dict[str, Any]) -> str:
    """The tables of docs/gpu.md, and below them whatever went wrong."""
    remarks = [
        "  ".join(f"{key}={value}" for key, value in row.items())
        for row in all_rows(results)
        if row.get("ok") is False or row["case"] in ("stopped", "out of time")
    ]
    return "\n".join([markdown(results), *remarks])


if __name__ == "__main__":
    show_what_can_be_shown()
    sys.exit(main())
