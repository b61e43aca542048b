"""One run at the prices of many technologies: how much of a ratio is the price list."""

from collections.abc import Iterable
from dataclasses import replace

from mar_snn.energy.reporting.figures import EnergyFigures
from mar_snn.energy.reporting.profiles import (
    EnergyProfile,
    available_profiles,
    get_profile,
)

__all__ = ["at_profile", "at_profiles"]


def at_profile(report: EnergyFigures, profile: str | EnergyProfile) -> EnergyFigures:
    """The figures of the same counts at other prices, against the dense model.

    They are figures, not a report: the methodology is that of the report's own profile.

    Raises:
        ValueError: for a report against another report, whose counts it does not hold.
    """
    profile = get_profile(profile)
    if report.baseline != "dense":
        raise ValueError(
            f"only counts can be priced again, and of {report.baseline} this report "
            "holds energies: use a report with baseline='dense'"
        )
    groups: dict[str, float] = {}
    for row in report.rows:
        energy_pj = profile.energy_pj(row.dense_ops) / report.units
        groups[row.group] = groups.get(row.group, 0.0) + energy_pj
    batches = zip(report.batches, report.batch_units, strict=True)
    return replace(
        report,
        profile=profile,
        baseline_groups_pj=groups,
        baseline_batches_pj=tuple(
            profile.energy_pj(batch.dense_ops) / units for batch, units in batches
        ),
    )


def at_profiles(
    report: EnergyFigures, profiles: Iterable[str | EnergyProfile] | None = None
) -> dict[str, EnergyFigures]:
    """Name -> figures for some profiles, or for all that are registered."""
    chosen = [get_profile(p) for p in profiles or available_profiles()]
    return {profile.name: at_profile(report, profile) for profile in chosen}
