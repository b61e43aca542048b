"""The energy of a run together with what it has to move.

energy = energy of the arithmetic + bytes · energy of a byte

for the model and its baseline alike, so the ratio falls towards that of their bytes.
A profile gives the energy of a byte as an interval, so each figure is one too. Nothing
here knows a cache: a byte counts once for each call that needs it.
"""

from dataclasses import dataclass

from mar_snn.energy.reporting.figures import EnergyFigures, ratio
from mar_snn.energy.reporting.prices import MEMORY_KINDS

__all__ = ["ASSUMPTIONS", "Traffic", "traffic"]

#: What is moved -> the fields of ByteCounts that say how much.
ASSUMPTIONS = {
    "weights once a call": ("weight_dense",),
    "touched weights": ("weight_touched",),
    "all traffic": (
        "weight_touched", "activation", "spike_bitmap", "neuron_state", "cache",
    ),
}  # fmt: skip

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Energy with traffic by one memory, per unit of the report, as (low, high)."""

    #: one of ASSUMPTIONS
    assumption: str
    #: "sram" or "dram"
    memory: str
    moved_bytes: float
    baseline_bytes: float
    energy_pj: Interval
    baseline_pj: Interval

    @property
    def ratio(self) -> Interval:
        """Baseline / model, (lowest, highest); both move their bytes at one price."""
        pairs = zip(self.baseline_pj, self.energy_pj, strict=True)
        low, high = (ratio(baseline, energy) for baseline, energy in pairs)
        return min(low, high), max(low, high)


def traffic(report: EnergyFigures) -> list[Traffic]:
    """Every assumption with every memory of the profile; empty where none is priced.

    It is empty, too, where no bytes were counted at all.
    """
    lines = []
    counted = report.moved.as_dict()
    for assumption, fields in ASSUMPTIONS.items():
        moved = sum(counted[name] for name in fields) / report.units
        baseline = sum(report.baseline_bytes.get(name, 0.0) for name in fields)
        for memory in MEMORY_KINDS:
            prices = report.profile.pj_per_byte(memory)
            if prices is None or not (moved or baseline):
                continue
            low, high = prices
            lines.append(
                Traffic(
                    assumption=assumption,
                    memory=memory,
                    moved_bytes=moved,
                    baseline_bytes=baseline,
                    energy_pj=(
                        report.energy_pj + moved * low,
                        report.energy_pj + moved * high,
                    ),
                    baseline_pj=(
                        report.baseline_pj + baseline * low,
                        report.baseline_pj + baseline * high,
                    ),
                )
            )
    return lines
