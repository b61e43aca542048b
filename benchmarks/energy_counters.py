"""Who counts spikes right: the hand-derived cases through released counters.

    python -m venv ENVS/syops
    ENVS/syops/bin/pip install --no-deps \
        syops==0.0.5 spikingjelly==0.0.0.0.14 progress==1.6
    python -m venv ENVS/neurobench
    ENVS/neurobench/bin/pip install --no-deps \
        neurobench==2.3.0 snntorch==0.9.4 tonic==1.6.0
    python -m benchmarks.energy_counters \
        --syops-python ENVS/syops/bin/python \
        --neurobench-python ENVS/neurobench/bin/python

Writes benchmarks/results/energy_counters.json and prints it as the tables of
docs/energy.md. A tool runs in a process of its own; its interpreter adds its packages
to those of this one (torch, SpikingJelly 2.0.0, the cases), so both have to be the same
Python. syops does not import with SpikingJelly 2 and gets the older one. A tool without
an interpreter is left out.

Judging: a tool has to be right about every figure that it claims, by its own convention
where that is another; what it does not claim is "cannot", whatever it reports. It is
given the layer itself and the same tensors, per run and not per sample.
"""

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import spikingjelly
import torch
from rich.progress import track
from torch import Tensor, nn

from benchmarks import energy_counter_claims as claims_of
from benchmarks.energy_counter_claims import Claims, group_of, judge
from mar_snn import provenance
from mar_snn.console import show_what_can_be_shown
from mar_snn.energy import SpikeOpCounter
from tests.energy.hand_derived import Case, cases

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "energy_counters.json"
#: where a tool's interpreter finds what it does not have itself
SHARED = str(Path(spikingjelly.__file__).parents[1])
VERDICTS = ("right", "wrong", "cannot")

Figures = dict[str, Any]


# ---- what each tool reports


class OneInput(nn.Module):
    """A layer as a module of its first input `x`, the others held."""

    def __init__(self, layer: nn.Module, rest: Iterable[Tensor]) -> None:
        super().__init__()
        self.layer, self.rest = layer, tuple(rest)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x, *self.rest)


def ask_mar_snn(case: Case, spikes: str = "declared") -> Figures:
    """The fields that are not zero; spikes are declared, or inferred as by others."""
    model = case.model() if spikes == "declared" else case.layer().eval()
    counter = SpikeOpCounter(model, spikes=spikes, **case.settings)
    with torch.no_grad(), counter:
        model(*case.tensors())
    if uncounted := counter.run().uncounted:
        return {"error": f"no rule for {', '.join(uncounted)}"}
    return {name: n for name, n in counter.total().as_dict().items() if n}


def ask_spikingjelly(case: Case, mode: Callable[[], Any] = torch.no_grad) -> Figures:
    """Totals of its three counters; ACs hold every addition that torch executes."""
    from spikingjelly.activation_based import op_counter

    counters = {
        "synops": op_counter.SynOpCounter(),
        "mac": op_counter.MACCounter(),
        "ac": op_counter.ACCounter(),
    }
    layer = case.layer().eval()
    with mode(), op_counter.DispatchCounterMode(list(counters.values())):
        layer(*case.tensors())
    return {name: counter.get_total() for name, counter in counters.items()}


def ask_syops(case: Case) -> Figures:
    """Totals, over its `input_constructor`: its data loader averages over axis 0."""
    use_older_spikingjelly()
    from syops import get_model_complexity_info

    first, *rest = case.tensors()
    model = OneInput(with_older_neurons(case.layer()), rest)
    (_, ac, mac, _), _ = get_model_complexity_info(
        model,
        tuple(first.shape),
        input_constructor=lambda _: {"x": first},
        print_per_layer_stat=False,
        as_strings=False,
    )
    return {"ac": ac, "mac": mac}


def use_older_spikingjelly() -> None:
    """Forget SpikingJelly 2, which the cases keep, for that of the interpreter."""
    if SHARED not in sys.path[-1:]:
        sys.path[:] = [path for path in sys.path if path != SHARED] + [SHARED]
        for name in [n for n in sys.modules if n.partition(".")[0] == "spikingjelly"]:
            del sys.modules[name]


