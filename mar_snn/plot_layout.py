"""What the plots share: where the neurons stand, labels, legends."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mar_snn.spiking import SITES

__all__ = [
    "BASELINE",
    "FAINT",
    "NEGATIVE",
    "POSITIVE",
    "SPIKING",
    "Place",
    "by_site",
    "label_sites",
    "label_tokens",
    "legend_above",
    "new_axes",
    "part_cells",
    "pixels",
    "stacked_bars",
    "tidy",
]

#: vermillion for +1, blue for -1
POSITIVE, NEGATIVE = "#D55E00", "#0072B2"
#: green for the spiking model, grey for what it is compared with
SPIKING, BASELINE = "#009E73", "#9A9A9A"
#: colour of lines that only guide the eye
FAINT = "#BFBFBF"


class Place(NamedTuple):
    """Where on the horizontal axis a neuron stands."""

    name: str
    group: str
    layer: int | None
    place: float


def new_axes() -> Axes:
    """The Axes of a new figure."""
    return plt.subplots(figsize=(10.0, 5.0), layout="constrained")[1]


def pixels(ax: Axes) -> tuple[int, int]:
    """Width and height of `ax` in pixels, at least one each."""
    box = ax.get_window_extent()
    return max(1, int(box.width)), max(1, int(box.height))


def part_cells(ax: Axes, columns: int, rows: int) -> None:
    """White lines between the cells of a picture, where these are 6 points or more."""
    for size, cells, draw in zip(
        pixels(ax), (columns, rows), (ax.axvline, ax.axhline), strict=True
    ):
        if size / ax.figure.dpi * 72 >= 6 * cells:
            for edge in range(cells - 1):
                draw(edge + 0.5, color="white", linewidth=1.0)


def stacked_bars(ax: Axes, parts: Mapping[str, Float[np.ndarray, " rows"]]) -> None:
    """A bar for each row, of its parts side by side: colour -> lengths, none below 0.

    The whole length is written beside the bar where there is room for a line of print.
    """
    rows = len(next(iter(parts.values())))
    edges = np.arange(rows + 1) - 0.5
    left = np.zeros(rows)
    for color, lengths in parts.items():
        right = left + lengths
        # one outline for all the bars, however many
        ax.stairs(
            right,
            edges,
            baseline=left,
            orientation="horizontal",
            fill=True,
            color=color,
        )
        left = right
    ax.set_xlim(0.0, 1.3 * (left.max() or 1.0))
    ax.xaxis.set_major_locator(MaxNLocator(4, prune="upper"))
    ax.tick_params(axis="y", left=False, labelleft=False)
    part_cells(ax, 1, rows)
    if rows * 11 <= pixels(ax)[1] / ax.figure.dpi * 72:
        for row, length in enumerate(left):
            ax.annotate(
                f"{length:.2f}",
                (length, row),
                xytext=(3, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize="small",
            )
    tidy(ax)


def label_tokens(ax: Axes, tokens: Sequence[str], time_steps: int) -> None:
    """Words at the middle of their steps, and light lines between them."""
    inches = pixels(ax)[0] / ax.figure.dpi
    # small print: lines 11 points high, eleven letters to the inch
    every = math.ceil(len(tokens) / max(1, int(inches * 72 / 11)))
    crowded = sum(len(token) + 2 for token in tokens) > inches * 11
    edges = np.arange(0, len(tokens) * time_steps, every * time_steps) - 0.5
    ax.vlines(edges[1:], *ax.get_ylim(), colors=FAINT, linewidth=0.5)
    ax.set_xticks(
        edges + time_steps / 2,
        tokens[::every],
        rotation=90 if crowded else 0,
        verticalalignment="top" if crowded else "baseline",
        fontsize="small",
        parse_math=False,
    )
    ax.tick_params(axis="x", length=0, pad=4 if crowded else 13)
    ax.set_xlabel(f"time ({time_steps} steps each)")


def by_site(names: Iterable[str], what: str) -> list[Place]:
    """Places for the neurons: sites side by side, their layers in order, then the rest.

    Raises:
        ValueError: for no names at all.
    """
    sites = {f"{owner}.{slot}": site for site, (owner, slot, _) in SITES.items()}
    rows: list[tuple[str, int | None, str]] = []
    for name in names:
        match = re.search(r"(\d+)\.(\w+\.\w+)$", name)
        site = sites.get(match[2]) if match else None
        rows.append(
            (site, int(match[1]), name) if match and site else (name, None, name)
        )
    if not rows:
        raise ValueError(
            f"{what} holds no neuron: pass a mapping from names such as "
            "'backbone.layers.0.mixer.in_neuron'"
        )
    rank = {group: i for i, group in enumerate([*SITES, *(row[2] for row in rows)])}
    rows.sort(key=lambda row: (rank[row[0]], row[1] or 0))
    places: list[Place] = []
    for group, layer, name in rows:
        # one bar's width between the groups
        step = 1.0 if places and places[-1].group == group else 2.0
        left = places[-1].place if places else -step
        places.append(Place(name, group, layer, left + step))
    return places


def label_sites(ax: Axes, places: Sequence[Place]) -> None:
    """Layer numbers under the bars, and below them the names of the sites."""
    groups: dict[str, list[float]] = {}
    for place in places:
        groups.setdefault(place.group, []).append(place.place)
    every = math.ceil(len(places) / 40)
    numbered = [p for p in places if p.layer is not None and p.layer % every == 0]
    ax.set_xticks([p.place for p in numbered], [str(p.layer) for p in numbered])
    # a site's name stands under the number of its middle layer, at the same place
    ax.xaxis.remove_overlapping_locs = False
    centres = [sum(xs) / len(xs) for xs in groups.values()]
    crowded = sum(len(group) + 2 for group in groups) > 90
    ax.set_xticks(centres, list(groups), minor=True)
    ax.tick_params(axis="x", which="major", length=0, labelsize="small")
    ax.tick_params(
        axis="x",
        which="minor",
        length=0,
        pad=18 if numbered else 4,
        labelrotation=90 if crowded else 0,
    )
    ax.set_xlim(places[0].place - 1.0, places[-1].place + 1.0)
    ax.set_xlabel("layer and site" if numbered else "neuron")
    tidy(ax)


def legend_above(ax: Axes, handles: Sequence[Artist] | None = None) -> None:
    """One row above the right corner, clear of the data."""
    handles = handles or ax.get_legend_handles_labels()[0]
    ax.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(handles),
        fontsize="small",
        frameon=False,
        borderaxespad=0.2,
    )
    tidy(ax)


def tidy(ax: Axes) -> None:
    """No frame at the top and on the right."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
