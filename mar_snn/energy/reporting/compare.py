"""Reports side by side: two of them by group, or many of them as a mean."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group

from mar_snn.console import Showable
from mar_snn.energy.reporting.figures import EnergyFigures, ratio
from mar_snn.energy.reporting.markdown import markdown_table
from mar_snn.energy.reporting.memory import traffic
from mar_snn.energy.reporting.methodology import NOT_STATED, check_methodology
from mar_snn.energy.reporting.prices import MEMORY_KINDS
from mar_snn.energy.reporting.render import table_of
from mar_snn.energy.reporting.sections import DISCLAIMER, Section
from mar_snn.energy.reporting.statistics import Statistic, summarise
from mar_snn.energy.reporting.text import interval, joules, number, plain, times

__all__ = ["EnergyComparison", "PooledEnergy", "compare_reports", "pool_reports"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EnergyComparison:
    """Two reports with one profile and unit; energies per unit, `b` over `a`."""

    per: str
    profile: str
    #: the model of each report, as it was stated, or its class
    names: tuple[str, str]
    #: group -> (energy of a, energy of b) in picojoules, "total" last
    groups_pj: dict[str, tuple[float, float]]
    #: the same for the synaptic operations
    synops: dict[str, tuple[float, float]]

    def table(self) -> Group:
        """A rich table of the differences."""
        return Group(table_of(self._section()), DISCLAIMER)

    def __rich__(self) -> Showable:
        return Showable(self.table())

    def to_markdown(self) -> str:
        """The same as a Markdown table."""
        section = self._section()
        table = markdown_table(section.header, section.lines)
        return "\n".join([f"# {section.title}", "", *table, "", DISCLAIMER, ""])

    def _section(self) -> Section:
        lines = [
            (
                name,
                joules(a),
                joules(b),
                f"{'+' if b >= a else '-'}{joules(abs(b - a))}",
                times(ratio(b, a)),
                number(self.synops[name][0]),
                number(self.synops[name][1]),
            )
            for name, (a, b) in self.groups_pj.items()
        ]
        first, second = self.names
        return Section(
            title=(
                f"a: {first}, b: {second}; modelled energy per {self.per}, "
                f"{self.profile}"
            ),
            header=("group", "a", "b", "b - a", "b / a", "SynOps a", "SynOps b"),
            lines=tuple(lines),
            total=True,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledEnergy:
    """Figures of several runs, such as seeds, each run one value."""

    per: str
    profile: str
    #: energy_pj, baseline_pj, ratio, firing_rate, and the ratio with each traffic
    statistics: dict[str, Statistic]
    #: group -> energy per unit
    groups_pj: dict[str, Statistic]

    def table(self) -> Group:
        """A rich table of means, deviations and intervals."""
        return Group(table_of(self._section()), DISCLAIMER)

    def __rich__(self) -> Showable:
        return Showable(self.table())

    def to_markdown(self) -> str:
        """The same as a Markdown table."""
        section = self._section()
        table = markdown_table(section.header, section.lines)
        return "\n".join([f"# {section.title}", "", *table, "", DISCLAIMER, ""])

    def _section(self) -> Section:
        entries = self.statistics | {
            f"{group}_pj": found for group, found in self.groups_pj.items()
        }
        lines = []
        for name, found in entries.items():
            write = joules if name.endswith("_pj") else plain
            lines.append(
                (
                    name.removesuffix("_pj").replace("_", " "),
                    write(found.mean),
                    write(found.std) if found.std else "0",
                    interval(*(write(end) for end in found.ci95)),
                )
            )
        runs = next(iter(self.statistics.values())).n
        return Section(
            title=f"{runs} runs, modelled energy per {self.per}, {self.profile}",
            header=("figure", "mean", "std", "95 % interval"),
            lines=tuple(lines),
        )


def compare_reports(a: EnergyFigures, b: EnergyFigures) -> EnergyComparison:
    """The groups of two reports side by side.

    Raises:
        ValueError: for reports with unlike profiles, units or counting rules.
    """
    _check_alike([a, b])
    groups = {
        name: (_energy_of(a, name), _energy_of(b, name))
        for name in dict.fromkeys([*a.groups, *b.groups])
    }
    synops = {name: (_synops_of(a, name), _synops_of(b, name)) for name in groups}
    groups["total"] = (a.energy_pj, b.energy_pj)
    synops["total"] = (a.total.sop_unit / a.units, b.total.sop_unit / b.units)
    return EnergyComparison(
        per=a.per,
        profile=a.profile.name,
        names=(_name_of(a), _name_of(b)),
        groups_pj=groups,
        synops=synops,
    )


def pool_reports(reports: Sequence[EnergyFigures]) -> PooledEnergy:
    """Mean, standard deviation and 95 % interval over the reports.

    Raises:
        ValueError: for fewer than two reports, and for unlike ones.
    """
    if len(reports) < 2:
        raise ValueError(
            f"a spread over runs needs at least two reports, got {len(reports)}"
        )
    _check_alike(reports)
    values = {
        "energy_pj": [report.energy_pj for report in reports],
        "baseline_pj": [report.baseline_pj for report in reports],
        "ratio": [report.ratio for report in reports],
        "firing_rate": [report.firing_rate for report in reports],
    }
    lines = [{(t.assumption, t.memory): t for t in traffic(r)} for r in reports]
    for moved, memory in lines[0]:
        if all((moved, memory) in those for those in lines):
            # the lower end: the ratio that can be claimed
            values[f"ratio, {moved}, {MEMORY_KINDS[memory]}"] = [
                those[moved, memory].ratio[0] for those in lines
            ]
    finite = {k: v for k, v in values.items() if all(map(math.isfinite, v))}
    groups = dict.fromkeys(name for report in reports for name in report.groups)
    return PooledEnergy(
        per=reports[0].per,
        profile=reports[0].profile.name,
        statistics={name: summarise(v) for name, v in finite.items()},
        groups_pj={
            name: summarise([_energy_of(report, name) for report in reports])
            for name in groups
        },
    )


def _check_alike(reports: Sequence[EnergyFigures]) -> None:
    first, *others = reports
    for report in reports:
        check_methodology(report.methodology)
    for other in others:
        for what, mine, its in (
            ("profile", first.profile, other.profile),
            ("unit", first.per, other.per),
            ("counting rules", first.methodology["rules"], other.methodology["rules"]),
        ):
            if mine != its:
                mine, its = (getattr(value, "name", value) for value in (mine, its))
                raise ValueError(
                    f"reports are compared where profile, unit and counting rules are "
                    f"the same; here the {what} is {mine!r} and {its!r}. Price the "
                    "same counts again, or count again where the rules differ"
                )


def _name_of(report: EnergyFigures) -> str:
    """Of the model, as it was stated, or else of its class."""
    named = report.methodology["workload"]["model"]
    unnamed = named == NOT_STATED
    return str(report.methodology["model"]["class"] if unnamed else named)


def _energy_of(report: EnergyFigures, group: str) -> float:
    groups = report.groups
    return groups[group].energy_pj if group in groups else 0.0


def _synops_of(report: EnergyFigures, group: str) -> float:
    counted = [row.ops.sop_unit for row in report.rows if row.group == group]
    return sum(counted) / report.units
