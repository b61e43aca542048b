"""A report to read: rich tables and Markdown, never without what they leave out."""

import math
from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mar_snn.energy.counts import OpCounts
from mar_snn.energy.figures import EnergyFigures, GroupEnergy

__all__ = ["group_table", "markdown", "module_table"]

_COLUMNS = (
    "dense MAC", "MAC", "AC", "add", "mul", "cmp", "energy", "share", "dense", "ratio",
)  # fmt: skip
#: Those of the columns that fit into a console of 80 characters.
_CONSOLE = ("MAC", "AC", "mul", "energy", "share", "dense", "ratio")
_DISCLAIMER = "Event-driven hardware assumed. Not a measurement."


def group_table(report: EnergyFigures) -> Table:
    """One line a group, and the total."""
    lines = [(name, _cells(g, report)) for name, g in report.groups.items()]
    return _table(report, "group", lines)


def module_table(report: EnergyFigures, depth: int | None) -> Table:
    """One line a module, names cut to `depth` parts, and the total."""
    if depth is not None and depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    names = dict.fromkeys(_cut(row.name, depth) for row in report.rows)
    lines = []
    for name in names:
        rows = [row for row in report.rows if _cut(row.name, depth) == name]
        lines.append(
            (
                name or "(model)",
                _cells(
                    _energies(
                        report,
                        OpCounts.sum(row.ops for row in rows),
                        OpCounts.sum(row.dense_ops for row in rows),
                    ),
                    report,
                ),
            )
        )
    return _table(report, "module", lines)


def markdown(report: EnergyFigures) -> str:
    """Table, firing, methodology and exclusions as one Markdown document."""
    groups = [(name, _cells(g, report)) for name, g in report.groups.items()]
    lines = [
        f"# {_title(report)}",
        "",
        *_markdown_table(
            ("group", *_COLUMNS), [*groups, ("**total**", _total_cells(report))]
        ),
        "",
        f"{_summary(report)}  ",
        f"{_not_included(report)}  ",
        _DISCLAIMER,
    ]
    if report.firing:
        lines += ["", "## Firing", "", *_firing_table(report)]
    lines += ["", "## Methodology", "", *_bullets(report.methodology)]
    return "\n".join(lines) + "\n"


# ---- pieces


def _table(
    report: EnergyFigures, first: str, lines: Iterable[tuple[str, list[str]]]
) -> Table:
    table = Table(
        title=_title(report),
        caption="\n".join((_summary(report), _not_included(report), _DISCLAIMER)),
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column(first, overflow="fold", min_width=12)
    for column in _CONSOLE:
        table.add_column(column, justify="right", no_wrap=True)
    chosen = [_COLUMNS.index(column) for column in _CONSOLE]
    for name, cells in lines:
        table.add_row(name, *(cells[index] for index in chosen))
    table.add_section()
    total = _total_cells(report)
    table.add_row("total", *(total[index] for index in chosen), style="bold")
    return table


def _title(report: EnergyFigures) -> str:
    return (
        f"Modelled energy per {report.per} of {report.methodology['model']['class']}, "
        f"{report.profile.name}"
    )


def _summary(report: EnergyFigures) -> str:
    coverage = report.methodology["coverage"]["covered"]
    parts = [
        f"{report.units} {report.per}{'s' if report.units > 1 else ''}",
        f"baseline {report.baseline}",
        f"{100 * (coverage or 0):.4g} % of calls have a rule",
    ]
    if report.firing:
        parts.append(
            f"firing rate {report.firing_rate:.3g} per element and step, sign balance "
            f"{_signed(report.sign_balance)}"
        )
    return "; ".join(parts) + "."


def _not_included(report: EnergyFigures) -> str:
    parts = [
        entry["what"] if entry["count"] is None
        else f"{entry['count']} {entry['what']} ({entry['why']})"
        for entry in report.methodology["excluded"]
    ]  # fmt: skip
    return f"NOT INCLUDED: {', '.join(parts)}."


def _energies(report: EnergyFigures, ops: OpCounts, dense_ops: OpCounts) -> GroupEnergy:
    energy_pj = report.profile.energy_pj(ops) / report.units
    return GroupEnergy(
        counts=ops,
        energy_pj=energy_pj,
        baseline_pj=report.profile.energy_pj(dense_ops) / report.units,
        share=energy_pj / report.energy_pj if report.energy_pj else 0.0,
    )


def _cells(line: GroupEnergy, report: EnergyFigures) -> list[str]:
    ops, units = line.counts, report.units
    accumulations = ops.ac_add + ops.ac_sub + ops.ac_coincidence
    counts = (
        ops.dense_mac, ops.mac, accumulations, ops.add + ops.bias_add, ops.mul, ops.cmp,
    )  # fmt: skip
    return [
        *(_number(count / units) for count in counts),
        _joules(line.energy_pj),
        f"{100 * line.share:.1f} %",
        _joules(line.baseline_pj),
        f"{line.ratio:.2f}x" if line.energy_pj and line.baseline_pj else "-",
    ]


def _total_cells(report: EnergyFigures) -> list[str]:
    total = GroupEnergy(
        counts=report.total,
        energy_pj=report.energy_pj,
        baseline_pj=report.baseline_pj,
        share=1.0,
    )
    return _cells(total, report)


def _cut(name: str, depth: int | None) -> str:
    return ".".join(name.split(".")[:depth])


def _number(value: float) -> str:
    """Three digits and k, M, G or T."""
    for factor, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}"
    return f"{value:.3g}"


def _joules(energy_pj: float) -> str:
    """Three digits and pJ, nJ, µJ, mJ or J."""
    for factor, unit in ((1e12, "J"), (1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ")):
        if energy_pj >= factor:
            return f"{energy_pj / factor:.3g} {unit}"
    return f"{energy_pj:.3g} pJ"


def _markdown_table(
    header: Iterable[str], lines: Iterable[tuple[str, list[str]]]
) -> list[str]:
    first, *others = header
    return [
        f"| {' | '.join((first, *others))} |",
        f"|---|{'---:|' * len(others)}",
        *(f"| {' | '.join((name, *cells))} |" for name, cells in lines),
    ]


def _firing_table(report: EnergyFigures) -> list[str]:
    lines = [
        (
            f"`{name}`",
            [
                str(firing.time_steps),
                f"{firing.rate:.4f}",
                " ".join(f"{rate:.3f}" for rate in firing.rate_by_step),
                f"{firing.p_pos:.4f}",
                f"{firing.p_neg:.4f}",
                _signed(firing.sign_balance),
            ],
        )
        for name, firing in report.firing.items()
    ]
    return _markdown_table(
        ("neuron", "T", "rate", "rate by step", "p(+1)", "p(-1)", "balance"), lines
    )


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.2f}"


def _bullets(block: dict[str, Any], indent: str = "") -> list[str]:
    """A nested dictionary as a nested Markdown list."""
    lines = []
    for key, value in block.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}- {key}:", *_bullets(value, indent + "  ")]
        elif isinstance(value, list) and value:
            items = [f"{indent}  - {_sentence(item)}" for item in value]
            lines += [f"{indent}- {key}:", *items]
        else:
            lines.append(f"{indent}- {key}: {value or 'none'}")
    return lines


def _sentence(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    known = {key: value for key, value in item.items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in known.items())
