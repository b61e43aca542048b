"""The dense models that a spiking one is held against, and where they break even.

A *spiking projection* is a product that spikes enter: MACs of the dense model that the
spiking one replaced by accumulations. With r spikes an input and step, T steps and D
such MACs, the spiking model accumulates T·r·D weights, so by arithmetic alone

    T·r · E_AC < E_MAC        the projections by themselves
    T·r · E_AC + E_other / D < E_MAC        with neurons and read-outs, E_other

Yan et al., arXiv 2409.08290, ask for a quantised baseline of as much information:
T steps of ternary spikes that are summed say 2T + 1 values, ⌈log2(2T + 1)⌉ bits.
"""

import math
from dataclasses import dataclass, replace

from mar_snn.energy.counts import ModuleRow, OpCounts
from mar_snn.energy.reporting.figures import EnergyFigures, ratio
from mar_snn.energy.reporting.prices import EnergyProfile

__all__ = [
    "Baseline",
    "BreakEven",
    "baselines",
    "baselines_by_group",
    "break_even",
    "matched_bits",
]

Interval = tuple[float, float]

_DENSE = (
    "the same model on the same input and profile, every projection dense, without "
    "neurons"
)
_QUANTISED = (
    "the dense model with {bits}-bit inputs, ⌈log2(2T + 1)⌉ of them, and 8-bit weights "
    "where spikes enter, summed in int32; quantising is free. The int8 product is "
    "scaled by the bits (low) or not (high). The spiking model it is held against has "
    "8-bit weights there too, one int32 addition a spike. A geometric read-out of T "
    "steps says up to T + 1 bits: fewer make the baseline cheaper. Graded spikes are "
    "taken for 8 bits"
)
_SKIPPING = (
    "the dense model that multiplies only where the value that the spikes stand for is "
    "not zero: one MAC for an input that fired at any step, at least SynOps / T, at "
    "most SynOps"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A model to be compared with, per unit of the report, as (low, high)."""

    name: str
    definition: str
    #: None where the profile lacks a price for it
    energy_pj: Interval | None
    #: energy of the spiking model that it is held against
    model_pj: float
    #: why there is no energy
    missing: str = ""

    @property
    def ratio(self) -> Interval | None:
        """Energy of the baseline / energy of the spiking model."""
        if self.energy_pj is None:
            return None
        low, high = self.energy_pj
        return ratio(low, self.model_pj), ratio(high, self.model_pj)


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakEven:
    """Spikes a synapse and dense MAC, T·rate: what it is, and what it must stay below.

    Weighted by fan-out, on the input side of each projection; nan without spikes.
    """

    #: SynOps / dense MACs of the spiking projections
    spikes_per_synapse: float
    #: E_MAC / E_AC: the projections alone, arithmetic alone
    compute: float
    #: the same for the whole model, its neurons and read-outs as they were counted
    whole_model: float
    #: against the quantised dense model, (low, high); None where that is unpriced
    matched_bit: Interval | None
    #: dense / spiking if no neuron fired at all: the LM head is paid in any case
    ceiling: float
    #: energy of the accumulations / energy of the dense model, for one spike a synapse
    slope: float

    def ratio_at(self, spikes_per_synapse: float) -> float:
        """Dense / spiking if there were so many spikes, all other costs the same."""
        return ratio(1.0, 1.0 / self.ceiling + spikes_per_synapse * self.slope)


def baselines(report: EnergyFigures) -> list[Baseline]:
    """Dense, quantised dense, zero-skipping dense; before them a report, if given."""
    dense_pj = _dense_pj(report)
    model_pj = report.energy_pj
    mac_pj = report.profile.mac.value_pj / report.units
    low, high = _non_zero_macs(report)
    replaced = sum(_replaced(row) for row in report.rows)
    found = [
        Baseline(
            name="dense",
            definition=_DENSE,
            energy_pj=(dense_pj, dense_pj),
            model_pj=model_pj,
        ),
        _quantised(report, dense_pj),
        Baseline(
            name="zero-skipping dense",
            definition=_SKIPPING,
            energy_pj=(
                dense_pj - (replaced - low) * mac_pj,
                dense_pj - (replaced - high) * mac_pj,
            ),
            model_pj=model_pj,
        ),
    ]
    if report.baseline != "dense":
        own = Baseline(
            name=report.baseline,
            definition=str(report.methodology["baseline"]["definition"]),
            energy_pj=(report.baseline_pj, report.baseline_pj),
            model_pj=model_pj,
        )
        found.insert(0, own)
    return found


def baselines_by_group(report: EnergyFigures) -> dict[str, list[Baseline]]:
    """Group -> its part of each baseline, in the order of `baselines`."""
    return {
        name: baselines(
            replace(
                report,
                rows=tuple(row for row in report.rows if row.group == name),
                baseline_groups_pj={name: group.baseline_pj},
            )
        )
        for name, group in report.groups.items()
    }


def break_even(report: EnergyFigures) -> BreakEven:
    """Where the model stands, and where its energy would equal the dense one's."""
    profile, rows = report.profile, report.rows
    replaced = sum(_replaced(row) for row in rows)
    sops = sum(row.ops.sop_unit for row in rows)
    ac_pj = profile.ac.value_pj
    others_pj = report.energy_pj * report.units - sops * ac_pj
    dense_pj = _dense_pj(report) * report.units
    quantised = _quantised_macs(report)
    matched = None
    if quantised is not None and profile.int32_add is not None and replaced:
        low, high = (
            ratio(energy, replaced * profile.int32_add.value_pj) for energy in quantised
        )
        matched = (low, high)
    return BreakEven(
        spikes_per_synapse=sops / replaced if replaced else math.nan,
        compute=ratio(profile.mac.value_pj, ac_pj),
        whole_model=(
            ratio(dense_pj - others_pj, replaced * ac_pj) if replaced else math.nan
        ),
        matched_bit=matched,
        ceiling=ratio(dense_pj, others_pj),
        slope=ratio(replaced * ac_pj, dense_pj),
    )


def matched_bits(time_steps: int) -> int:
    """⌈log2(2T + 1)⌉, the bits of the sum of T ternary spikes."""
    # 2T + 1 values are numbered 0 to 2T, exactly
    return (2 * time_steps).bit_length()


# ---- pieces


def _dense_pj(report: EnergyFigures) -> float:
    dense = OpCounts.sum(row.dense_ops for row in report.rows)
    return report.profile.energy_pj(dense) / report.units


def _replaced(row: ModuleRow) -> int:
    """MACs of the dense model that are accumulations of spikes here."""
    return max(0, row.dense_ops.mac - row.ops.mac) if row.time_steps else 0


def _is_graded(row: ModuleRow) -> bool:
    return row.readout == "graded"


def _bits(row: ModuleRow) -> int:
    """Bits of the inputs of a row in the quantised model."""
    return 8 if _is_graded(row) else matched_bits(row.time_steps)


def _non_zero_macs(report: EnergyFigures) -> tuple[int, int]:
    """Bounds of the MACs whose inputs fired at any of the T steps.

    An input that fired between once and T times is one value; where spikes meet
    spikes, two inputs may both have fired T times. Graded spikes are counted one by
    one, so of these the number is known.
    """
    low = high = 0
    for row in report.rows:
        ops, steps = row.ops, max(1, row.time_steps)
        single = ops.ac_add + ops.ac_sub
        if _is_graded(row):
            low += ops.sop_graded
            high += ops.sop_graded
            continue
        low += -(-single // steps) + -(-ops.ac_coincidence // steps**2)
        high += min(single + ops.ac_coincidence, _replaced(row))
    return min(low, high), high


def _quantised(report: EnergyFigures, dense_pj: float) -> Baseline:
    spiking = [row for row in report.rows if row.time_steps]
    bits = sorted({_bits(row) for row in spiking})
    text = " or ".join(str(b) for b in bits) or "no"
    name = f"quantised dense, {text} bits" if bits else "quantised dense"
    definition = _QUANTISED.format(bits=text)
    energies, profile = _quantised_macs(report), report.profile
    if energies is None or profile.int32_add is None:
        return Baseline(
            name=name,
            definition=definition,
            energy_pj=None,
            model_pj=report.energy_pj,
            missing=_why_not_quantised(profile),
        )
    replaced = sum(_replaced(row) for row in report.rows)
    kept_pj = dense_pj - replaced * profile.mac.value_pj / report.units
    low, high = (kept_pj + energy / report.units for energy in energies)
    cheaper = profile.ac.value_pj - profile.int32_add.value_pj
    return Baseline(
        name=name,
        definition=definition,
        energy_pj=(low, high),
        model_pj=report.energy_pj - report.total.sop_unit * cheaper / report.units,
    )


def _quantised_macs(report: EnergyFigures) -> Interval | None:
    """Energy of the run's spiking projections with quantised inputs, (low, high)."""
    product, addition = report.profile.int8_mul, report.profile.int32_add
    if product is None or addition is None:
        return None
    low = high = 0.0
    for row in report.rows:
        macs, bits = _replaced(row), _bits(row)
        if macs and bits > 8:
            return None
        low += macs * (product.value_pj * bits / 8 + addition.value_pj)
        high += macs * (product.value_pj + addition.value_pj)
    return low, high


def _why_not_quantised(profile: EnergyProfile) -> str:
    if profile.int8_mul is None or profile.int32_add is None:
        return f"{profile.name} has no int8_mul and int32_add"
    return "more than 8 bits: no price of an int8 product fits"
