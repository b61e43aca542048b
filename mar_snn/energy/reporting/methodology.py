"""The methodology block: how the figures came about, written by the machine.

A modelled figure without its conventions cannot be checked or compared, so a report
without this block does not render. Its keys cover fifteen points: quantity; workload;
precision; temporal; rules and conventions; detection; profile; memory; excluded;
coverage; baseline; hardware; statistics; assumptions; tool, git and command.
"""

import json
import platform
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mar_snn.energy.counts import CountedRun
from mar_snn.energy.reporting.prices import EnergyProfile
from mar_snn.energy.reporting.statistics import units_of_batches
from mar_snn.energy.rules.registry import RULES_VERSION

__all__ = [
    "NOT_INCLUDED",
    "NOT_STATED",
    "check_methodology",
    "count_tokens",
    "write_methodology",
]

#: What no rule counts, and why.
NOT_INCLUDED = {
    "memory traffic": "not in the energy of the arithmetic: it has lines of its own, "
    "without caches, reuse between calls, or wires on the chip",
    "spike routing and addressing": "depends on a chip; no checked source",
    "control, clock, leakage": "depends on a chip; no checked source",
    "integer and boolean arithmetic": "addresses and masks, not activations",
    "sampling and input encoding": "runs outside the model's forward",
}

#: What stands where the caller tells nothing, of what it alone knows of the workload.
NOT_STATED = "not stated"
STATED = (
    "model", "model_revision", "dataset", "split", "dataset_revision", "samples",
    "batch", "context", "seed",
)  # fmt: skip

_CONVENTIONS = {
    "coder": "T planes counted one by one; dense_mac once: the dense layer runs once",
    "geometric": "outputs rescaled between the planes (Horner): T - 1 multiplications",
    "threshold": "folded into the weights of the next projection",
    "reset": "one addition a spike",
    "node": "as executed: a [T, N, ...] input costs T dense passes in the baseline too",
    "bias": "bias_add, priced as an addition",
    "scan": "in a module with a rule the recurrent form, whatever algorithm ran; "
    "elsewhere the operations that ran",
    "batch norm": "1 multiplication and 1 addition an element, with stored statistics",
    "both operands spikes": "coincidences, priced as accumulations",
    "scope": "forward passes of the model's modules",
}

#: (setting of the counter, its value) -> what it means.
_SETTINGS = {
    ("spikes", "declared"): "declared by the neurons, never inferred from values",
    ("spikes", "inferred"): "inferred from values where no neuron declares any",
    ("padding", "exclude"): "excluded, dense and spiking",
    ("padding", "include"): "included, dense and spiking",
    ("causal", "exact"): "existing positions only, in convolutions and attention",
    ("causal", "full"): "all positions, those masked out too",
}

_REQUIRED = (
    "quantity", "tool", "git", "command", "rules", "torch", "model", "workload",
    "precision", "temporal", "detection", "conventions", "profile", "memory",
    "coverage", "baseline", "excluded", "hardware", "statistics", "assumptions",
)  # fmt: skip


