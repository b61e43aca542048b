"""Ternary spikes, drawn where SpikingJelly's own picture shows half of them."""

import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from spikingjelly import visualizing

from mar_snn.plot_layout import part_cells, stacked_bars
from mar_snn.plots import NEGATIVE, POSITIVE, plot_ternary_spikes

NAMES = {"title": "spikes", "xlabel": "step", "ylabel": "neuron"}
#: four steps of three neurons, which fire +1 +1 0 -1, nothing, and -1 0 -1 -1
SPIKES = torch.tensor([[1, 0, -1], [1, 0, 0], [0, 0, -1], [-1, 0, -1]])


@pytest.fixture(autouse=True)
def _no_figure_is_left_open_or_shown(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a plot was shown"))
    yield
    plt.close("all")


@pytest.fixture
def ax():
    # 4 by 2 inches of Axes: 288 by 144 points
    figure = plt.figure(figsize=(4, 2), dpi=100)
    return figure.add_axes((0, 0, 1, 1))


def draw(spikes=SPIKES, **settings):
    return plot_ternary_spikes(spikes, **NAMES, **{"dpi": 60, **settings})


def bars(ax):
    """Colour -> (where each bar begins, where it ends)."""
    return {
        to_hex(patch.get_facecolor()).upper(): (
            patch.get_data().baseline.tolist(),
            patch.get_data().values.tolist(),
        )
        for patch in ax.patches
    }


def cell_colours(ax):
    """The colours in the picture, seen as rows of neurons."""
    image = ax.images[0].get_array()
    return [[to_hex(cell).upper() for cell in row] for row in image]


def test_the_arguments_are_those_of_spikingjelly():
    ours = inspect.signature(plot_ternary_spikes).parameters
    theirs = inspect.signature(visualizing.plot_1d_spikes).parameters
    assert [*ours] == [*theirs]
    assert [p.default for p in ours.values()] == [p.default for p in theirs.values()]
    assert [p.kind for p in ours.values()] == [p.kind for p in theirs.values()]


def test_the_figure_and_the_axes_of_the_spikes_come_back():
    figure, ax = draw(figsize=(5.0, 4.0), dpi=80)
    assert plt.get_fignums() == [figure.number]
    assert ax is figure.axes[0]
    assert (tuple(figure.get_size_inches()), figure.dpi) == ((5.0, 4.0), 80)
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == tuple(NAMES.values())


def test_every_spike_is_drawn_with_its_sign_and_neuron_0_at_the_top():
    _, ax = draw()
    plus, minus, none = POSITIVE, NEGATIVE, "#FFFFFF"
    assert cell_colours(ax) == [
        [plus, plus, none, minus],
        [none, none, none, none],
        [minus, none, minus, minus],
    ]
    assert ax.yaxis_inverted()
    assert ax.get_xlim() == (-0.5, 3.5)
    assert ax.get_ylim() == (2.5, -0.5)


def test_the_cells_of_a_small_picture_are_parted():
    _, ax = draw(figsize=(6.0, 4.0))
    edges = [line.get_xydata()[0].tolist() for line in ax.lines]
    # between four steps, and between three neurons
    assert edges == [[0.5, 0.0], [1.5, 0.0], [2.5, 0.0], [0.0, 0.5], [0.0, 1.5]]


def test_a_rate_is_the_mean_magnitude_split_by_sign():
    # the signed means would be 0.25, 0 and -0.75
    figure, ax = draw(firing_rate_map_title="rates")
    _, rates = figure.axes
    assert bars(rates) == {
        POSITIVE: ([0.0, 0.0, 0.0], [0.5, 0.0, 0.0]),
        NEGATIVE: ([0.5, 0.0, 0.0], [0.75, 0.0, 0.75]),
    }
    assert [text.get_text() for text in rates.texts] == ["0.75", "0.00", "0.75"]
    assert rates.get_title() == "rates"
    # each bar beside its neuron
    assert rates.get_ylim() == ax.get_ylim()


def test_the_rates_can_be_left_out():
    figure, ax = draw(plot_firing_rate=False)
    assert figure.axes == [ax]


@pytest.mark.parametrize(
    "spikes",
    [
        SPIKES.bfloat16(),
        SPIKES.half().requires_grad_(),
        SPIKES.to(torch.int8),
        SPIKES.double().numpy(),
        SPIKES.numpy(),
    ],
    ids=lambda spikes: f"{type(spikes).__name__}-{spikes.dtype}",
)
def test_the_picture_does_not_depend_on_the_dtype(spikes):
    figure, ax = draw(spikes)
    expected_figure, expected = draw(SPIKES)
    assert cell_colours(ax) == cell_colours(expected)
    assert bars(figure.axes[1]) == bars(expected_figure.axes[1])


@pytest.mark.parametrize("axis", ["x", "y"])
def test_ticks_may_fall_between_whole_numbers_on_request(axis):
    def fractions(**settings):
        ticks = getattr(draw(torch.ones(2, 2), **settings)[1], f"get_{axis}ticks")()
        return [tick for tick in ticks if tick != round(tick)]

    assert not fractions()
    assert fractions(**{f"int_{axis}_ticks": False})


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)])
def test_other_than_two_axes_are_refused_as_by_spikingjelly(shape):
    for plot in (plot_ternary_spikes, visualizing.plot_1d_spikes):
        with pytest.raises(ValueError, match=r"2D array|must be \[T, N\]"):
            plot(torch.zeros(shape), **NAMES)


