"""Pictures of spikes, thresholds, energy and training: data and an Axes in, Axes out.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Nothing
is shown or saved here: that is up to the caller.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Shaped
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from mar_snn.energy.counts import Firing
from mar_snn.energy.methodology import check_methodology
from mar_snn.energy.report import EnergyReport
from mar_snn.plot_layout import (
    by_site,
    label_sites,
    label_tokens,
    legend_above,
    new_axes,
    part_cells,
    pixels,
    stacked_bars,
)
from mar_snn.spike_image import Array, as_array, spike_image, unit_spikes

__all__ = [
    "plot_energy",
    "plot_firing_rates",
    "plot_spike_raster",
    "plot_ternary_spikes",
    "plot_thresholds",
    "plot_training",
]

#: vermillion for +1, blue for -1
POSITIVE, NEGATIVE = "#D55E00", "#0072B2"
#: green for the spiking model, grey for what it is compared with
SPIKING, BASELINE = "#009E73", "#9A9A9A"

#: key of the trainer's history -> (label, colour, line style)
LOSSES = {
    "loss": ("loss", "#000000", "-"),
    "forward_kl": ("forward KL", "#E69F00", "-"),
    "reverse_kl": ("reverse KL", "#56B4E9", "-"),
    "features": ("features", "#CC79A7", "-"),
    "eval_loss": ("held-out loss", "#000000", "--"),
}


def plot_spike_raster(
    spike_seq: Shaped[Array, "..."],
    ax: Axes | None = None,
    *,
    tokens: Sequence[str] | None = None,
) -> Axes:
    """Ternary spikes over time: one cell for each step and neuron, coloured by sign.

    Where the cells outnumber the pixels, several share one and it shows the mean colour
    of those that fired, stronger the more they are.

    Args:
        spike_seq: -1, 0 and +1, [T, N]: time by neuron, on any device and of any dtype.
        ax: where to draw; a new figure if None.
        tokens: words of the time axis, each as many steps long as the others.

    Raises:
        ValueError: for values that are not unit spikes, for other than two axes, and
            for tokens that do not divide the time axis evenly.
    """
    spikes = unit_spikes(spike_seq)
    steps, neurons = spikes.shape
    if tokens is not None and (not tokens or steps % len(tokens)):
        raise ValueError(
            f"{steps} time steps cannot be shared evenly among {len(tokens)} tokens: "
            "give one label for every T steps, or none"
        )
    ax = ax or new_axes()
    # fewer cells than pixels, or drawing would drop some; the layout may yet shrink
    width, height = (0.75 * size for size in pixels(ax))
    per_column, per_row = math.ceil(steps / width), math.ceil(neurons / height)
    image = spike_image(
        spikes, per_column, per_row, colours=(to_rgb(POSITIVE), to_rgb(NEGATIVE))
    )
    rows, columns, _ = image.shape
    ax.imshow(
        image,
        aspect="auto",
        origin="lower",
        extent=(-0.5, columns * per_column - 0.5, -0.5, rows * per_row - 0.5),
        interpolation="nearest",
    )
    ax.set(xlim=(-0.5, steps - 0.5), ylim=(-0.5, neurons - 0.5))
    ax.set(xlabel="time step", ylabel="neuron")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    if tokens is not None:
        label_tokens(ax, tokens, steps // len(tokens))
    up, down = (100 * (spikes == sign).mean() for sign in (1, -1))
    handles = [
        Patch(color=POSITIVE, label=f"+1 ({up:.3g} %)"),
        Patch(color=NEGATIVE, label=f"\N{MINUS SIGN}1 ({down:.3g} %)"),
    ]
    legend_above(ax, handles)
    return ax


def plot_ternary_spikes(
    spikes: Shaped[Array, "..."],
    title: str,
    xlabel: str,
    ylabel: str,
    int_x_ticks: bool = True,
    int_y_ticks: bool = True,
    plot_firing_rate: bool = True,
    firing_rate_map_title: str = "firing rate",
    figsize: tuple[float, float] = (12.0, 8.0),
    dpi: int = 200,
) -> tuple[Figure, Axes]:
    """A new figure, and its Axes of the spikes: neuron 0 at the top, time rightwards.

    For `spikingjelly.visualizing.plot_1d_spikes`, with its arguments, where spikes have
    a sign: that one draws +1 only and calls the signed mean a rate. Here the rate is
    the mean magnitude, a bar for each neuron, in two colours for its +1 and its -1.

    Args:
        spikes: -1, 0 and +1, [T, N]: time by neuron, on any device and of any dtype.
        title: stands above the spikes.
        xlabel: what time is called.
        ylabel: what the neurons are called.
        int_x_ticks: only whole numbers along time.
        int_y_ticks: only whole numbers along the neurons.
        plot_firing_rate: whether the bars are drawn, in a second Axes on the right.
        firing_rate_map_title: stands above the bars.
        figsize: width and height in inches.
        dpi: dots to the inch.

    Raises:
        ValueError: for values that are not unit spikes, and for other than two axes.
    """
    unit = unit_spikes(spikes)
    fig = plt.figure(figsize=figsize, dpi=dpi, layout="constrained")
    widths = [4, 1] if plot_firing_rate else [1]
    grid = fig.add_gridspec(1, len(widths), width_ratios=widths)
    ax = plot_spike_raster(unit, fig.add_subplot(grid[0]))
    part_cells(ax, *unit.shape)
    ax.invert_yaxis()
    ax.set_title(title, pad=24)  # above the legend
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=int_x_ticks))
    ax.yaxis.set_major_locator(MaxNLocator(integer=int_y_ticks))
    if plot_firing_rate:
        rates = fig.add_subplot(grid[1], sharey=ax)
        rates.set_title(firing_rate_map_title, pad=24)
        rates.set_xlabel("spikes per step")
        parts = {
            POSITIVE: (unit == 1).mean(axis=0),
            NEGATIVE: (unit == -1).mean(axis=0),
        }
        stacked_bars(rates, parts)
    return fig, ax


def plot_firing_rates(firing: Mapping[str, Firing], ax: Axes | None = None) -> Axes:
    """Spikes per neuron and step by site and layer: +1 upwards, -1 downwards.

    Args:
        firing: neuron name -> how often it fired, such as `EnergyReport.firing`.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for an empty mapping.
    """
    bars = by_site(firing, "firing")
    ax = ax or new_axes()
    places = [bar.place for bar in bars]
    up = [firing[bar.name].p_pos for bar in bars]
    down = [-firing[bar.name].p_neg for bar in bars]
    ax.bar(places, up, width=0.8, color=POSITIVE, label="+1")
    ax.bar(places, down, width=0.8, color=NEGATIVE, label="\N{MINUS SIGN}1")
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.margins(y=0.08)
    ax.yaxis.set_major_formatter(lambda rate, _: f"{abs(rate):.3g}")
    ax.set_ylabel("spikes per neuron and step")
    label_sites(ax, bars)
    legend_above(ax)
    return ax


def plot_thresholds(
    thresholds: Mapping[str, Shaped[Array, "..."]], ax: Axes | None = None
) -> Axes:
    """Thresholds V by site and layer: the box holds half of the channels.

    The line is the median, the whiskers reach from the 1st to the 99th percentile.

    Args:
        thresholds: neuron name -> thresholds of its channels, all above zero.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for an empty mapping, and for thresholds that are not above zero.
    """
    boxes = by_site(thresholds, "thresholds")
    values = [as_array(thresholds[box.name]).ravel() for box in boxes]
    for box, channels in zip(boxes, values, strict=True):
        if not (channels.size and np.isfinite(channels).all() and channels.min() > 0):
            raise ValueError(
                f"thresholds must be finite and above zero, those of {box.name} are "
                "not: pass `node.v_threshold`, not its logarithm `a`"
            )
    ax = ax or new_axes()
    ax.boxplot(
        values,
        positions=[box.place for box in boxes],
        widths=0.7,
        whis=(1, 99),
        showfliers=False,
        showcaps=False,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": "#56B4E9", "edgecolor": "none"},
        medianprops={"color": "black", "linewidth": 1.2},
        whiskerprops={"color": "#56B4E9"},
    )
    _log_scale(ax)
    ax.set_ylabel("threshold V (units of the input)")
    label_sites(ax, boxes)
    return ax


def plot_energy(report: EnergyReport, ax: Axes | None = None) -> Axes:
    """Modelled energy by part of the model, beside that of the baseline.

    Args:
        report: what `SpikeOpCounter.report` returned.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for a report in which nothing was counted, or without its
            methodology block.
    """
    check_methodology(report.methodology)
    groups = report.groups
    if not groups:
        raise ValueError(
            "the report has no operations: run the model inside the counter's block"
        )
    ax = ax or new_axes()
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


def plot_training(history: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """The terms of the loss by step, and the firing rate on a second axis.

    Args:
        history: `trainer.state.log_history`; terms that it lacks are left out.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for a history without any term of the loss.
    """
    curves = {key: _curve(history, key, above=0.0) for key in LOSSES}
    curves = {key: curve for key, curve in curves.items() if curve.steps}
    if not curves:
        raise ValueError(
            f"the history has no value above zero of {', '.join(LOSSES)}: pass "
            "trainer.state.log_history after training"
        )
    ax = ax or new_axes()
    handles: list[Artist] = []
    for key, curve in curves.items():
        label, color, style = LOSSES[key]
        marker = "o" if len(curve.steps) == 1 or style == "--" else ""
        handles += ax.plot(
            *curve, style, color=color, label=label, marker=marker, markersize=3
        )
    _log_scale(ax)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("loss and its terms (nats; features: own unit)")
    firing = _curve(history, "firing_rate")
    if firing.steps:
        handles += _plot_firing_rate(ax.twinx(), firing)
    legend_above(ax, handles)
    return ax


class _Curve(NamedTuple):
    steps: list[float]
    values: list[float]


def _curve(
    history: Sequence[Mapping[str, Any]], key: str, *, above: float = -math.inf
) -> _Curve:
    """The finite values of `key` by step; a logarithmic axis wants those above 0."""
    rows = [row for row in history if "step" in row and above < row.get(key, math.nan)]
    rows = [row for row in rows if math.isfinite(row[key])]
    return _Curve([row["step"] for row in rows], [row[key] for row in rows])


def _plot_firing_rate(ax: Axes, firing: _Curve) -> list[Line2D]:
    marker = "o" if len(firing.steps) == 1 else ""
    lines = ax.plot(
        *firing, ":", color=SPIKING, label="firing rate", marker=marker, markersize=3
    )
    ax.set_ylim(0.0, 1.25 * max(*firing.values, 1e-3))
    ax.set_ylabel("spikes per neuron and step", color=SPIKING)
    ax.tick_params(axis="y", colors=SPIKING)
    ax.spines["top"].set_visible(False)
    return lines


def _log_scale(ax: Axes) -> None:
    """A logarithmic axis with plain numbers, wide enough for two of 1, 2, 5, 10."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    middle = math.sqrt(low * high)
    ax.set_ylim(min(low, middle / 2.5), max(high, middle * 2.5))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


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
