"""A report on the console, never without what it leaves out."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mar_snn.energy.reporting.comparison_sections import comparison_sections
from mar_snn.energy.reporting.figures import EnergyFigures
from mar_snn.energy.reporting.sections import (
    DISCLAIMER,
    Section,
    firing_section,
    largest_section,
    not_included,
    part_section,
    summary,
    title,
)

__all__ = ["console", "measured_lines", "table_of"]

#: How many modules the overview by group names.
_LARGEST = 5


def console(report: EnergyFigures, by: str, depth: int | None) -> Group:
    """All sections as rich tables, the figures of a meter after the modelled ones.

    Raises:
        ValueError: for a `by` other than "group" and "module", and a depth below 1.
    """
    parts: list[RenderableType] = [Text(title(report), style="bold")]
    parts.append(table_of(part_section(report, by, depth)))
    if by == "group":
        parts.append(table_of(largest_section(report, _LARGEST)))
    parts += [table_of(section) for section in comparison_sections(report)]
    firing = firing_section(report, by_site=by == "group")
    if firing.lines:
        parts.append(table_of(firing))
    notes = (summary(report), not_included(report), DISCLAIMER)
    parts += [Text(note) for note in notes]
    if report.measured is not None:
        parts.append(Text("\nMeasured, never to be divided by a modelled figure"))
        parts += [Text(f"  {line}") for line in measured_lines(report.measured)]
    return Group(*parts)


def table_of(section: Section) -> RenderableType:
    """A section as a rich table, with the columns that fit."""
    notes = [Text(note, style="dim") for note in section.notes]
    if not section.lines:
        return Group(*notes)
    table = Table(
        title=section.title,
        title_justify="left",
        title_style="italic",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    header = section.console or section.header
    chosen = [section.header.index(column) for column in header]
    table.add_column(header[0], overflow="fold", min_width=14)
    for column in header[1:]:
        table.add_column(column, justify="right")
    for line in section.lines[: -1 if section.total else None]:
        table.add_row(*(Text(line[index]) for index in chosen))
    if section.total:
        table.add_section()
        last = section.lines[-1]
        table.add_row(*(Text(last[index]) for index in chosen), style="bold")
    return Group(table, *(Padding(note, (0, 0, 1, 1)) for note in notes))


def measured_lines(measured: dict[str, Any]) -> list[str]:
    """One line for each entry of a measurement."""
    lines = []
    for key, value in measured.items():
        if isinstance(value, dict):
            lines += [f"{key}.{line}" for line in measured_lines(value)]
        elif isinstance(value, list):
            lines.append(f"{key}: {', '.join(map(str, value)) or 'none'}")
        else:
            lines.append(f"{key}: {'none' if value in (None, '') else value}")
    return lines
