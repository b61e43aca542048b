"""The methodology block: how the figures came about, written by the machine.

A modelled figure without its conventions cannot be checked or compared, so a report
without this block does not render.
"""

import platform
from collections import Counter
from importlib.metadata import version
from typing import Any

import torch

from mar_snn.energy.counts import CountedRun
from mar_snn.energy.profiles import EnergyProfile
from mar_snn.energy.rules import RULES_VERSION

__all__ = ["NOT_INCLUDED", "check_methodology", "write_methodology"]

#: What no rule counts, and why.
NOT_INCLUDED = {
    "memory traffic": "weights, activations and states are not charged for being moved",
    "spike routing and addressing": "depends on a chip; no checked source",
    "control, clock, leakage": "depends on a chip; no checked source",
    "integer and boolean arithmetic": "addresses and masks, not activations",
    "sampling and input encoding": "runs outside the model's forward",
}

_CONVENTIONS = {
    "spikes": "declared by the neurons, never inferred from values",
    "coder": "T planes counted one by one; dense_mac once: the dense layer runs once",
    "geometric": "outputs rescaled between the planes (Horner): T - 1 multiplications",
    "threshold": "folded into the weights of the next projection",
    "reset": "one addition a spike",
    "node": "as executed: a [T, N, ...] input costs T dense passes in the baseline too",
    "padding": "excluded, dense and spiking",
    "causal convolution": "existing taps only",
    "bias": "bias_add, priced as an addition",
    "ssm": "recurrent form, whatever algorithm ran",
    "batch norm": "1 multiplication and 1 addition an element, with stored statistics",
    "both operands spikes": "coincidences, priced as accumulations",
    "scope": "forward passes of the model's modules",
}

_REQUIRED = (
    "quantity", "tool", "rules", "torch", "model", "workload", "temporal", "detection",
    "conventions", "profile", "coverage", "baseline", "excluded", "assumptions",
)  # fmt: skip


def write_methodology(
    run: CountedRun, profile: EnergyProfile, *, per: str, units: int, baseline: str
) -> dict[str, Any]:
    """The block of a run, in values that JSON can hold."""
    total = run.total
    uncounted = sum(run.uncounted.values())
    return {
        "quantity": "modelled",
        "tool": f"mar_snn {version('mar-snn')}",
        "rules": RULES_VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "model": dict(run.model),
        "workload": {"per": per, "units": units, "tokens": run.tokens},
        "temporal": _temporal(run),
        "detection": {
            "declared": 1.0 if total.sop_unit else None,
            "inferred": 0.0 if total.sop_unit else None,
        },
        "conventions": dict(_CONVENTIONS),
        "profile": _profile(profile),
        "coverage": {
            "calls": run.calls,
            "covered": 1 - uncounted / run.calls if run.calls else None,
            "uncounted": dict(run.uncounted),
        },
        "baseline": {"name": baseline, "definition": _baseline(baseline)},
        "excluded": _excluded(run, profile),
        "assumptions": [
            "event-driven hardware: an input without a spike costs nothing",
            "one accumulation a spike and synapse, at the width of the accumulator",
            "arithmetic only: a lower bound of what a machine uses",
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


def _temporal(run: CountedRun) -> list[dict[str, Any]]:
    """One entry for each kind of neuron in the run."""
    kinds = Counter((f.time_steps, f.tau, f.readout) for f in run.firing.values())
    return [
        {
            "T": time_steps,
            "tau": tau,
            "readout": readout,
            "alphabet": [-1, 0, 1],
            "neurons": neurons,
        }
        for (time_steps, tau, readout), neurons in kinds.items()
    ]


def _profile(profile: EnergyProfile) -> dict[str, Any]:
    return {
        "name": profile.name,
        "node_nm": profile.node_nm,
        "voltage_v": profile.voltage_v,
        "accumulator": profile.accumulator,
        "prices": {
            kind: {"pj": price.value_pj, "source": price.source, "note": price.note}
            for kind, price in profile.prices.items()
        },
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
        {"what": name, "why": "no rule", "count": count}
        for name, count in run.uncounted.items()
    ]
    never = [
        {"what": what, "why": why, "count": None} for what, why in NOT_INCLUDED.items()
    ]
    return unpriced + uncounted + never
