"""Pictures of an energy report: the report and an Axes in, the Axes out.

All figures are modelled, and every title says so: none of them has a measurement in it.
"""

import math
from collections.abc import Iterable
from itertools import cycle, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from mar_snn.energy.reporting.baselines import (
    Baseline,
    baselines,
    baselines_by_group,
    break_even,
)
from mar_snn.energy.reporting.memory import ASSUMPTIONS, Traffic, traffic
from mar_snn.energy.reporting.methodology import check_methodology
from mar_snn.energy.reporting.prices import EnergyProfile
from mar_snn.energy.reporting.report import EnergyReport
from mar_snn.energy.reporting.sensitivity import at_profiles
from mar_snn.energy.reporting.text import interval, joules, plain, times
from mar_snn.plot_layout import BASELINE, SPIKING, legend_above, new_axes, tidy

__all__ = [
    "plot_break_even",
    "plot_energy",
    "plot_energy_baselines",
    "plot_energy_waterfall",
    "plot_profiles",
]

Interval = tuple[float, float]

#: one colour a group, the palette of Okabe and Ito and two greys
_GROUPS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
    "#4D4D4D", "#8C8C8C",
)  # fmt: skip
#: on-chip and off-chip memory
_MEMORY = {"sram": "#56B4E9", "dram": "#0072B2"}
_REST, _OTHERS = "#C4C4C4", "all others"
#: Groups with a smaller share of every bar are drawn as one.
_SMALL = 0.02


def plot_energy(report: EnergyReport, ax: Axes | None = None) -> Axes:
    """Modelled energy by part of the model, beside that of the baseline.

    Args:
        report: what `SpikeOpCounter.report` returned.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for a report in which nothing was counted, or without its
            methodology block.
    """
    ax = _begin(report, ax)
    groups = report.groups
    largest = max(max(g.energy_pj, g.baseline_pj) for g in groups.values())
    scale, unit = _energy_unit(largest)
    places = np.arange(len(groups))
    for offset, color, label, energies in (
        (-0.2, BASELINE, report.baseline, [g.baseline_pj for g in groups.values()]),
        (0.2, SPIKING, "spiking", [g.energy_pj for g in groups.values()]),
    ):
        scaled = [energy / scale for energy in energies]
        bars = ax.barh(places + offset, scaled, height=0.38, color=color, label=label)
        ax.bar_label(bars, [f"{e:.3g}" for e in scaled], padding=3, fontsize="small")
    ax.set_yticks(places, list(groups))
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.margins(x=0.1)
    ax.set_xlabel(f"modelled energy per {report.per} ({unit})")
    ax.set_title(_energy_title(report), loc="left", fontsize="medium")
    legend_above(ax)
    return ax


def plot_energy_baselines(report: EnergyReport, ax: Axes | None = None) -> Axes:
    """The spiking model and every baseline as bars, stacked by group.

    A baseline that is known within bounds is drawn at the lower one, the bracket
    reaches to the upper one. The quantised baseline is held against the spiking model
    with 8-bit weights, so its ratio is not that of the two bars.

    Args:
        report: what `SpikeOpCounter.report` returned.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for a report in which nothing was counted, or without its
            methodology block.
    """
    ax = _begin(report, ax)
    known = [(i, b) for i, b in enumerate(baselines(report)) if b.energy_pj is not None]
    stacks = _merge_small(_stacks(report, known))
    labels = [found.name.replace(", ", ",\n") for _, found in known] + ["spiking"]
    lows = np.array(list(stacks.values())).sum(axis=0)
    highs = [(b.energy_pj or (0.0, 0.0))[1] for _, b in known] + [report.energy_pj]
    # the quantised one is held against another spiking model than the bar below
    texts = [
        f"{interval(*map(times, found.ratio or (math.nan, math.nan)))} spiking"
        + (" with 8-bit weights" if found.model_pj != report.energy_pj else "")
        for _, found in known
    ] + [""]
    scale, unit = _energy_unit(max(highs))
    left = np.zeros(len(labels))
    for hue, (group, energies) in zip(cycle(_GROUPS), stacks.items(), strict=False):
        widths = np.array(energies) / scale
        color = _REST if group == _OTHERS else hue
        ax.barh(labels, widths, left=left, height=0.62, color=color, label=group)
        left += widths
    for place, (low, high) in enumerate(zip(lows, highs, strict=True)):
        if high > 1.001 * low:
            ax.plot([low / scale, high / scale], [place] * 2, "|-", color="black", lw=1)
        energies_text = interval(joules(low), joules(high))
        ax.annotate(
            f"{energies_text}   {texts[place]}", (high / scale, place), xytext=(6, 0),
            textcoords="offset points", verticalalignment="center", fontsize="small",
        )  # fmt: skip
    ax.invert_yaxis()
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0.0, 1.45 * max(highs) / scale)
    ax.set_xlabel(f"modelled energy of the arithmetic per {report.per} ({unit})")
    ax.set_title(_caption(report), loc="left", fontsize="small")
    ax.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small"
    )
    tidy(ax)
    return ax


