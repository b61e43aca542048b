"""What a report holds, and the energies that follow from it.

energy(model)    = Σ over operations of count · price
energy(baseline) = the same sum over the dense model: every projection multiplies,
                   no neuron is there
ratio            = energy(baseline) / energy(model)
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mar_snn.energy.counts import BatchCounts, ByteCounts, Firing, ModuleRow, OpCounts
from mar_snn.energy.reporting.prices import EnergyProfile

__all__ = ["EnergyFigures", "GroupEnergy", "ratio"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupEnergy:
    """One part of a report; the energies are per unit of the report."""

    counts: OpCounts
    energy_pj: float
    baseline_pj: float
    #: energy of the part / energy of the model
    share: float
    moved: ByteCounts = field(default_factory=ByteCounts)
    #: inputs of projections that fired at any step for any sample / all their inputs,
    #: nan where no spikes enter
    columns_touched: float = math.nan

    @property
    def ratio(self) -> float:
        """Energy of the baseline / energy of the part."""
        return ratio(self.baseline_pj, self.energy_pj)


@dataclass(frozen=True, kw_only=True)
class EnergyFigures:
    """The data of an EnergyReport and what can be computed from it."""

    #: one for each module that cost anything
    rows: tuple[ModuleRow, ...]
    #: neuron name -> how often it fired
    firing: dict[str, Firing]
    profile: EnergyProfile
    #: "token", "sample" or "run", and how many of them the run had
    per: str
    units: int
    #: "dense", or the class of the model whose report was given
    baseline: str
    #: group -> energy of the baseline, per unit
    baseline_groups_pj: dict[str, float]
    #: how the figures came about; without it nothing is rendered
    methodology: dict[str, Any]
    #: field of ByteCounts -> bytes of the baseline, per unit
    baseline_bytes: dict[str, float] = field(default_factory=dict)
    #: the forward passes one by one, and how many units each of them had
    batches: tuple[BatchCounts, ...] = ()
    batch_units: tuple[float, ...] = ()
    #: energy of the baseline in each batch, per unit; empty where it has other batches
    baseline_batches_pj: tuple[float, ...] = ()
    #: what a meter read, never part of a modelled figure
    measured: dict[str, Any] | None = None

    # the two are asked for by every part of a report: added up once
    @cached_property
    def total(self) -> OpCounts:
        """The operations of the whole run."""
        return OpCounts.sum(row.ops for row in self.rows)

    @cached_property
    def moved(self) -> ByteCounts:
        """The bytes of the whole run."""
        return ByteCounts.sum(row.moved for row in self.rows)

    @property
    def energy_pj(self) -> float:
        """Modelled energy of the arithmetic per unit in picojoules."""
        return self.profile.energy_pj(self.total) / self.units

    @property
    def baseline_pj(self) -> float:
        """The same of the baseline."""
        return math.fsum(self.baseline_groups_pj.values())

    @property
    def ratio(self) -> float:
        """Energy of the baseline / energy of the model, arithmetic only."""
        return ratio(self.baseline_pj, self.energy_pj)

    def ratio_without(self, group: str) -> float:
        """The ratio with a group left out on both sides, the LM head for example.

        Raises:
            ValueError: for a group that the report does not have.
        """
        groups = self.groups
        if group not in groups:
            raise ValueError(
                f"the report has no group {group!r}; choose from {', '.join(groups)}"
            )
        others = [energy for name, energy in groups.items() if name != group]
        return ratio(
            math.fsum(other.baseline_pj for other in others),
            math.fsum(other.energy_pj for other in others),
        )

    @property
    def groups(self) -> dict[str, GroupEnergy]:
        """Group -> counts, energies and share, in order of first use."""
        names = dict.fromkeys([*(r.group for r in self.rows), *self.baseline_groups_pj])
        return {
            name: self.part(
                [row for row in self.rows if row.group == name],
                self.baseline_groups_pj.get(name, 0.0),
            )
            for name in names
        }

    def part(self, rows: list[ModuleRow], baseline_pj: float) -> GroupEnergy:
        """Some rows as one, against `baseline_pj` per unit."""
        counts = OpCounts.sum(row.ops for row in rows)
        energy, total = self.profile.energy_pj(counts) / self.units, self.energy_pj
        columns = sum(row.columns for row in rows)
        touched = sum(row.columns_touched for row in rows)
        return GroupEnergy(
            counts=counts,
            energy_pj=energy,
            baseline_pj=baseline_pj,
            share=energy / total if total else 0.0,
            moved=ByteCounts.sum(row.moved for row in rows),
            columns_touched=touched / columns if columns else math.nan,
        )

    @property
    def phases(self) -> dict[str, GroupEnergy]:
        """Phase -> its part of the run, against the dense model.

        A phase is per unit of its own batches where these are known: energy per token
        of prefill is prefill's energy over prefill's tokens.
        """
        phases = {}
        for phase in dict.fromkeys(row.phase for row in self.rows):
            rows = [row for row in self.rows if row.phase == phase]
            dense = OpCounts.sum(row.dense_ops for row in rows)
            part = self.part(rows, self.profile.energy_pj(dense) / self.units)
            scale = self.units / self.units_of_phase(phase)
            phases[phase] = GroupEnergy(
                counts=part.counts,
                energy_pj=part.energy_pj * scale,
                baseline_pj=part.baseline_pj * scale,
                share=part.share,
                moved=part.moved,
                columns_touched=part.columns_touched,
            )
        return phases

    def units_of_phase(self, phase: str) -> float:
        """Units of the batches of a phase; those of the run where none is known."""
        pairs = zip(self.batches, self.batch_units, strict=True)
        known = math.fsum(units for batch, units in pairs if batch.phase == phase)
        return known or float(self.units)

    @property
    def firing_rate(self) -> float:
        """Spikes per element and step over all neurons; nan without neurons."""
        return Firing.pooled(self.firing.values()).rate

    @property
    def sign_balance(self) -> float:
        """(pos - neg) / (pos + neg) over all neurons; nan without spikes."""
        return Firing.pooled(self.firing.values()).sign_balance


def ratio(baseline_pj: float, energy_pj: float) -> float:
    """The quotient; infinite where nothing is left, nan where nothing was."""
    if energy_pj:
        return baseline_pj / energy_pj
    return math.inf if baseline_pj else math.nan
