"""What an ablation study found: statistics and verdicts, as JSON, Markdown, CSV, plot.

A change is that of the perplexity in per cent, taken within each seed, whose runs see
the same text in the same order; its mean is that of a factor, the geometric one. A
claim is supported or contradicted where the 95 % interval of its change, by Student's t
over the logarithms, lies on one side of zero.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from ablation_studies import Row, Study
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from mar_snn.energy.reporting.statistics import summarise
from mar_snn.plot_layout import BASELINE, FAINT, SPIKING, tidy

__all__ = ["as_csv", "collect", "draw", "markdown"]

Figures = Mapping[str, float]

#: figure of a run -> its heading, and its digits in a table
_COLUMNS = {
    "calibrated": ("perplexity, calibrated", 2),
    "perplexity": ("distilled", 2),
    "perplexity_ratio": ("\N{MULTIPLICATION SIGN} teacher", 3),
    "sparsity": ("sparsity", 3),
    "alignment_error": ("alignment error", 3),
    "synops_per_token": ("SynOps per token", 0),
    "energy_ratio": ("energy, dense / spiking", 2),
}


def collect(
    study: Study, figures: Mapping[tuple[str, str], Sequence[Figures]]
) -> dict[str, Any]:
    """Rows and factors of a study with their statistics, ready for JSON.

    Args:
        study: what was run.
        figures: (section, name) of a row -> the figures of its runs, by seed.
    """
    return {
        "title": study.title,
        "rows": [_row(row, study, figures) for row in study.rows],
        "factors": [
            line
            for name, fields in study.factors.items()
            for line in _factor(name, fields, study, figures)
        ],
    }


def _row(
    row: Row, study: Study, figures: Mapping[tuple[str, str], Sequence[Figures]]
) -> dict[str, Any]:
    runs = figures[row.section, row.name]
    found = asdict(row) | {
        "runs": list(runs),
        "statistics": {key: _statistic([run[key] for run in runs]) for key in runs[0]},
        "change": _change(_changes(runs, figures[study.reference])),
    }
    if row.against:
        change = _change(_changes(runs, figures[row.section, row.against]))
        found |= {"claimed_change": change, "verdict": _verdict(change, row.expected)}
    return found


def _factor(
    name: str,
    fields: tuple[str, ...],
    study: Study,
    figures: Mapping[tuple[str, str], Sequence[Figures]],
) -> list[dict[str, Any]]:
    """What each level of one factor changes against the level of the reference.

    Over all pairs of rows that differ in nothing else: for each seed the geometric mean
    of the pairs, then the statistics of the seeds.
    """

    def parts(row: Row) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        spiking = asdict(row.spiking)
        level = tuple(spiking.pop(field) for field in fields)
        return level, tuple(spiking.values())

    (reference,) = (r for r in study.rows if (r.section, r.name) == study.reference)
    default, others = parts(reference)
    split = [(row, *parts(row)) for row in study.rows]
    bases = {rest: row for row, level, rest in split if level == default}
    pairs: dict[Any, list[list[float]]] = {}
    alone: dict[Any, list[float]] = {}
    for row, level, rest in split:
        if level != default and rest in bases:
            base = bases[rest]
            changes = _changes(
                figures[row.section, row.name], figures[base.section, base.name]
            )
            pairs.setdefault(level, []).append(changes)
            if rest == others:
                alone[level] = changes
    return [
        {
            "factor": name,
            "level": _level(level),
            "against": _level(default),
            "pairs": len(changes),
            "change": _change(
                [_change(pair)["mean"] for pair in zip(*changes, strict=True)]
            ),
            "change_alone": _change(alone[level]),
        }
        for level, changes in pairs.items()
    ]


def _level(values: tuple[Any, ...]) -> str:
    if values[0] == "straight_through":
        return "straight-through"
    if values[0] == "surrogate":
        return f"{values[1]}{', reset detached' if values[2] else ''}"
    (value,) = values
    return value if isinstance(value, str) else {2 / 3: "2/3"}.get(value, f"{value:g}")


def _changes(runs: Sequence[Figures], base: Sequence[Figures]) -> list[float]:
    """By how many per cent the perplexity of each run is above that of its base."""
    return [
        100 * (run["perplexity"] / other["perplexity"] - 1)
        for run, other in zip(runs, base, strict=True)
    ]


def _statistic(values: Sequence[float]) -> dict[str, Any]:
    """Mean, std and 95 % interval; the last two null with one seed."""
    found = summarise(values)
    single = len(values) == 1
    return {
        "mean": found.mean,
        "std": None if single else found.std,
        "ci95": None if single else found.ci95,
    }


def _change(changes: Sequence[float]) -> dict[str, Any]:
    """The same of changes in per cent, mean and interval taken of their logarithms."""
    logs = _statistic([math.log1p(change / 100) for change in changes])
    ends = logs["ci95"]
    return {
        "mean": 100 * math.expm1(logs["mean"]),
        "std": _statistic(changes)["std"],
        "ci95": ends and [100 * math.expm1(end) for end in ends],
    }


def _verdict(change: Mapping[str, Any], expected: str) -> str:
    if change["ci95"] is None:
        return "one seed decides nothing"
    low, high = change["ci95"]
    if low <= 0 <= high:
        return "undecided"
    return "supported" if (high < 0) == (expected == "lower") else "contradicted"


def markdown(results: Mapping[str, Any]) -> list[str]:
    """The tables of a result file: rows, claims, factors; without those it lacks."""
    header = ["row", *(heading for heading, _ in _COLUMNS.values())]
    lines = []
    for row in results["rows"]:
        title = f"**{row['section']}**"
        if title not in [line[0] for line in lines]:
            lines.append([title, *[""] * len(_COLUMNS)])
        cells = [
            _cell(row["statistics"].get(key), digits)
            for key, (_, digits) in _COLUMNS.items()
        ]
        lines.append([row["name"], *cells])
    tables = [_table(header, lines)]
    claims = [
        [
            f"{row['section']}: {row['name']}",
            row["claim"],
            row["against"],
            *_change_cells(row["claimed_change"]),
            row["verdict"],
        ]
        for row in results["rows"]
        if row["against"]
    ]
    if claims:
        header = ["row", "claim", "against", "change, %", "95 %", "verdict"]
        tables.append(_table(header, claims))
    factors = [
        [
            f"{line['factor']}: {line['level']}",
            line["against"],
            *_change_cells(line["change"]),
            str(line["pairs"]),
            *_change_cells(line["change_alone"]),
        ]
        for line in results["factors"]
    ]
    if factors:
        header = ["factor", "against", "change, %, all pairs", "95 %", "pairs"]
        header += ["change, %, rest as the default", "95 %"]
        tables.append(_table(header, factors))
    return tables


def _cell(statistic: Mapping[str, Any] | None, digits: int) -> str:
    if statistic is None:
        return "-"
    digits = digits if statistic["mean"] < 1000 else 0
    mean = f"{statistic['mean']:,.{digits}f}"
    std = statistic["std"]
    return mean if std is None else f"{mean} ± {std:,.{digits}f}"


def _change_cells(change: Mapping[str, Any]) -> list[str]:
    mean = f"{change['mean']:+,.2f}"
    if change["ci95"] is None:
        return [mean, "-"]
    low, high = change["ci95"]
    return [f"{mean} ± {change['std']:,.2f}", f"{low:+,.2f} to {high:+,.2f}"]


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def as_csv(results: Mapping[str, Any]) -> str:
    """One line for each row: its names, then mean and std of every figure."""
    keys = dict.fromkeys(key for row in results["rows"] for key in row["statistics"])
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = [f"{key}_{end}" for key in keys for end in ("mean", "std")]
    writer.writerow(["section", "name", *names, "change_percent", "verdict"])
    for row in results["rows"]:
        found = [row["statistics"].get(key, {}) for key in keys]
        values = [each.get(end) for each in found for end in ("mean", "std")]
        change, verdict = row["change"]["mean"], row.get("verdict")
        writer.writerow([row["section"], row["name"], *values, change, verdict])
    return stream.getvalue()


def draw(results: Mapping[str, Any]) -> Figure:
    """How far every row is above its teacher: a dot a seed, a bar at the mean.

    The axis is linear up to 1 % and logarithmic beyond: that of a dense teacher is 0.
    """
    lines: list[Mapping[str, Any] | str] = []
    for row in results["rows"]:
        if row["section"] not in lines:
            lines.append(row["section"])
        lines.append(row)
    figure = Figure(figsize=(9, 1 + 0.22 * len(lines)), layout="constrained")
    ax = figure.subplots()
    labels = []
    for y, line in enumerate(lines):
        if isinstance(line, str):
            labels.append(line)
            continue
        labels.append(line["name"])
        above = [100 * (run["perplexity_ratio"] - 1) for run in line["runs"]]
        ax.plot(above, [y] * len(above), "o", color=SPIKING, alpha=0.5, markersize=4)
        ax.plot(fmean(above), y, "|", color="black", markersize=11)
    ax.axvline(0.0, color=BASELINE, linewidth=1)
    ax.grid(axis="x", which="both", color=FAINT, linewidth=0.4)
    ax.set_yticks(range(len(lines)), labels, fontsize="small")
    for label, line in zip(ax.get_yticklabels(), lines, strict=True):
        if isinstance(line, str):
            label.set_fontweight("bold")
    ax.tick_params(axis="y", length=0)
    ax.set_xscale("symlog", linthresh=1.0)
    ax.set_xlim(min(-0.2, ax.dataLim.x0), 2 * max(1.0, ax.dataLim.x1))
    ax.tick_params(axis="x", labelsize="small")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set(xlabel="held-out perplexity above the teacher's, %", title=results["title"])
    ax.set_ylim(len(lines) - 0.5, -0.5)
    tidy(ax)
    return figure
