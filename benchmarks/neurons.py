"""Time, traffic and memory of the neuron and of the coder, side by side with peers.

    python benchmarks/neurons.py

Writes benchmarks/results/neurons-<device>.json, from which docs/neurons.md is filled.
Every contender is timed once a round, all rounds interleaved, so that a change of the
machine's speed hits all alike. A contender that claims the neuron's dynamics has to
agree with the reference equations before it is timed.
"""

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from mar_snn import provenance
from mar_snn.console import show_what_can_be_shown
from mar_snn.neurons import ATMNNode, ops, reference
from mar_snn.neurons.backends import available_backends
from mar_snn.neurons.reference import readout_weights

RESULTS = Path(__file__).parent / "results"
STEPS = (2, 4, 8, 16, 64)
DTYPES = (torch.float32, torch.bfloat16)
TAU, ALPHA = 2.0, 4.0
#: rows and channels of a code of up to four steps
CODES = (4096, 2048)
#: peers keep the membrane in 16 bits, the reference in 32: so many spikes may differ
TOLERATED = {torch.float32: 0.0, torch.bfloat16: 0.02}


class Contender(NamedTuple):
    """Something that turns x_seq [T, N] into spikes."""

    name: str
    run: Callable[[Tensor], Tensor]
    #: whether it claims the dynamics of the reference
    same_dynamics: bool


# ---- contenders


def backends_for(device: torch.device) -> list[str]:
    """All that can run, but "native": but for a few tokens at once it is "torch"."""
    found = available_backends(device)
    return [name for name, why in found.items() if not why and name != "native"]


def from_rest(node: nn.Module) -> Callable[[Tensor], Tensor]:
    """A call of `node` that finds it at rest."""

    def run(x_seq: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x_seq)

    return run


def from_float32(operator: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """A call of `operator` that finds at rest the membrane it wants: of 32 bits."""

    def run(x_seq: Tensor) -> Tensor:
        v = torch.zeros_like(x_seq[0], dtype=torch.float32)
        return operator(x_seq, v=v)[0]

    return run


def flexsn_core(x: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """One step of ATMN for SpikingJelly's kernel generator."""
    v_threshold = a.exp()
    h = v / TAU + x
    spike = surrogate.sigmoid.apply(h - v_threshold, ALPHA)
    spike = spike - surrogate.sigmoid.apply(-h - v_threshold, ALPHA)
    return spike, h - spike * v_threshold


def contenders(device: torch.device, dtype: torch.dtype) -> list[Contender]:
    """Ours on every backend, the reference, and SpikingJelly's nodes.

    At tau = 2 a step keeps half of the membrane for SpikingJelly's nodes too. Inputs of
    16 bits reach its fused operators only by hand, so these stand beside their nodes.
    snnTorch is not among them: its Leaky fires one sign only and cannot express the
    dynamics.
    """
    spiking = {"surrogate_function": surrogate.Sigmoid(ALPHA), "step_mode": "m"}
    soft = spiking | {"v_reset": None, "decay_input": False}
    a = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    ternary = neuron.TernaryLIFNode(TAU, **soft)
    same: dict[str, nn.Module] = {
        f"ATMNNode, {name}": ATMNNode(TAU, backend=name, **spiking)
        for name in backends_for(device)
    }
    same |= {
        "ATMNNode, compiled": torch.compile(ATMNNode(TAU, **spiking), dynamic=False),
        "TernaryLIFNode": ternary,
        "TernaryLIFNode, compiled": torch.compile(ternary, dynamic=False),
        "FlexSN": neuron.FlexSN(flexsn_core, 1, static_inputs=(a,), step_mode="m"),
    }
    other = {
        "LIFNode": neuron.LIFNode(TAU, **soft),
        "ParametricLIFNode": neuron.ParametricLIFNode(init_tau=TAU, **soft),
        "ILIFNode": neuron.ILIFNode(step_mode="m"),
    }
    w = nn.Parameter(torch.zeros((), device=device))
    binary = {
        "surrogate_function": surrogate.Sigmoid(ALPHA),
        "v_reset": None,
        "decay_input": False,
    }
    fused = {
        "LIF operator": partial(functional.lif_multi_step, tau=TAU, **binary),
        "PLIF operator": partial(functional.plif_multi_step, w=w, **binary),
        "ILIF operator": functional.ilif_multi_step,
    }
    return [
        Contender("reference", partial(by_reference, a=a.detach()), True),
        *(Contender(n, from_rest(m.to(device)), True) for n, m in same.items()),
        *(Contender(n, from_rest(m.to(device)), False) for n, m in other.items()),
        *(Contender(n, from_float32(op), False) for n, op in fused.items()),
    ]


def by_reference(x_seq: Tensor, a: Tensor) -> Tensor:
    """The spikes of the reference equations, by autograd."""
    return reference.atmn_multi_step(
        x_seq,
        torch.zeros_like(x_seq[0]),
        a.exp(),
        tau=TAU,
        surrogate_function=surrogate.Sigmoid(ALPHA),
    )[0]


# ---- measurements


def copy_rate(device: torch.device, count: int) -> float:
    """Bytes a second that a copy reads and writes, the median of many."""
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source))
    return 2 * source.nbytes / seconds


