"""A report as a Markdown document, ready for an appendix."""

from collections.abc import Iterable, Mapping
from typing import Any

from mar_snn.energy.reporting.baselines import baselines
from mar_snn.energy.reporting.comparison_sections import comparison_sections
from mar_snn.energy.reporting.figures import EnergyFigures
from mar_snn.energy.reporting.sections import (
    DISCLAIMER,
    Section,
    firing_section,
    not_included,
    part_section,
    summary,
    title,
)

__all__ = ["markdown", "markdown_table"]


def markdown(report: EnergyFigures) -> str:
    """Every table of the report, its exclusions and its methodology."""
    groups, modules = part_section(report), part_section(report, "module")
    lines = [
        f"# {title(report)}",
        "",
        f"{summary(report)}  ",
        f"{not_included(report)}  ",
        DISCLAIMER,
        *_section(groups),
    ]
    for section in comparison_sections(report):
        lines += _section(section)
        if section.title.startswith("Baselines"):
            lines += ["", *_definitions(report)]
    firing = firing_section(report, by_site=False)
    if firing.lines:
        lines += _section(firing, names="`{}`".format)
    lines += _section(modules, names="`{}`".format)
    lines += ["", "## Methodology", "", *_bullets(report.methodology)]
    if report.measured is not None:
        lines += [
            "",
            "## Measured",
            "",
            "Read from a sensor, never to be divided by a modelled figure.",
            "",
            *_bullets(report.measured),
        ]
    return "\n".join(lines) + "\n"


def markdown_table(
    header: Iterable[str], lines: Iterable[tuple[str, ...]]
) -> list[str]:
    """The lines of a table whose columns stand to the right, but for the first."""
    first, *others = map(_cell, header)
    return [
        f"| {' | '.join((first, *others))} |",
        f"|---|{'---:|' * len(others)}",
        *(f"| {' | '.join(map(_cell, cells))} |" for cells in lines),
    ]


# ---- pieces


def _section(section: Section, names: Any = str) -> list[str]:
    lines = [(names(name), *cells) for name, *cells in section.lines]
    if section.total:
        name, *cells = section.lines[-1]
        lines[-1] = (f"**{name}**", *cells)
    text = ["", f"## {section.title}", ""]
    if lines:
        text += [*markdown_table(section.header, lines), ""]
    text += [line for note in section.notes for line in (_sentence(note), "")]
    return text[:-1]


def _definitions(report: EnergyFigures) -> list[str]:
    return [f"- *{found.name}*: {found.definition}." for found in baselines(report)]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _bullets(block: Mapping[str, Any], indent: str = "") -> list[str]:
    """A nested dictionary as a nested Markdown list."""
    lines = []
    for key, value in block.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}- {key}:", *_bullets(value, indent + "  ")]
        elif isinstance(value, list) and value:
            items = [f"{indent}  - {_item(item)}" for item in value]
            lines += [f"{indent}- {key}:", *items]
        else:
            lines.append(f"{indent}- {key}: {_word(value)}")
    return lines


def _item(item: object) -> str:
    if not isinstance(item, dict):
        return str(item)
    known = {key: value for key, value in item.items() if value is not None}
    return ", ".join(f"{key} {value}" for key, value in known.items())


def _word(value: object) -> str:
    """Nothing is "none"; a zero is a zero."""
    return "none" if value in (None, "") or value in ([], {}) else str(value)


def _sentence(note: str) -> str:
    return note[:1].upper() + note[1:]