def with_older_neurons(net: nn.Module) -> nn.Module:
    """The net with the classes that syops knows in place of SpikingJelly 2's.

    Raises:
        LookupError: there is no such neuron.
    """
    from spikingjelly.clock_driven import neuron

    for name, old in net.named_children():
        kind = type(old).__name__
        if kind.endswith("Node"):
            if not hasattr(neuron, f"MultiStep{kind}"):
                raise LookupError(f"the SpikingJelly of syops has no {kind}")
            how = {"v_threshold": old.v_threshold, "v_reset": old.v_reset}
            how |= {"tau": old.tau} if kind == "LIFNode" else {}
            setattr(net, name, getattr(neuron, f"MultiStep{kind}")(**how))
        elif kind == "Linear" and type(old) is not nn.Linear:
            setattr(net, name, nn.Linear(old.in_features, old.out_features, bias=False))
    return net


def ask_neurobench(case: Case) -> Figures:
    """Totals: its means over samples times the samples."""
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel
    from torch.utils.data import DataLoader, TensorDataset

    first, *rest = case.tensors()
    samples = TensorDataset(first, torch.zeros(len(first)))
    model = TorchModel(OneInput(case.layer(), rest))
    loader = DataLoader(samples, batch_size=len(first))
    benchmark = Benchmark(model, loader, [], [], [[], [SynapticOperations]])
    printed = io.StringIO()
    with torch.no_grad(), contextlib.redirect_stdout(printed):
        found = benchmark.run()["SynapticOperations"]
    if not isinstance(found, dict):  # it prints what went wrong and goes on
        return {"error": printed.getvalue().partition("metric ")[2].strip()}
    names = {"ac": "Effective_ACs", "mac": "Effective_MACs", "dense_mac": "Dense"}
    return {name: found[theirs] * len(first) for name, theirs in names.items()}


def ask_flop_counter(case: Case) -> Figures:
    """Half its FLOPs."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = case.layer().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(*case.tensors())
    return {"dense_mac": counter.get_total_flops() / 2}


class Tool(NamedTuple):
    """A counter, how it counts in one line, and how to ask it."""

    title: str
    convention: str
    packages: tuple[str, ...]
    claims: Callable[[Case], Claims]
    ask: Callable[[Case], Figures]


OP_COUNTER = "SpikingJelly op_counter"
TOOLS = {
    "mar_snn": Tool(
        "mar_snn",
        "all 13 fields; neurons declare their spikes, padding is left out",
        ("mar-snn",),
        claims_of.mar_snn,
        ask_mar_snn,
    ),
    "mar_snn-inferred": Tool(
        "mar_snn, spikes inferred",
        "the same without declarations, as the others have to: values in {-a, 0, a} or "
        "whole numbers up to 16, some zero and some not, are spikes",
        ("mar-snn",),
        claims_of.mar_snn_inferred,
        partial(ask_mar_snn, spikes="inferred"),
    ),
    "spikingjelly": Tool(
        OP_COUNTER,
        "SynOps and MACs; an operand of zeros and ones is spikes, be it a weight; MACs "
        "include padding, bias is left out",
        ("spikingjelly",),
        claims_of.spikingjelly,
        ask_spikingjelly,
    ),
    "spikingjelly-inference": Tool(
        f"{OP_COUNTER}, inference_mode",
        "the same under torch.inference_mode, where torch hands it composite "
        "operations, for which it has no rules",
        ("spikingjelly",),
        claims_of.spikingjelly,
        partial(ask_spikingjelly, mode=torch.inference_mode),
    ),
    "syops": Tool(
        "syops",
        "ACs = mean input · dense operations where the input has at most two values, "
        "all in [0, 1], else MACs; padding and bias included, 1 AC a neuron and step",
        ("syops", "spikingjelly", "progress"),
        claims_of.syops,
        ask_syops,
    ),
    "neurobench": Tool(
        "NeuroBench",
        "ACs where the input is in {-1, 0, 1}, else effective MACs (both factors not "
        "zero), and dense operations; padding and bias are left out",
        ("neurobench", "snntorch", "tonic"),
        claims_of.neurobench,
        ask_neurobench,
    ),
    "flop_counter": Tool(
        "torch FlopCounterMode",
        "dense MACs = FLOPs / 2 (on a CPU here); padding and masked pairs included, "
        "knows no spikes",
        (),
        claims_of.flop_counter,
        ask_flop_counter,
    ),
}


def ask(tool: Tool) -> dict[str, Any]:
    """Versions and the figures of every case: what a tool's own process does."""
    torch.manual_seed(0)
    found = {}
    for case in cases():
        try:
            figures = tool.ask(case)
        except Exception as error:  # noqa: BLE001 (a tool may fail in any way)
            figures = {"error": f"{type(error).__name__}: {error}"}
        found[case.name] = {name: tidy(figure) for name, figure in figures.items()}
    return {
        "versions": {name: version(name) for name in (*tool.packages, "torch")},
        "figures": found,
    }