def median_seconds(run: Callable[[], object]) -> float:
    """The median time of a call, the device included."""
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=0.1).median


def both_directions(run: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Tensor:
    """Forward and backward; the gradient of `x`."""
    x = x.detach().requires_grad_()
    run(x).backward(grad)
    if x.grad is None:
        raise RuntimeError("no gradient reached the input")
    return x.grad


def refusals(
    found: list[Contender], expected: Contender, x: Tensor, tolerated: float
) -> dict[str, str]:
    """Contenders that claim what they do not keep, and so may not be timed: why."""
    return {
        contender.name: why
        for contender in found
        if contender.same_dynamics
        and (why := disagreement(contender, expected, x, tolerated))
    }


def disagreement(
    contender: Contender, expected: Contender, x: Tensor, tolerated: float
) -> str:
    """In what they differ; "" where outputs and gradients are the expected ones."""
    ours, theirs = contender.run(x), expected.run(x)
    differing = (ours != theirs).double().mean().item()
    if differing > tolerated:
        return f"{differing:.2%} of the outputs differ"
    grad = torch.randn_like(x)
    mine, other = (both_directions(c.run, x, grad) for c in (contender, expected))
    distance = ((mine - other).norm() / other.norm()).item()
    if not distance < (1e-4 if x.dtype == torch.float32 else 0.2):
        return f"gradients are {distance:.2g} away"
    return ""


def race(
    found: list[Contender], x: Tensor, rounds: int, bytes_moved: tuple[int, int]
) -> dict[str, dict[str, Any]]:
    """Nanoseconds for each element, and bytes a second, in both directions."""
    grad = torch.randn_like(x)
    times: dict[str, list[tuple[float, float]]] = {c.name: [] for c in found}
    for _ in range(rounds):
        for name, run, _ in found:
            with torch.no_grad():
                forward = median_seconds(lambda run=run: run(x))
            both = median_seconds(lambda run=run: both_directions(run, x, grad))
            times[name].append((forward, both))
            gc.collect()
    rows = {}
    for name, pairs in times.items():
        row: dict[str, Any] = {}
        for key, seconds, bytes_each in zip(
            ("forward", "both"), zip(*pairs, strict=True), bytes_moved, strict=True
        ):
            nanoseconds = [1e9 * s / x.numel() for s in seconds]
            middle = statistics.median(nanoseconds)
            row |= {
                f"{key}_ns": middle,
                f"{key}_ns_range": [min(nanoseconds), max(nanoseconds)],
                f"{key}_bytes": bytes_each,
                f"{key}_bytes_per_second": bytes_each / middle * 1e9,
            }
        rows[name] = row
    return rows


def race_neurons(
    device: torch.device, neurons: int, rounds: int
) -> list[dict[str, Any]]:
    """A row for every number of steps, dtype and contender."""
    rows = []
    cases = [(steps, dtype) for dtype in DTYPES for steps in STEPS]
    for steps, dtype in track(cases, "neurons"):
        torch.compiler.reset()
        torch.manual_seed(0)
        x_seq = torch.randn(steps, neurons, device=device).to(dtype)
        found = contenders(device, dtype)
        refused = refusals(found, found[0], x_seq, TOLERATED[dtype])
        # what has to move: x, spikes and, to train, the membranes of 4 bytes; then
        # their gradients
        size = x_seq.element_size()
        floor = (2 * size, 2 * size + 4 + 2 * size + 4)
        raced = race([c for c in found if c.name not in refused], x_seq, rounds, floor)
        for contender in found:
            name = contender.name
            case = {"steps": steps, "dtype": str(dtype), "name": name}
            rows.append(case | raced.get(name, {"refused": refused.get(name)}))
    return rows


def race_codes(device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """The coder's operation and the autograd loop: time, and bytes kept."""
    rows = []
    kinds = {"straight_through": None, "surrogate": surrogate.ATan()}
    cases = [
        (steps, kind, dtype) for dtype in DTYPES for kind in kinds for steps in STEPS
    ]
    for steps, kind, dtype in track(cases, "codes"):
        # the loop keeps several [T, ...] tensors: beyond T = 4 fewer rows
        torch.manual_seed(0)
        tall, channels = CODES
        x = torch.randn(tall * 4 // max(steps, 4), channels, device=device).to(dtype)
        v_threshold = torch.rand(channels, device=device) + 0.5
        settings = {
            "weights": readout_weights("geometric", 0.5, steps),
            "tau": 0.5,
            "fire_ratio": 2 / 3,
            "surrogate_function": kinds[kind],
        }
        runs = {
            f"atmn_code, {name}": partial(
                ops.atmn_code, v_threshold=v_threshold, backend=name, **settings
            )
            for name in backends_for(device)
        }
        runs["loop"] = partial(reference.atmn_code, v_threshold=v_threshold, **settings)
        found = [Contender(name, run, True) for name, run in runs.items()]
        refused = refusals(found, found[-1], x, tolerated=0.0)
        floor = (2 * x.element_size(), 5 * x.element_size())
        raced = race([c for c in found if c.name not in refused], x, rounds, floor)
        for name, run in runs.items():
            kept = saved_bytes(run, x) / x.nbytes
            case = {"steps": steps, "gradient": kind, "dtype": str(dtype)}
            case |= {"rows": len(x), "name": name, "saved_per_byte_of_x": kept}
            rows.append(case | raced.get(name, {"refused": refused.get(name)}))
    return rows


def saved_bytes(run: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that autograd keeps for backward, every storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run(x.detach().requires_grad_())
    del output
    return sum(storages.values())


# ---- report


def main() -> None:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the CPU; default all cores")
    parser.add_argument("--neurons", type=int, help="a row; default 2**16, GPU 2**20")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    neurons = options.neurons or 2 ** (20 if device.type == "cuda" else 16)
    machine = provenance.machine()
    # larger than any cache
    rate = copy_rate(device, 2**26)
    neuron_rows = race_neurons(device, neurons, options.rounds)
    code_rows = race_codes(device, options.rounds)
    for row in neuron_rows + code_rows:
        add_shares(row, rate)
    results = {
        "script": "benchmarks/neurons.py",
        "machine": machine,
        "versions": provenance.versions(),
        "rounds": options.rounds,
        "neurons": neurons,
        "copy_bytes_per_second": rate,
        "neuron_rows": neuron_rows,
        "code_rows": code_rows,
    }
    name = (
        "cpu" if device.type == "cpu" else machine["device"].lower().replace(" ", "-")
    )
    path = RESULTS / f"neurons-{name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print_rows(neuron_rows)
    print_rows(code_rows)
    print(f"wrote {path}")


def add_shares(row: dict[str, Any], rate: float) -> None:
    """The part of a copy's bytes a second that each direction reaches."""
    for key in ("forward", "both"):
        if f"{key}_ns" in row:
            row[f"{key}_share_of_copy"] = row[f"{key}_bytes_per_second"] / rate


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table: for each element (and step) nanoseconds, bytes, the share of a copy."""
    columns = ("ns", "bytes", "share_of_copy")
    heads = [f"{key} {name}" for key in ("forward", "both") for name in columns]
    table = Table("T", "dtype", "", *(head.replace("_", " ") for head in heads))
    for row in rows:
        label = " ".join(filter(None, (row["name"], row.get("gradient"))))
        start = [str(row["steps"]), row["dtype"].removeprefix("torch."), label]
        if "forward_ns" not in row:
            table.add_row(*start, row["refused"])
            continue
        cells = []
        for key in ("forward", "both"):
            cells += [f"{row[f'{key}_ns']:.3g}", str(row[f"{key}_bytes"])]
            cells.append(f"{row[f'{key}_share_of_copy']:.0%}")
        table.add_row(*start, *cells)
    Console(width=110).print(table)


def markdown(rows: list[dict[str, Any]], dtype: str = "torch.float32") -> str:
    """The table of the documentation: forward and forward + backward for each T."""
    rows = [row for row in rows if row["dtype"] == dtype]
    cells: dict[str, dict[int, str]] = {}
    for row in rows:
        name = ", ".join(filter(None, (row["name"], row.get("gradient"))))
        found = [row[f"{k}_ns"] for k in ("forward", "both") if f"{k}_ns" in row]
        times = [f"{ns:.0f}" if ns >= 10 else f"{ns:.2g}" for ns in found]
        cells.setdefault(name, {})[row["steps"]] = " / ".join(times) or row["refused"]
    steps = sorted({row["steps"] for row in rows})
    lines = [
        f"| | {' | '.join(f'T = {t}' for t in steps)} |",
        f"|---|{'---:|' * len(steps)}",
        *(
            f"| {name} | {' | '.join(by_step[t] for t in steps)} |"
            for name, by_step in cells.items()
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