def plot_energy_waterfall(
    report: EnergyReport,
    ax: Axes | None = None,
    *,
    assumption: str = "weights once a call",
) -> Axes:
    """Dense, spiking, with SRAM, with DRAM: what weight traffic leaves of the ratio.

    On a logarithmic axis; the pale part of a bar is the interval of the memory's price.
    Beside each bar stands the dense model's with the same memory, above them the ratio.

    Args:
        report: what `SpikeOpCounter.report` returned.
        ax: where to draw; a new figure if None.
        assumption: one of `mar_snn.energy.reporting.memory.ASSUMPTIONS`.

    Raises:
        ValueError: for a report without bytes or memory prices, for an unknown
            assumption, and without the methodology block.
    """
    ax = _begin(report, ax)
    if assumption not in ASSUMPTIONS:
        raise ValueError(
            f"assumption must be one of {', '.join(ASSUMPTIONS)}, got {assumption!r}"
        )
    lines = [line for line in traffic(report) if line.assumption == assumption]
    if not lines:
        raise ValueError(
            "the report has no traffic: it takes counted bytes, and a profile with "
            f"memory, which {report.profile.name} "
            f"{'has' if report.profile.memory else 'has not'}"
        )
    stages = [("arithmetic", None), *((f"with {m.memory.upper()}", m) for m in lines)]
    floor = min(report.energy_pj, report.baseline_pj) / 3
    tops = []
    for place, (_, line) in enumerate(stages):
        dense, spiking, ratios = _stage(report, line)
        color = SPIKING if line is None else _MEMORY[line.memory]
        for offset, ends, shade in ((-0.2, dense, BASELINE), (0.2, spiking, color)):
            low, high = ends
            ax.bar(place + offset, low - floor, 0.36, bottom=floor, color=shade)
            ax.bar(place + offset, high - low, 0.36, bottom=low, color=shade, alpha=0.4)
            ax.annotate(
                interval(joules(low), joules(high)),
                (place + offset, high), xytext=(0, 3), textcoords="offset points",
                horizontalalignment="center", fontsize="x-small",
            )  # fmt: skip
        tops.append(max(dense[1], spiking[1]))
        text = interval(*(times(value) for value in ratios))
        ax.annotate(
            text, (place, tops[-1]), xytext=(0, 20), textcoords="offset points",
            horizontalalignment="center", fontweight="bold", color=color,
        )  # fmt: skip
    # from dense to spiking, and on from memory to memory
    steps = [report.baseline_pj, *(_stage(report, line)[1][0] for _, line in stages)]
    for place, (level, after) in enumerate(pairwise(steps)):
        left, right = (place - 0.62 if place else -0.02), place + 0.08
        ax.plot([left, right, right], [level, level, after], "k:", linewidth=0.7)
    ax.set_yscale("log")
    ax.set_ylim(floor, max(tops) * 3)
    ax.set_xticks(range(len(stages)), [name for name, _ in stages])
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_formatter(lambda energy_pj, _: joules(energy_pj))
    ax.set_ylabel(f"modelled energy per {report.per}")
    ax.set_xlabel(f"grey: dense, in colour: spiking; {assumption}")
    ax.set_title(_caption(report), loc="left", fontsize="small")
    tidy(ax)
    return ax


def plot_profiles(
    report: EnergyReport,
    ax: Axes | None = None,
    *,
    profiles: Iterable[str | EnergyProfile] | None = None,
) -> Axes:
    """Dense / spiking at the prices of many technologies, alone and with traffic.

    Args:
        report: what `SpikeOpCounter.report` returned, with baseline "dense".
        ax: where to draw; a new figure if None.
        profiles: names or profiles; all that are registered if None.

    Raises:
        ValueError: for a report against another one, for one in which nothing was
            counted, and without the methodology block.
    """
    ax = _begin(report, ax)
    priced = at_profiles(report, profiles)
    assumption = next(iter(ASSUMPTIONS))
    for place, figures in enumerate(priced.values()):
        ax.plot(
            [figures.ratio], [place - 0.26], "o", color=SPIKING, markersize=8,
            label=None if place else "arithmetic only",
        )  # fmt: skip
        ax.annotate(
            times(figures.ratio), (figures.ratio, place - 0.26), xytext=(8, 0),
            textcoords="offset points", verticalalignment="center", fontsize="small",
        )  # fmt: skip
    labelled = set()
    for place, figures in enumerate(priced.values()):
        for line in traffic(figures):
            if line.assumption == assumption:
                offset = {"sram": 0.0, "dram": 0.26}[line.memory]
                name = f"with {line.memory.upper()}, {assumption}"
                ax.plot(
                    line.ratio, [place + offset] * 2, color=_MEMORY[line.memory],
                    linewidth=7, solid_capstyle="butt",
                    marker="|", markersize=9,  # seen where the interval is a point
                    label=None if name in labelled else name,
                )  # fmt: skip
                labelled.add(name)
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(priced)), list(priced))
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.margins(x=0.1, y=0.06)
    ax.set_xlabel("modelled energy, dense / spiking; at 1 they are equal")
    legend_above(ax)
    return ax


