"""The rows of a report for other programs: CSV, and a LaTeX table with booktabs."""

import csv
import io
import re

from mar_snn.energy.reporting.comparison_sections import (
    baseline_section,
    traffic_section,
)
from mar_snn.energy.reporting.figures import EnergyFigures
from mar_snn.energy.reporting.sections import (
    DISCLAIMER,
    not_included,
    part_section,
    summary,
    title,
)

__all__ = ["csv_rows", "latex"]

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "_": r"\_", "%": r"\%",
    "&": r"\&", "#": r"\#", "$": r"\$", "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "[": "{[}", "µ": r"\textmu{}", "·": r"$\cdot$", "\N{EN DASH}": "--",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))
_COLUMNS = ("MAC", "AC", "mul", "energy", "share", "dense", "ratio")


def csv_rows(report: EnergyFigures) -> str:
    """One line a module with a header: counts of the run, energy per unit in pJ."""
    first = report.rows[0] if report.rows else None
    ops = list(first.ops.as_dict()) if first else []
    moved = list(first.moved.as_dict()) if first else []
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "name", "type", "group", "phase", "calls", "T", "readout", "detection",
            *ops,
            *(f"dense_model_{name}" for name in ops),
            *(f"{name}_bytes" for name in moved),
            *(f"dense_model_{name}_bytes" for name in moved),
            "columns_touched", "columns",
            f"energy_pj_per_{report.per}", f"dense_pj_per_{report.per}", "share",
        ]
    )  # fmt: skip
    for row in report.rows:
        dense_pj = report.profile.energy_pj(row.dense_ops) / report.units
        part = report.part([row], dense_pj)
        writer.writerow(
            [
                row.name, row.type, row.group, row.phase, row.calls, row.time_steps,
                row.readout, row.detection,
                *row.ops.as_dict().values(),
                *row.dense_ops.as_dict().values(),
                *row.moved.as_dict().values(),
                *row.dense_moved.as_dict().values(),
                row.columns_touched, row.columns,
                part.energy_pj, part.baseline_pj, part.share,
            ]
        )  # fmt: skip
    return stream.getvalue()


def latex(report: EnergyFigures) -> str:
    r"""A table environment for \usepackage{booktabs}: groups, traffic, baselines."""
    section = part_section(report)
    chosen = [section.header.index(column) for column in _COLUMNS]
    header = (section.header[0], *_COLUMNS)
    groups = [(line[0], *(line[index] for index in chosen)) for line in section.lines]
    blank = ("",) * (len(_COLUMNS) - 4)
    traffic, against = traffic_section(report), baseline_section(report)
    more = [
        (f"{moved}, {memory}", *blank, energy, "", dense, value)
        for moved, memory, _, _, energy, dense, value in traffic.lines[1:]
    ]
    baselines = [
        (name, *blank, spiking, "", energy, value)
        for name, energy, spiking, value in against.lines
    ]
    caption = " ".join(
        (f"{title(report)}.", summary(report), not_included(report), DISCLAIMER)
    )
    blocks = [groups[:-1], groups[-1:], more, baselines]
    body = "\n\\midrule\n".join(
        "\n".join(_row(line) for line in block) for block in blocks if block
    )
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(_COLUMNS)}}}",
            r"\toprule",
            _row(header),
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        )
    )


def _row(cells: tuple[str, ...]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda match: _LATEX[match[0]], text)
