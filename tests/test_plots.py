"""What each picture shows, read back from its artists."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from mar_snn import plots
from mar_snn.energy import EnergyReport
from mar_snn.energy.counts import Firing
from mar_snn.neurons import ATMNNode
from tests.energy.energy_runs import RUN

PLUS, MINUS, WHITE = to_rgb("#D55E00"), to_rgb("#0072B2"), (1.0, 1.0, 1.0)
LAYER = "backbone.layers.{}.{}_neuron"


@pytest.fixture
def ax():
    figure, axes = plt.subplots(figsize=(9, 4))
    yield axes
    plt.close(figure)


@pytest.fixture(autouse=True)
def _no_figure_is_left_open_or_shown(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("a plot was shown"))
    yield
    plt.close("all")


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def firing(pos, neg, elements=100):
    return Firing(pos=(pos,), neg=(neg,), elements=(elements,))


def report():
    return EnergyReport.of(RUN, "horowitz-45nm-fp32")


DATA = {
    "plot_spike_raster": lambda: torch.tensor([[1.0, 0.0], [0.0, -1.0]]),
    "plot_firing_rates": lambda: {"1": firing(20, 10)},
    "plot_thresholds": lambda: {"1": torch.tensor([1.0, 2.0])},
    "plot_break_even": report,
    "plot_energy": report,
    "plot_energy_baselines": report,
    "plot_energy_waterfall": report,
    "plot_firing_steps": lambda: {"1": firing(20, 10)},
    "plot_profiles": report,
    "plot_training": lambda: [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}],
}


def test_every_public_plot_is_tested_here():
    # this one makes its own figure: see test_plot_ternary_spikes.py
    assert sorted([*DATA, "plot_ternary_spikes"]) == plots.__all__


@pytest.mark.parametrize("name", DATA)
def test_a_plot_draws_into_the_axes_it_is_given(name, ax):
    assert getattr(plots, name)(DATA[name](), ax) is ax
    assert plt.get_fignums() == [ax.figure.number]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("name", DATA)
def test_a_plot_without_axes_makes_one_figure(name):
    made = getattr(plots, name)(DATA[name]())
    assert plt.get_fignums() == [made.figure.number]
    made.figure.canvas.draw()


@pytest.mark.parametrize("name", DATA)
def test_every_axis_is_labelled(name, ax):
    getattr(plots, name)(DATA[name](), ax)
    assert ax.get_xlabel()
    assert ax.get_ylabel() or [label.get_text() for label in ax.get_yticklabels()]


# ---- rasters


def test_a_small_raster_has_one_cell_for_each_spike(ax):
    plots.plot_spike_raster(torch.tensor([[1, 0], [0, 0], [-1, 1]]), ax)
    (image,) = ax.images
    # neurons along the vertical axis from below, steps along the horizontal one
    expected = [[PLUS, WHITE, MINUS], [WHITE, WHITE, PLUS]]
    np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)
    assert image.origin == "lower"
    assert list(image.get_extent()) == [-0.5, 2.5, -0.5, 1.5]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time step", "neuron")


def test_the_drawn_pixels_are_the_spikes(ax):
    # 5 steps of 3 neurons, read back from the middle of each cell on the canvas
    spikes = torch.tensor(
        [[1, 0, -1], [0, 0, 0], [-1, -1, 1], [0, 1, 0], [1, 1, 1]], dtype=torch.bfloat16
    )
    plots.plot_spike_raster(spikes, ax)
    ax.figure.canvas.draw()
    canvas = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3]
    colours = {1: PLUS, -1: MINUS, 0: WHITE}
    for step, neuron in np.ndindex(5, 3):
        x, y = ax.transData.transform((step, neuron)).astype(int)
        expected = np.round(255 * np.array(colours[int(spikes[step, neuron])]))
        np.testing.assert_allclose(canvas[len(canvas) - 1 - y, x], expected, atol=1)


def test_the_legend_says_how_much_of_each_sign_there_is(ax):
    plots.plot_spike_raster(torch.tensor([[1, 0, 0, 0], [1, -1, 0, 0]]), ax)
    assert legend(ax) == ["+1 (25 %)", "\N{MINUS SIGN}1 (12.5 %)"]
    colours = [patch.get_facecolor()[:3] for patch in ax.get_legend().get_patches()]
    assert colours == [PLUS, MINUS]


def test_four_spikes_among_eight_million_cells_are_visible():
    spikes = torch.zeros(4000, 2000)
    for step, neuron, sign in (
        (9, 9, 1),
        (2000, 1500, -1),
        (3990, 9, 1),
        (9, 1990, -1),
    ):
        spikes[step, neuron] = sign
    ax = plots.plot_spike_raster(spikes)
    (image,) = ax.images
    coloured = (image.get_array() != 1.0).any(-1)
    assert coloured.sum() == 4
    # and they survive the drawing: their colour is on the canvas
    ax.figure.canvas.draw()
    canvas = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(int)
    box = ax.get_window_extent()
    inside = canvas[-int(box.y1) + 1 : -int(box.y0) - 1, int(box.x0) + 2 : int(box.x1)]
    for colour in (PLUS, MINUS):
        near = np.abs(inside - np.round(255 * np.array(colour))).max(-1) <= 1
        assert near.any()


def test_the_cells_of_a_large_raster_are_where_its_spikes_are(ax):
    # 1501 neurons share rows: the extent is a whole number of blocks, the axis is not
    plots.plot_spike_raster(torch.ones(3, 1501, dtype=torch.int8), ax)
    (image,) = ax.images
    rows = image.get_array().shape[0]
    per_row = -(-1501 // rows)
    assert rows < 1501
    assert list(image.get_extent()) == [-0.5, 2.5, -0.5, rows * per_row - 0.5]
    assert ax.get_ylim() == (-0.5, 1500.5)
    # never more cells than pixels, which drawing would drop
    assert rows <= ax.get_window_extent().height


def test_two_thousand_neurons_over_four_thousand_steps_are_one_small_image():
    noise = torch.rand(4000, 2000)
    spikes = (noise < 0.12).float() - (noise > 0.88).float()
    ax = plots.plot_spike_raster(spikes)
    # eight million marks would take minutes
    (image,) = ax.images
    assert not ax.collections
    assert len(ax.lines) < 10
    rows, columns = image.get_array().shape[:2]
    assert rows <= ax.get_window_extent().height
    assert columns <= 4000


def test_tokens_stand_below_their_steps(ax):
    plots.plot_spike_raster(np.zeros((6, 2)), ax, tokens=["def", "add"])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["def", "add"]
    assert list(ax.get_xticks()) == [1.0, 4.0]


@pytest.mark.parametrize(
    "tokens",
    [
        [12, 7],
        np.array([12, 7]),
        np.array(["12", "7"]),
        torch.tensor([12, 7]),
        list(torch.tensor([12, 7])),
        list(np.array([12, 7])),
    ],
)
def test_tokens_may_be_numbers_and_arrays(tokens, ax):
    plots.plot_spike_raster(np.zeros((6, 2)), ax, tokens=tokens)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["12", "7"]
    assert list(ax.get_xticks()) == [1.0, 4.0]


@pytest.mark.parametrize("tokens", [torch.tensor([[12, 7]]), np.array("a")])
def test_an_array_of_tokens_has_one_axis(tokens, ax):
    with pytest.raises(ValueError, match="tokens must have one axis"):
        plots.plot_spike_raster(torch.zeros(6, 2), ax, tokens=tokens)


@pytest.mark.parametrize("tokens", [["a"] * 4, [], np.array([]), torch.arange(4)])
def test_tokens_that_do_not_divide_time_are_refused(tokens, ax):
    with pytest.raises(ValueError, match="cannot be shared evenly") as error:
        plots.plot_spike_raster(torch.zeros(6, 2), ax, tokens=tokens)
    assert f"6 time steps cannot be shared evenly among {len(tokens)} tokens" in str(
        error.value
    )


def test_a_refused_raster_leaves_no_figure_behind():
    with pytest.raises(ValueError, match=r"must be \[T, N\]"):
        plots.plot_spike_raster(torch.zeros(2, 3, 4))
    assert plt.get_fignums() == []


# ---- firing rates and thresholds


def test_positive_spikes_rise_and_negative_ones_fall(ax):
    rates = {
        LAYER.format(1, "mixer.in"): firing(30, 5),
        LAYER.format(0, "mixer.in"): firing(10, 20),
        "readout": firing(0, 1),
    }
    plots.plot_firing_rates(rates, ax)
    up, down = ax.containers
    assert [bar.get_height() for bar in up] == [0.1, 0.3, 0.0]
    assert [bar.get_height() for bar in down] == [-0.2, -0.05, -0.01]
    assert [bar.get_x() + bar.get_width() / 2 for bar in up] == [0.0, 1.0, 3.0]
    assert up[0].get_facecolor()[:3] == PLUS
    assert down[0].get_facecolor()[:3] == MINUS
    assert legend(ax) == ["+1", "\N{MINUS SIGN}1"]


def test_falling_rates_are_not_negative_numbers(ax):
    plots.plot_firing_rates({"1": firing(20, 20)}, ax)
    labels = ax.yaxis.get_major_formatter().format_ticks([-0.2, 0.0, 0.05])
    assert labels == ["0.2", "0", "0.05"]


def test_steps_stand_side_by_side_the_first_one_darkest(ax):
    rates = {
        LAYER.format(0, "mlp.in"): Firing(
            pos=(30, 10), neg=(20, 0), elements=(100, 50)
        ),
        LAYER.format(1, "mlp.in"): Firing(pos=(5,), neg=(5,), elements=(100,)),
    }
    plots.plot_firing_steps(rates, ax)
    up, down, later_up, later_down = ax.containers
    assert [bar.get_height() for bar in up] == [0.3, 0.05]
    assert [bar.get_height() for bar in down] == [-0.2, -0.05]
    # the second layer has one step only
    assert [bar.get_height() for bar in later_up] == [0.2]
    assert [bar.get_height() for bar in later_down] == [0.0]
    centres = [bar.get_x() + bar.get_width() / 2 for bar in (*up, *later_up)]
    assert centres == pytest.approx([-0.21, 0.79, 0.21])
    assert up[0].get_facecolor()[:3] == PLUS
    assert sum(later_up[0].get_facecolor()[:3]) > sum(PLUS)
    assert legend(ax) == ["+1", "\N{MINUS SIGN}1"]
    assert ax.get_xlabel() == "layer and site; in each, steps 1 to 2, dark to pale"


def test_a_step_that_no_element_took_has_no_spikes(ax):
    plots.plot_firing_steps({"1": firing(0, 0, elements=0)}, ax)
    assert [bar.get_height() for bars in ax.containers for bar in bars] == [0.0, 0.0]
    with pytest.raises(ValueError, match="firing holds no neuron"):
        plots.plot_firing_steps({}, ax)


def test_no_neurons_are_refused(ax):
    with pytest.raises(ValueError, match="firing holds no neuron"):
        plots.plot_firing_rates({}, ax)
    with pytest.raises(ValueError, match="thresholds holds no neuron"):
        plots.plot_thresholds({}, ax)


def test_a_box_holds_half_of_the_thresholds(ax):
    # 1, 2, ..., 101: quartiles 26 and 76, median 51, whiskers at 2 and 100
    thresholds = {
        LAYER.format(0, "mlp.in"): torch.arange(1.0, 102.0).bfloat16(),
        LAYER.format(1, "mlp.in"): np.full(3, 7.0),
    }
    plots.plot_thresholds(thresholds, ax)
    box = ax.patches[0].get_path().vertices
    assert (box[:, 1].min(), box[:, 1].max()) == (26.0, 76.0)
    heights = [sorted(set(line.get_ydata())) for line in ax.lines]
    assert heights == [[2.0, 26.0], [76.0, 100.0], [51.0], [7.0], [7.0], [7.0]]
    assert ax.get_yscale() == "log"


def test_thresholds_that_need_a_gradient_are_drawn(ax):
    node = ATMNNode(v_threshold=3.0, num_channels=5)
    plots.plot_thresholds({"1": node.v_threshold}, ax)
    assert sum(line.get_ydata() == pytest.approx([3.0, 3.0]) for line in ax.lines) == 3


@pytest.mark.parametrize("values", [[1.0, 0.0], [-1.0], [float("nan")], []])
def test_thresholds_that_are_not_above_zero_are_refused(values, ax):
    with pytest.raises(ValueError, match=r"pass `node\.v_threshold`, not its"):
        plots.plot_thresholds({"1": torch.tensor(values)}, ax)


def test_thresholds_close_together_have_several_numbers_beside_them(ax):
    # their middle is sqrt(0.7 * 1.2) = 0.917, and the axis goes 2.5 times up and down
    plots.plot_thresholds({"1": torch.tensor([0.7]), "3": torch.tensor([1.2])}, ax)
    low, high = ax.get_ylim()
    assert (low, high) == pytest.approx((0.367, 2.291), abs=1e-3)
    ax.figure.canvas.draw()
    numbers = zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
    shown = [text.get_text() for y, text in numbers if low <= y <= high]
    assert shown == ["0.5", "1", "2"]


# ---- training

HISTORY = [
    {"loss": 2.0, "forward_kl": 0.5, "reverse_kl": 0.25, "step": 1, "epoch": 0.1},
    {"loss": 1.0, "forward_kl": 0.4, "firing_rate": 0.25, "step": 2},
    {"eval_loss": 1.5, "step": 2},
    {"loss": float("nan"), "firing_rate": 0.2, "step": 3},
    {"train_runtime": 12.0, "step": 3},
]


def curves(ax):
    return {
        line.get_label(): list(zip(*line.get_data(), strict=True)) for line in ax.lines
    }


def test_the_terms_of_the_loss_are_drawn_by_step(ax):
    plots.plot_training(HISTORY, ax)
    assert curves(ax) == {
        "loss": [(1, 2.0), (2, 1.0)],
        "forward KL": [(1, 0.5), (2, 0.4)],
        "reverse KL": [(1, 0.25)],
        "held-out loss": [(2, 1.5)],
    }
    assert ax.get_yscale() == "log"
    assert ax.get_xlabel() == "optimiser step"


def test_a_single_value_is_a_dot(ax):
    plots.plot_training(HISTORY, ax)
    markers = {line.get_label(): line.get_marker() for line in ax.lines}
    assert markers["reverse KL"] == "o"
    assert markers["loss"] in ("", "None")


def test_the_firing_rate_has_an_axis_of_its_own_from_zero(ax):
    plots.plot_training(HISTORY, ax)
    _, twin = ax.figure.axes
    assert curves(twin) == {"firing rate": [(2, 0.25), (3, 0.2)]}
    assert twin.get_ylim() == (0.0, 1.25 * 0.25)
    assert legend(ax)[-1] == "firing rate"


def test_a_single_firing_rate_is_a_dot(ax):
    plots.plot_training(HISTORY[:2], ax)
    (line,) = ax.figure.axes[1].lines
    assert line.get_marker() == "o"


def test_a_history_without_firing_rates_has_one_axis(ax):
    plots.plot_training([{"loss": 1.0, "step": 1}], ax)
    assert ax.figure.axes == [ax]
    assert legend(ax) == ["loss"]


def test_zero_is_left_out_of_a_logarithmic_axis(ax):
    plots.plot_training([{"loss": 0.0, "step": 1}, {"loss": 1.0, "step": 2}], ax)
    assert curves(ax) == {"loss": [(2, 1.0)]}


@pytest.mark.parametrize(
    "history", [[], [{"loss": 0.0, "step": 1}], [{"firing_rate": 0.2, "step": 1}]]
)
def test_a_history_without_a_loss_is_refused(history, ax):
    with pytest.raises(ValueError, match=r"pass trainer\.state\.log_history"):
        plots.plot_training(history, ax)