def write_methodology(
    run: CountedRun,
    profile: EnergyProfile,
    *,
    per: str,
    units: int,
    baseline: str,
    workload: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The block of a run, in values that JSON can hold.

    Args:
        run: what was counted.
        profile: its prices.
        per: unit of the report.
        units: how many there were.
        baseline: "dense", or the class of another model.
        workload: what the caller knows of model, data and seed: STATED, and more.

    Raises:
        ValueError: for a workload that JSON cannot hold.
    """
    return {
        "quantity": "modelled",
        "tool": f"mar_snn {version('mar-snn')}",
        "git": _git_hash(),
        "command": _command(),
        "rules": RULES_VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": dict(run.model),
        "workload": _workload(run, per, units, workload or {}),
        "precision": {
            "weights": run.model.get("dtypes"),
            "activations": "as executed",
            "accumulators": profile.accumulator,
        },
        "temporal": _temporal(run),
        "detection": _detection(run),
        "conventions": _conventions(run),
        "profile": _profile(profile),
        "memory": _memory(profile),
        "coverage": _coverage(run),
        "baseline": {"name": baseline, "definition": _baseline(baseline)},
        "excluded": _excluded(run, profile),
        "hardware": "none: nothing was measured",
        "statistics": {
            "batches": len(run.batches),
            "interval": "95 %, Student's t over batches; std with n - 1",
            "units of a batch": _units_of_a_batch(run, per, units),
        },
        "assumptions": [
            "event-driven hardware: an input without a spike costs nothing",
            "one accumulation a spike and synapse, at the width of the accumulator",
            "arithmetic only: a lower bound of what a machine uses",
            "no event-driven chip was measured",
        ],
    }


def check_methodology(methodology: dict[str, Any]) -> None:
    """Raise a ValueError unless the block is whole."""
    missing = [key for key in _REQUIRED if key not in methodology]
    if missing:
        raise ValueError(
            "a report is not rendered without its methodology block; missing: "
            f"{', '.join(missing)}. SpikeOpCounter.report writes it"
        )


def count_tokens(run: CountedRun) -> int:
    """Token ids that the model looked up: those of its passes, or else of the rows."""
    return sum(batch.tokens for batch in run.batches) or run.tokens


# ---- pieces


def _git_hash() -> str:
    """The commit of the working directory, with a + where files differ from it."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "not in a git repository"
    return f"{commit}+" if _git("status", "--porcelain", "-uno") else commit


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _command() -> str:
    """The command line; the script by its name, wherever it stands."""
    script, *arguments = sys.argv or [""]
    if script in ("", "-c"):
        return "none: run interactively"
    path = Path(script)
    # python -m package runs its __main__.py
    name = path.parent.name if path.name == "__main__.py" else path.name
    return shlex.join([name, *arguments])


def _workload(
    run: CountedRun, per: str, units: int, stated: Mapping[str, Any]
) -> dict[str, Any]:
    known = {"per": per, "units": units, "tokens": count_tokens(run)}
    if phases := [phase for phase in dict.fromkeys(r.phase for r in run.rows) if phase]:
        known["phases"] = ", ".join(phases)
    if clash := sorted(known.keys() & stated.keys()):
        raise ValueError(
            f"workload gives {', '.join(clash)}, which the counter knows; pass what it "
            f"cannot know, such as {', '.join(STATED)}"
        )
    try:
        told = json.loads(json.dumps(dict(stated)))
    except TypeError as error:
        raise ValueError(
            f"workload must hold numbers, words and lists of them: {error}"
        ) from error
    return known | dict.fromkeys(STATED, NOT_STATED) | told


def _conventions(run: CountedRun) -> dict[str, str]:
    """The fixed ones, and how the counter was set; what is known of that in words."""
    chosen = {
        name: _SETTINGS.get((name, value), value)
        for name, value in run.settings.items()
    }
    return _CONVENTIONS | chosen


def _temporal(run: CountedRun) -> list[dict[str, Any]]:
    """One entry for each kind of neuron in the run."""
    kinds = Counter((f.time_steps, f.tau, f.readout) for f in run.firing.values())
    return [
        {
            "T": time_steps,
            "axis": "steps within one input, not tokens",
            "tau": tau,
            "readout": readout,
            "alphabet": [-1, 0, 1],
            "neurons": neurons,
        }
        for (time_steps, tau, readout), neurons in kinds.items()
    ]


def _detection(run: CountedRun) -> dict[str, float | None]:
    """How the spikes were known -> its share of the synaptic operations."""
    sops: Counter[str] = Counter()
    for row in run.rows:
        sops[row.detection] += row.ops.sop_unit
    total = sops.total()
    return {
        how: sops[how] / total if total else None for how in ("declared", "inferred")
    }


def _profile(profile: EnergyProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "node_nm": profile.node_nm,
        "voltage_v": profile.voltage_v,
        "accumulator": profile.accumulator,
        "prices": {
            kind: {
                "value": price.value_pj,
                "unit": "pJ an operation",
                "node_nm": profile.node_nm,
                "voltage_v": profile.voltage_v,
                "source": price.source,
                "checked": price.checked,
                "note": price.note,
            }
            for kind, price in profile.prices.items()
        },
    }


def _memory(profile: EnergyProfile) -> dict[str, Any]:
    return {
        "reuse": "a byte counts once for each call that needs it; both sides pay the "
        "same price",
        "touched columns": "weights of the inputs that fired at any step, for any "
        "sample of the call: the union grows with the batch",
        "spikes": "2 bits an element and step",
        "tiers": {
            tier.name: {
                "value": [tier.low_pj, tier.high_pj],
                "unit": f"pJ an access of {tier.access_bits} bits",
                "node_nm": profile.node_nm,
                "voltage_v": profile.voltage_v,
                "source": tier.source,
                "checked": tier.checked,
                "note": tier.note,
            }
            for tier in profile.memory
        },
    }


def _coverage(run: CountedRun) -> dict[str, Any]:
    uncounted = sum(run.uncounted.values())
    return {
        "calls": run.calls,
        "covered": 1 - uncounted / run.calls if run.calls else None,
        # how many MACs hide in an operation without a rule is what a rule would say
        "dense_mac": None if uncounted or not run.calls else 1.0,
        "uncounted": dict(run.uncounted),
    }


def _baseline(name: str) -> str:
    if name == "dense":
        return (
            "the same model on the same input and profile, every projection dense, "
            "without neurons"
        )
    return f"the report of {name} with the same profile and unit"


def _excluded(run: CountedRun, profile: EnergyProfile) -> list[dict[str, Any]]:
    """What the energy leaves out; the count is that of the whole run."""
    unpriced = [
        {"what": field, "why": f"no price in {profile.name}", "count": count}
        for field, count in profile.unpriced(run.total).items()
    ]
    uncounted = [
        {
            "what": name,
            "why": f"no rule, {100 * count / run.calls:.3g} % of calls",
            "count": count,
        }
        for name, count in run.uncounted.items()
    ]
    never = [
        {"what": what, "why": why, "count": None} for what, why in NOT_INCLUDED.items()
    ]
    return unpriced + uncounted + never


def _units_of_a_batch(run: CountedRun, per: str, units: int) -> str:
    if not run.batches:
        return "no batches were kept"
    tokens = tuple(float(batch.tokens) for batch in run.batches)
    known = per == "token" and units_of_batches(run, per, units) == tokens
    return "its tokens" if known else "an equal part of the run"