def ask_in_a_process(name: str, python: str) -> dict[str, Any]:
    """`ask`, by another interpreter.

    Raises:
        RuntimeError: the process failed.
    """
    done = subprocess.run(
        [python, "-m", "benchmarks.energy_counters", "--tool", name],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": SHARED},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed under {python}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def tidy(figure: Any) -> Any:
    """A figure for JSON: whole where it is but for the rounding of a float32 rate."""
    if isinstance(figure, str):
        return figure.splitlines()[0][:160]
    if not math.isfinite(figure):
        return str(float(figure))
    whole = round(float(figure))
    near = abs(figure - whole) <= min(0.01, 1e-7 * abs(figure))
    return whole if near else round(float(figure), 6)


def judged(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results from what each tool's process found."""
    rows = []
    for case in cases():
        verdicts = {}
        for name, answer in answers.items():
            figures = answer["figures"][case.name]
            verdict, why = judge(figures, TOOLS[name].claims(case))
            verdicts[name] = {"verdict": verdict, "why": why, "figures": figures}
        rows.append(
            {"name": case.name, "group": group_of(case)}
            | {"by_hand": dict(case.expected), "tools": verdicts}
        )
    tools = {}
    for name, answer in answers.items():
        tally = Counter(row["tools"][name]["verdict"] for row in rows)
        about = {"title": TOOLS[name].title, "convention": TOOLS[name].convention}
        counts = {verdict: tally[verdict] for verdict in VERDICTS}
        tools[name] = about | {"versions": answer["versions"], "counts": counts}
    left_out = [tool.title for name, tool in TOOLS.items() if name not in answers]
    return {"tools": tools, "left_out": left_out, "cases": rows}


# ---- the tables


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def markdown(results: Mapping[str, Any]) -> str:
    """Verdicts by group of cases and tool, and the conventions."""
    tools, rows = results["tools"], results["cases"]
    groups: dict[str, list[Any]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    counted = []
    for title, some in (*groups.items(), ("all", rows)):
        tallies = (Counter(r["tools"][name]["verdict"] for r in some) for name in tools)
        cells = [" / ".join(str(tally[v]) for v in VERDICTS) for tally in tallies]
        counted.append([f"{title} ({len(some)})", *cells])
    titles = [about["title"] for about in tools.values()]
    lines = [*table([" / ".join(VERDICTS), *titles], counted), ""]
    for about in tools.values():
        packages = ", ".join(f"{p} {v}" for p, v in about["versions"].items())
        lines.append(f"- {about['title']} ({packages}): {about['convention']}.")
    if results["left_out"]:
        lines.append(f"- Left out, not installed: {', '.join(results['left_out'])}.")
    return "\n".join(lines) + "\n"


def mistakes(results: Mapping[str, Any]) -> str:
    """Every case that some tool has wrong: reported, and by hand in parentheses."""
    # a tool that is wrong about everything would drown the rest
    shown = [
        name
        for name, about in results["tools"].items()
        if about["counts"]["wrong"] and name != "spikingjelly-inference"
    ]
    rows = []
    for row in results["cases"]:
        found = [row["tools"][name] for name in shown]
        if any(one["verdict"] == "wrong" for one in found):
            rows.append([row["name"], *map(cell, found)])
    titles = [results["tools"][name]["title"] for name in shown]
    return "\n".join(table(["reported (by hand)", *titles], rows)) + "\n"


def cell(found: Mapping[str, Any]) -> str:
    """A verdict with the wrong figures, or the convention that makes it right."""
    if found["verdict"] == "cannot":
        return "cannot"
    if found["verdict"] == "wrong":
        return found["why"]
    return f"right, {found['why']}" if found["why"] else "right"


def main() -> None:
    """Ask every tool, judge, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--syops-python", help="interpreter of syops' environment")
    parser.add_argument("--neurobench-python", help="that of NeuroBench's")
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool:
        with contextlib.redirect_stdout(sys.stderr):
            answer = ask(TOOLS[options.tool])
        print(json.dumps(answer))
        return
    pythons = dict.fromkeys(TOOLS, sys.executable)
    pythons["syops"] = options.syops_python
    pythons["neurobench"] = options.neurobench_python
    given = {name: python for name, python in pythons.items() if python}
    answers = {n: ask_in_a_process(n, p) for n, p in track(given.items(), "counters")}
    results = {"script": "benchmarks/energy_counters.py"} | {
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        **judged(answers),
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(markdown(results), mistakes(results), sep="\n")


if __name__ == "__main__":
    show_what_can_be_shown()
    main()
