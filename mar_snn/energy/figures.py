"""What a report holds, and every figure that follows from it.

energy(model)    = Σ over operations of count · price
energy(baseline) = the same sum over the dense model: every projection multiplies,
                   no neuron is there
ratio            = energy(baseline) / energy(model)
"""

import math
from dataclasses import dataclass
from typing import Any

from mar_snn.energy.counts import Firing, ModuleRow, OpCounts
from mar_snn.energy.profiles import EnergyProfile

__all__ = ["EnergyFigures", "GroupEnergy"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupEnergy:
    """One group of a report; the energies are per unit of the report."""

    counts: OpCounts
    energy_pj: float
    baseline_pj: float
    #: energy of the group / energy of the model
    share: float

    @property
    def ratio(self) -> float:
        """Energy of the baseline / energy of the group."""
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

    @property
    def total(self) -> OpCounts:
        """The operations of the whole run."""
        return OpCounts.sum(row.ops for row in self.rows)

    @property
    def energy_pj(self) -> float:
        """Modelled energy per unit in picojoules."""
        return self.profile.energy_pj(self.total) / self.units

    @property
    def baseline_pj(self) -> float:
        """Modelled energy of the baseline per unit in picojoules."""
        return math.fsum(self.baseline_groups_pj.values())

    @property
    def ratio(self) -> float:
        """Energy of the baseline / energy of the model."""
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
        total = self.energy_pj
        groups = {}
        for name in names:
            counts = OpCounts.sum(row.ops for row in self.rows if row.group == name)
            energy = self.profile.energy_pj(counts) / self.units
            groups[name] = GroupEnergy(
                counts=counts,
                energy_pj=energy,
                baseline_pj=self.baseline_groups_pj.get(name, 0.0),
                share=energy / total if total else 0.0,
            )
        return groups

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
