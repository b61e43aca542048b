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
from torch import Tensor

from mar_snn.energy.counts import Firing
from mar_snn.energy_plots import (
    plot_break_even,
    plot_energy,
    plot_energy_baselines,
    plot_energy_waterfall,
    plot_profiles,
)
from mar_snn.plot_layout import (
    NEGATIVE,
    POSITIVE,
    SPIKING,
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
    "plot_break_even",
    "plot_energy",
    "plot_energy_baselines",
    "plot_energy_waterfall",
    "plot_firing_rates",
    "plot_firing_steps",
    "plot_profiles",
    "plot_spike_raster",
    "plot_ternary_spikes",
    "plot_thresholds",
    "plot_training",
]

MINUS = "\N{MINUS SIGN}"

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
    tokens: Sequence[Any] | Shaped[Array, "..."] | None = None,
) -> Axes:
    """Ternary spikes over time: one cell for each step and neuron, coloured by sign.

    Where the cells outnumber the pixels, several share one and it shows the mean colour
    of those that fired, stronger the more they are.

    Args:
        spike_seq: -1, 0 and +1, [T, N]: time by neuron, on any device and of any dtype.
        ax: where to draw; a new figure if None.
        tokens: words or numbers of the time axis, each as many steps long as the
            others.

    Raises:
        ValueError: for values that are not unit spikes, for other than two axes, and
            for tokens that do not divide the time axis evenly.
    """
    spikes = unit_spikes(spike_seq)
    steps, neurons = spikes.shape
    words = None if tokens is None else _words(tokens)
    if words is not None and (not words or steps % len(words)):
        raise ValueError(
            f"{steps} time steps cannot be shared evenly among {len(words)} tokens: "
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
    if words is not None:
        label_tokens(ax, words, steps // len(words))
    up, down = (100 * (spikes == sign).mean() for sign in (1, -1))
    handles = [
        Patch(color=POSITIVE, label=f"+1 ({up:.3g} %)"),
        Patch(color=NEGATIVE, label=f"{MINUS}1 ({down:.3g} %)"),
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
    ax.bar(places, down, width=0.8, color=NEGATIVE, label=f"{MINUS}1")
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.margins(y=0.08)
    ax.yaxis.set_major_formatter(lambda rate, _: f"{abs(rate):.3g}")
    ax.set_ylabel("spikes per neuron and step")
    label_sites(ax, bars)
    legend_above(ax)
    return ax


def plot_firing_steps(firing: Mapping[str, Firing], ax: Axes | None = None) -> Axes:
    """Spikes per neuron at each step, by site and layer: +1 upwards, -1 downwards.

    The steps of a neuron stand side by side, the first one darkest.

    Args:
        firing: neuron name -> how often it fired, such as `EnergyReport.firing`.
        ax: where to draw; a new figure if None.

    Raises:
        ValueError: for an empty mapping.
    """
    bars = by_site(firing, "firing")
    ax = ax or new_axes()
    steps = max(firing[bar.name].time_steps for bar in bars)
    for step in range(steps):
        shown = [bar for bar in bars if step < firing[bar.name].time_steps]
        counts = [firing[bar.name] for bar in shown]
        sizes = [max(1, one.elements[step]) for one in counts]
        places = [bar.place + 0.84 * ((step + 0.5) / steps - 0.5) for bar in shown]
        pale = 0.7 * step / max(1, steps - 1)
        for color, spikes, sign in (
            (POSITIVE, [one.pos[step] for one in counts], 1),
            (NEGATIVE, [one.neg[step] for one in counts], -1),
        ):
            rates = [sign * n / size for n, size in zip(spikes, sizes, strict=True)]
            shade = tuple(part + (1 - part) * pale for part in to_rgb(color))
            label = f"{'+' if sign > 0 else MINUS}1" if step == 0 else None
            ax.bar(places, rates, width=0.84 / steps, color=shade, label=label)
    ax.axhline(0.0, color="black", linewidth=0.8)
    ax.margins(y=0.08)
    ax.yaxis.set_major_formatter(lambda rate, _: f"{abs(rate):.3g}")
    ax.set_ylabel("spikes per neuron at a step")
    label_sites(ax, bars)
    ax.set_xlabel(f"{ax.get_xlabel()}; in each, steps 1 to {steps}, dark to pale")
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


def _words(tokens: Sequence[Any] | Shaped[Array, "..."]) -> list[str]:
    """The labels, of a sequence or an array."""
    if isinstance(tokens, Tensor | np.ndarray):
        if tokens.ndim != 1:
            raise ValueError(
                "tokens must have one axis, one label for every T steps, got the "
                f"shape {tuple(tokens.shape)}"
            )
        tokens = tokens.tolist()
    numbers = (t.item() if isinstance(t, Tensor) else t for t in tokens)
    return [str(token) for token in numbers]


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