def plot_break_even(report: EnergyReport, ax: Axes | None = None) -> Axes:
    """Dense / spiking over spikes for each dense MAC, T·rate; where it crosses 1.

    One curve is the projections alone, the other the whole model with neurons,
    read-outs and LM head as they were counted. The mark is the model as it fired.

    Args:
        report: what `SpikeOpCounter.report` returned.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for a report without spiking projections, or without its
            methodology block.
    """
    ax = _begin(report, ax)
    found = break_even(report)
    here = found.spikes_per_synapse
    if math.isnan(here):
        raise ValueError(
            "no spikes enter a projection of this report: nothing can break even"
        )
    compute, whole = found.compute, found.whole_model
    x = np.geomspace(min(here, 0.1) / 2 or 0.05, 2.5 * max(compute, here), 200)
    curve = np.array([found.ratio_at(spikes) for spikes in x])
    ax.plot(x, compute / x, color=BASELINE, label="projections alone")
    ax.plot(x, curve, color=SPIKING, label="whole model")
    ax.axhline(1.0, color="black", linewidth=0.8)
    for limit, color in ((compute, BASELINE), (whole, SPIKING)):
        if limit > x[0]:
            ax.plot([limit] * 2, [1e-9, 1.0], color=color, linewidth=0.9, ls="--")
            ax.plot([limit], [1.0], "|", color=color, markersize=9)
    if found.matched_bit is not None:
        low, high = found.matched_bit
        ax.axvspan(
            low, high, color=_GROUPS[3], alpha=0.25, linewidth=0,
            label="break-even with the quantised model",
        )  # fmt: skip
    now = found.ratio_at(here)
    ax.plot([here or x[0]], [now], "o", color=SPIKING, markersize=9, zorder=5)
    ax.annotate(
        f"this model: T·rate {plain(here)}, {times(now)}", (here or x[0], now),
        xytext=(-8, -18), textcoords="offset points", fontsize="small",
        horizontalalignment="right",
    )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    ax.set_ylim(min(0.2, curve.min()), max(compute / x[0], 2.0 * found.ceiling))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("T·rate: spikes for each dense MAC of the spiking projections")
    ax.set_ylabel("modelled energy, dense / spiking")
    ax.set_title(_caption(report), loc="left", fontsize="small")
    # the corner below the curves, and below 1, is always free
    ax.legend(loc="lower left", frameon=False, fontsize="small")
    return ax


# ---- pieces


def _begin(report: EnergyReport, ax: Axes | None) -> Axes:
    """The Axes of a report that may be drawn."""
    check_methodology(report.methodology)
    if not report.rows:
        raise ValueError(
            "the report has no operations: run the model inside the counter's block"
        )
    return ax or new_axes()


def _caption(report: EnergyReport) -> str:
    return f"profile {report.profile.name}; modelled, not a measurement"


def _energy_title(report: EnergyReport) -> str:
    """Both totals, their ratio and where the prices come from."""
    scale, unit = _energy_unit(max(report.energy_pj, report.baseline_pj))
    return (
        f"Modelled energy per {report.per}: {report.energy_pj / scale:.3g} {unit} "
        f"spiking, {report.baseline_pj / scale:.3g} {unit} {report.baseline}, ratio "
        f"{report.ratio:.3g}\nprofile {report.profile.name}; not a measurement"
    )


def _energy_unit(energy_pj: float) -> tuple[float, str]:
    """(picojoules in it, name) of the largest unit that leaves at least one digit."""
    units = {1e0: "pJ", 1e3: "nJ", 1e6: "µJ", 1e9: "mJ", 1e12: "J"}
    scale = max((s for s in units if s <= energy_pj), default=1e0)
    return scale, units[scale]


def _stacks(
    report: EnergyReport, known: list[tuple[int, Baseline]]
) -> dict[str, list[float]]:
    """Group -> its lower energy in each known baseline, and in the spiking model."""
    stacks = {}
    for group, parts in baselines_by_group(report).items():
        lows = [(parts[i].energy_pj or (0.0, 0.0))[0] for i, _ in known]
        stacks[group] = [*lows, report.groups[group].energy_pj]
    return stacks


def _merge_small(stacks: dict[str, list[float]]) -> dict[str, list[float]]:
    """Groups that are small in every bar as one, the last."""
    longest = max(map(sum, zip(*stacks.values(), strict=True)))
    merged, others = {}, [0.0] * len(next(iter(stacks.values())))
    for group, energies in stacks.items():
        if max(energies) < _SMALL * longest:
            others = [a + b for a, b in zip(others, energies, strict=True)]
        else:
            merged[group] = energies
    if any(others):
        merged[_OTHERS] = others
    return merged


def _stage(
    report: EnergyReport, line: Traffic | None
) -> tuple[Interval, Interval, Interval]:
    """Energies of the baseline and of the model, and their ratio, each (low, high)."""
    if line is not None:
        return line.baseline_pj, line.energy_pj, line.ratio
    dense, spiking, quotient = report.baseline_pj, report.energy_pj, report.ratio
    return (dense, dense), (spiking, spiking), (quotient, quotient)