def test_values_that_are_not_spikes_are_refused_before_a_figure_is_made():
    with pytest.raises(ValueError, match="spikes must be -1, 0 or"):
        draw(torch.full((2, 2), 0.5))
    assert not plt.get_fignums()


@pytest.mark.parametrize("neurons", [1, 24, 40])
def test_no_two_texts_lie_on_each_other(neurons):
    spikes = torch.randint(-1, 2, (49, neurons))
    names = {**NAMES, "title": "a long title " * 7}
    figure, ax = plot_ternary_spikes(spikes, **names, dpi=100)
    figure.canvas.draw()
    texts = [*ax.get_legend().get_texts(), ax.xaxis.label, ax.yaxis.label]
    for each in figure.axes:
        texts += [each.title, *each.texts]
        for axis in (each.xaxis, each.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [
                tick.label1
                for tick in axis.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_visible()
            ]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) > neurons
    overlaps = [
        (one, other)
        for i, one in enumerate(boxes)
        for other in boxes[:i]
        if one.overlaps(other)
    ]
    assert not overlaps


def test_two_thousand_neurons_are_a_few_artists():
    spikes = torch.randint(-1, 2, (100, 2000))
    figure, _ = draw(spikes)
    figure.canvas.draw()
    # one for each neuron would take a quarter of a minute
    assert sum(len(each.get_children()) for each in figure.axes) < 60
    assert not figure.axes[1].texts


def test_a_silent_layer_has_a_scale(ax):
    stacked_bars(ax, {"black": np.zeros(2)})
    assert ax.get_xlim() == (0.0, 1.3)
    assert [text.get_text() for text in ax.texts] == ["0.00", "0.00"]


def test_lengths_are_written_where_a_line_of_print_has_room(ax):
    # 144 points hold thirteen lines of 11
    stacked_bars(ax, {"black": np.ones(13)})
    assert len(ax.texts) == 13
    ax.clear()
    stacked_bars(ax, {"black": np.ones(14)})
    assert not ax.texts


@pytest.mark.parametrize(
    ("columns", "rows", "lines"), [(48, 24, 47 + 23), (49, 24, 23), (48, 25, 47)]
)
def test_cells_of_six_points_are_parted_and_smaller_ones_are_not(
    ax, columns, rows, lines
):
    part_cells(ax, columns, rows)
    assert len(ax.lines) == lines
    assert {line.get_color() for line in ax.lines} == {"white"}


def test_the_lines_stand_between_the_cells(ax):
    part_cells(ax, 3, 2)
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        [[0.5, 0.0], [0.5, 1.0]],
        [[1.5, 0.0], [1.5, 1.0]],
        [[0.0, 0.5], [1.0, 0.5]],
    ]
