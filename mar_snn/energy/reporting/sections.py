"""The parts of a report in the order in which they are read, as cells of text.

Console, Markdown and LaTeX are layouts of these: none of them can leave out what
another shows.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from mar_snn.energy.counts import Firing, ModuleRow, OpCounts
from mar_snn.energy.reporting.figures import EnergyFigures, GroupEnergy
from mar_snn.energy.reporting.text import joules, number, percent, signed, times

__all__ = [
    "DISCLAIMER",
    "Section",
    "firing_section",
    "largest_section",
    "not_included",
    "part_section",
    "summary",
    "title",
]

DISCLAIMER = (
    "Event-driven hardware assumed. Modelled from counts, a lower bound. Not a "
    "measurement."
)

_PARTS = (
    "dense MAC", "MAC", "AC", "add", "mul", "cmp", "touched", "energy", "share",
    "dense", "ratio",
)  # fmt: skip
#: Those that fit into a console of 80 characters.
_PARTS_CONSOLE = ("MAC", "AC", "touched", "energy", "share", "dense", "ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A table with a title; `notes` stand below it."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    #: the columns that fit into a console, all of them if empty
    console: tuple[str, ...] = ()
    #: whether the last line is the total of the others
    total: bool = False
    notes: tuple[str, ...] = ()


def title(report: EnergyFigures) -> str:
    """What the report is of."""
    return (
        f"Modelled energy per {report.per} of {report.methodology['model']['class']}, "
        f"{report.profile.name}"
    )


def part_section(
    report: EnergyFigures, by: str = "group", depth: int | None = None
) -> Section:
    """The arithmetic: one line a group or a module, and the total.

    Raises:
        ValueError: for another `by`, and for a depth below 1.
    """
    if by not in ("group", "module"):
        raise ValueError(f"by must be 'group' or 'module', got {by!r}")
    if depth is not None and depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    parts = report.groups if by == "group" else _modules(report, depth)
    total = report.part(list(report.rows), report.baseline_pj)
    lines = [*parts.items(), ("total", total)]
    return Section(
        title=f"Arithmetic by {by}",
        header=(by, *_PARTS),
        lines=tuple((name, *_part_cells(part, report)) for name, part in lines),
        console=(by, *_PARTS_CONSOLE),
        total=True,
        notes=(
            "touched: inputs that fired at any step, for any sample of a call of this "
            "run's batches",
        ),
    )


def largest_section(report: EnergyFigures, count: int) -> Section:
    """The `count` modules with the largest shares of the energy, largest first."""
    modules = _modules(report, None)
    ranked = sorted(modules, key=lambda name: modules[name].share, reverse=True)
    left = len(ranked) - count
    return Section(
        title="Largest modules",
        header=("module", *_PARTS),
        lines=tuple(
            (name, *_part_cells(modules[name], report)) for name in ranked[:count]
        ),
        console=("module", *_PARTS_CONSOLE),
        notes=(f"{left} more modules: table('module')",) if left > 0 else (),
    )


def firing_section(report: EnergyFigures, *, by_site: bool) -> Section:
    """How the neurons fired, one by one or pooled over layers."""
    firing = _by_site(report.firing) if by_site else report.firing
    lines = [
        (
            name,
            str(f.time_steps),
            f"{f.rate:.4f}",
            " ".join(f"{rate:.3f}" for rate in f.rate_by_step),
            f"{f.p_pos:.3f}",
            f"{f.p_neg:.3f}",
            signed(f.sign_balance),
            percent(f.silent_channels / f.channels if f.channels else math.nan),
            percent(f.saturated_channels / f.channels if f.channels else math.nan),
        )
        for name, f in firing.items()
    ]
    return Section(
        title="Firing",
        header=(
            "neuron", "T", "rate", "rate by step", "p(+1)", "p(-1)", "balance",
            "silent", "saturated",
        ),
        lines=tuple(lines),
        console=(
            "neuron", "rate by step", "p(+1)", "p(-1)", "balance", "silent",
            "saturated",
        ),
        notes=(_pooled_firing(report),),
    )  # fmt: skip


def summary(report: EnergyFigures) -> str:
    """Units, baseline and coverage."""
    methodology = report.methodology
    coverage = methodology["coverage"]["covered"]
    detection = methodology["detection"]
    parts = [
        f"{report.units} {report.per}{'s' if report.units > 1 else ''}",
        f"baseline {report.baseline}",
        f"{100 * (coverage or 0):.4g} % of calls have a rule",
    ]
    parts += [
        f"{100 * share:.4g} % of SynOps {how}"
        for how, share in detection.items()
        if share
    ]
    return ", ".join(parts) + "."


def not_included(report: EnergyFigures) -> str:
    """What the energy leaves out, with counts where there are any."""
    parts = [
        entry["what"]
        if entry["count"] is None
        else f"{entry['count']} {entry['what']} ({entry['why']})"
        for entry in report.methodology["excluded"]
    ]
    return f"NOT INCLUDED: {', '.join(parts)}."


# ---- pieces


def _modules(report: EnergyFigures, depth: int | None) -> dict[str, GroupEnergy]:
    many = len({row.phase for row in report.rows}) > 1

    def cut(row: ModuleRow) -> str:
        name = ".".join(row.name.split(".")[:depth])
        return f"{name} [{row.phase}]" if many and row.phase else name

    modules = {}
    for name in dict.fromkeys(cut(row) for row in report.rows):
        rows = [row for row in report.rows if cut(row) == name]
        dense = OpCounts.sum(row.dense_ops for row in rows)
        dense_pj = report.profile.energy_pj(dense) / report.units
        modules[name or "(model)"] = report.part(rows, dense_pj)
    return modules


def _part_cells(part: GroupEnergy, report: EnergyFigures) -> tuple[str, ...]:
    ops = part.counts
    accumulations = ops.ac_add + ops.ac_sub + ops.ac_coincidence
    counts = (
        ops.dense_mac, ops.mac, accumulations, ops.add + ops.bias_add, ops.mul, ops.cmp,
    )  # fmt: skip
    return (
        *(number(count / report.units) for count in counts),
        percent(part.columns_touched),
        joules(part.energy_pj),
        percent(part.share),
        joules(part.baseline_pj),
        times(part.ratio),
    )


def _by_site(firing: dict[str, Firing]) -> dict[str, Firing]:
    """Neurons as one whose names differ in numbers alone, and whose T is the same."""
    sites: dict[tuple[str, int], list[Firing]] = {}
    for name, one in firing.items():
        words = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)
        sites.setdefault((words, one.time_steps), []).append(one)
    ends = {words.rsplit("*.", 1)[-1] for words, _ in sites}
    alone = len(ends) == len(sites)
    return {
        words.rsplit("*.", 1)[-1] if alone else f"{words} (T = {steps})": _pool(members)
        for (words, steps), members in sites.items()
    }


def _pool(firing: list[Firing]) -> Firing:
    def by_step(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(sum(step) for step in zip(*counts, strict=True))

    return Firing(
        pos=by_step(f.pos for f in firing),
        neg=by_step(f.neg for f in firing),
        elements=by_step(f.elements for f in firing),
        channels=sum(f.channels for f in firing),
        silent_channels=sum(f.silent_channels for f in firing),
        saturated_channels=sum(f.saturated_channels for f in firing),
    )


def _pooled_firing(report: EnergyFigures) -> str:
    return (
        f"All neurons: firing rate {report.firing_rate:.4g} per element and step, sign "
        f"balance {signed(report.sign_balance)}."
    )
