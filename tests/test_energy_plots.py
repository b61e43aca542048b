"""What each picture of a report shows, read back from its artists."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from mar_snn import energy_plots, plots
from mar_snn.energy import EnergyReport, OpCounts
from mar_snn.energy.counts import ByteCounts
from mar_snn.energy.reporting.profiles import MemoryTier, get_profile
from mar_snn.plot_layout import BASELINE, SPIKING
from tests.energy.energy_runs import LM_HEAD, NEURON, RUN, UP_PROJ
from tests.energy.test_profiles import own_profile

DASH = "\N{EN DASH}"
PLOTS = sorted(energy_plots.__all__)


@pytest.fixture
def ax():
    figure, axes = plt.subplots(figsize=(9, 4))
    yield axes
    plt.close(figure)


@pytest.fixture(autouse=True)
def _no_figure_is_left_open():
    yield
    plt.close("all")


def report(*rows, profile="horowitz-45nm-fp32", **options):
    return EnergyReport.of(replace(RUN, rows=rows or RUN.rows), profile, **options)


def texts(ax):
    return [text.get_text() for text in ax.texts]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# ---- all of them


def test_the_pictures_are_public_where_all_plots_are():
    assert set(PLOTS) < set(plots.__all__)
    for name in PLOTS:
        assert getattr(plots, name) is getattr(energy_plots, name)


@pytest.mark.parametrize("name", PLOTS)
def test_a_report_of_nothing_is_refused(name, ax):
    with pytest.raises(ValueError, match="the report has no operations"):
        getattr(plots, name)(
            EnergyReport.of(replace(RUN, rows=()), "horowitz-45nm-fp32")
        )


@pytest.mark.parametrize("name", PLOTS)
def test_a_report_without_its_methodology_is_refused(name, ax):
    with pytest.raises(ValueError, match="without its methodology block"):
        getattr(plots, name)(replace(report(), methodology={}), ax)


@pytest.mark.parametrize("name", PLOTS)
def test_every_picture_says_that_it_is_modelled(name, ax):
    getattr(plots, name)(report(), ax)
    said = " ".join((ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel()))
    assert "modelled" in said.lower()
    assert "joules" not in said


# ---- groups beside the baseline


def test_energy_is_drawn_beside_the_baseline(ax):
    plots.plot_energy(report(), ax)
    baseline, spiking = ax.containers
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["neuron", "ffn", "lm_head"]
    assert [b.get_width() for b in baseline] == pytest.approx([0.0, 460.0, 230.0])
    assert [b.get_width() for b in spiking] == pytest.approx([16.4, 18.0, 230.0])
    assert legend(ax) == ["dense", "spiking"]
    assert ax.get_xlabel() == "modelled energy per token (pJ)"
    # bars of one group side by side, the first group at the top
    assert ax.yaxis_inverted()
    assert baseline[0].get_y() < spiking[0].get_y() < baseline[1].get_y()
    assert texts(ax) == ["0", "460", "230", "16.4", "18", "230"]


def test_the_title_says_what_the_figures_are(ax):
    plots.plot_energy(report(per="sample", units=10), ax)
    assert ax.get_title(loc="left") == (
        "Modelled energy per sample: 264 pJ spiking, 690 pJ dense, ratio 2.61\n"
        "profile horowitz-45nm-fp32; not a measurement"
    )


def test_large_energies_are_drawn_in_nanojoules(ax):
    plots.plot_energy(report(per="run"), ax)
    baseline, spiking = ax.containers
    assert baseline[1].get_width() == pytest.approx(4.6)
    assert spiking[1].get_width() == pytest.approx(0.18)
    assert ax.get_xlabel() == "modelled energy per run (nJ)"


@pytest.mark.parametrize(
    ("energy_pj", "unit"),
    [
        (0.0, "pJ"),
        (999.0, "pJ"),
        (1e3, "nJ"),
        (2e6, "µJ"),
        (3e9, "mJ"),
        (4e12, "J"),
        (5e15, "J"),
    ],
)
def test_the_unit_leaves_a_digit_before_the_point(energy_pj, unit):
    assert energy_plots._energy_unit(energy_pj)[1] == unit


# ---- baselines


def bar_ends(ax):
    return [
        max(bars[i].get_x() + bars[i].get_width() for bars in ax.containers)
        for i in range(len(ax.containers[0]))
    ]


def test_the_bars_are_stacked_to_the_lower_end_of_each_baseline(ax):
    plots.plot_energy_baselines(report(), ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [
        "dense", "quantised dense,\n4 bits", "zero-skipping dense", "spiking",
    ]  # fmt: skip
    assert bar_ends(ax) == pytest.approx([690, 250, 253, 264.4])
    assert legend(ax) == ["neuron", "ffn", "lm_head"]
    ffn = ax.containers[1]
    # 20 of the quantised, 23 of the zero-skipping dense, 18 spiking
    assert [bar.get_width() for bar in ffn] == pytest.approx([460, 20, 23, 18])


def test_a_bracket_reaches_to_the_upper_end(ax):
    plots.plot_energy_baselines(report(), ax)
    brackets = [tuple(line.get_xdata()) for line in ax.lines]
    assert brackets == [pytest.approx((250, 260)), pytest.approx((253, 322))]


def test_each_bar_says_its_energy_and_what_it_is_to_the_spiking_model(ax):
    plots.plot_energy_baselines(report(), ax)
    assert [text.strip() for text in texts(ax)] == [
        "690 pJ   2.61x spiking",
        f"250{DASH}260 pJ   1.01{DASH}1.05x spiking with 8-bit weights",
        f"253{DASH}322 pJ   0.96{DASH}1.22x spiking",
        "264 pJ",
    ]


def test_a_baseline_without_a_price_is_no_bar(ax):
    plots.plot_energy_baselines(report(profile=own_profile()), ax)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["dense", "zero-skipping dense", "spiking"]


def test_small_groups_are_one_bar(ax):
    small = [
        replace(NEURON, name=f"n{i}", group=f"g{i}", ops=OpCounts(cmp=1))
        for i in range(3)
    ]
    plots.plot_energy_baselines(report(*small, UP_PROJ, LM_HEAD), ax)
    assert legend(ax) == ["ffn", "lm_head", "all others"]
    # three comparisons of 0.9 pJ, ten tokens
    assert ax.containers[-1][-1].get_width() == pytest.approx(0.27)


# ---- waterfall


def test_dense_and_spiking_stand_side_by_side_with_each_memory(ax):
    plots.plot_energy_waterfall(report(), ax)
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert names == ["arithmetic", "with SRAM", "with DRAM"]
    tops = [bars[0].get_y() + bars[0].get_height() for bars in ax.containers]
    # dense low, high, spiking low, high; arithmetic, SRAM, DRAM
    expected = ((690, 690, 264.4, 264.4), (840, 2190, 414.4, 1764.4),
                (20190, 39690, 19764.4, 39264.4))  # fmt: skip
    assert tops == pytest.approx([top for stage in expected for top in stage])
    colors = [to_hex(bars[0].get_facecolor()).upper() for bars in ax.containers]
    assert colors[:3:2] == [BASELINE, SPIKING]
    assert ax.get_yscale() == "log"


def test_the_ratio_stands_above_each_pair(ax):
    plots.plot_energy_waterfall(report(), ax)
    bold = [t.get_text() for t in ax.texts if t.get_fontweight() == "bold"]
    assert bold == ["2.61x", f"1.24{DASH}2.03x", f"1.01{DASH}1.02x"]
    assert f"414 pJ{DASH}1.76 nJ" in texts(ax)


def test_another_assumption_may_be_drawn(ax):
    plots.plot_energy_waterfall(report(), ax, assumption="touched weights")
    bold = [t.get_text() for t in ax.texts if t.get_fontweight() == "bold"]
    assert bold[1] == f"1.45{DASH}2.16x"  # 2190 / 1514.4, 840 / 389.4
    assert ax.get_xlabel() == "grey: dense, in colour: spiking; touched weights"
    with pytest.raises(ValueError, match="assumption must be one of weights once"):
        plots.plot_energy_waterfall(report(), ax, assumption="none")


def test_a_report_without_traffic_has_no_waterfall(ax):
    with pytest.raises(ValueError, match="a profile with memory, which own has not"):
        plots.plot_energy_waterfall(report(profile=own_profile()), ax)
    bare = [replace(r, moved=ByteCounts(), dense_moved=ByteCounts()) for r in RUN.rows]
    with pytest.raises(ValueError, match=r"counted bytes, .* horowitz-45nm-fp32 has$"):
        plots.plot_energy_waterfall(report(*bare), ax)


# ---- profiles


def test_each_profile_has_its_ratios_alone_and_with_traffic(ax):
    plots.plot_profiles(
        report(), ax, profiles=["horowitz-45nm-fp32", "jouppi-7nm-int8"]
    )
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["horowitz-45nm-fp32", "jouppi-7nm-int8"]
    first, second, *bars = ax.lines
    assert first.get_xdata()[0] == pytest.approx(690 / 264.4)
    # see test_sensitivity: 150 / 88.6
    assert second.get_xdata()[0] == pytest.approx(150 / 88.6)
    assert texts(ax) == ["2.61x", "1.69x"]
    sram, dram = bars[:2]
    assert tuple(sram.get_xdata()) == pytest.approx((2190 / 1764.4, 840 / 414.4))
    assert tuple(dram.get_xdata()) == pytest.approx((39690 / 39264.4, 20190 / 19764.4))
    assert legend(ax) == [
        "arithmetic only",
        "with SRAM, weights once a call",
        "with DRAM, weights once a call",
    ]


def test_an_interval_of_no_width_is_a_mark(ax):
    memory = MemoryTier(name="m", kind="sram", low_pj=8.0, high_pj=8.0, source="a test")
    point = replace(get_profile("horowitz-45nm-fp32"), name="point", memory=(memory,))
    plots.plot_profiles(report(), ax, profiles=[point, own_profile()])
    markers = [line.get_marker() for line in ax.lines]
    # two ratios, one interval, the line at 1
    assert markers == ["o", "o", "|", "None"]


def test_all_profiles_are_drawn_unless_some_are_named(ax):
    plots.plot_profiles(report(), ax)
    assert len(ax.get_yticklabels()) == 6


def test_a_report_against_another_cannot_be_priced_again(ax):
    with pytest.raises(ValueError, match="only counts can be priced again"):
        plots.plot_profiles(report(baseline=report()), ax)


# ---- break-even


def test_the_curves_cross_one_at_the_break_even(ax):
    plots.plot_break_even(report(), ax)
    alone, whole, one = ax.lines[:3]
    x, y = alone.get_data()
    assert x * y == pytest.approx(4.6 / 0.9)
    x, y = whole.get_data()
    # 6900 / (2464 + 900 x)
    assert y == pytest.approx(6900 / (2464 + 900 * x))
    assert list(one.get_ydata()) == [1.0, 1.0]
    dashed = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert dashed == pytest.approx([4.6 / 0.9, 4436 / 900])
    (band,) = ax.patches
    assert (band.get_x(), band.get_width()) == pytest.approx((2.0, 1.0))
    assert legend(ax)[2] == "break-even with the quantised model"


def test_the_model_is_a_mark_where_it_fired(ax):
    plots.plot_break_even(report(), ax)
    (mark,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert mark.get_data() == (pytest.approx([0.2]), pytest.approx([690 / 264.4]))
    assert texts(ax) == ["this model: T·rate 0.2, 2.61x"]


def test_a_silent_model_stands_at_the_left_edge(ax):
    silent = replace(UP_PROJ, ops=OpCounts(dense_mac=1000))
    plots.plot_break_even(report(silent, LM_HEAD), ax)
    (mark,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert mark.get_xdata()[0] == ax.get_xlim()[0]
    assert texts(ax) == ["this model: T·rate 0, 3.00x"]  # 6900 / 2300


def test_a_model_that_never_breaks_even_has_one_dashed_line(ax):
    busy = replace(NEURON, ops=OpCounts(mul=10_000))
    plots.plot_break_even(report(busy, UP_PROJ, profile=own_profile()), ax)
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == 1
    assert not ax.patches


def test_a_report_without_spikes_has_no_break_even(ax):
    with pytest.raises(ValueError, match="no spikes enter a projection"):
        plots.plot_break_even(report(LM_HEAD), ax)
