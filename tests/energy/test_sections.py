"""The tables of a report, cell by cell."""

from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.counts import ByteCounts, Firing
from mar_snn.energy.reporting.comparison_sections import (
    baseline_section,
    comparison_sections,
    traffic_section,
)
from mar_snn.energy.reporting.sections import (
    firing_section,
    largest_section,
    not_included,
    part_section,
    summary,
    title,
)
from tests.energy.energy_runs import FIRING, FIRST, LM_HEAD, RUN, SECOND, UP_PROJ
from tests.energy.test_profiles import own_profile

DASH = "\N{EN DASH}"


def report(run=RUN, profile="horowitz-45nm-fp32", **options):
    return EnergyReport.of(run, profile, **options)


def lines_of(section):
    return {name: dict(zip(section.header[1:], cells, strict=True))
            for name, *cells in section.lines}  # fmt: skip


def sections(report):
    return {section.title: section for section in comparison_sections(report)}


def test_groups_have_counts_per_unit_energy_share_and_ratio():
    lines = lines_of(part_section(report()))
    assert lines["ffn"] == {
        "dense MAC": "100", "MAC": "0", "AC": "20", "add": "0", "mul": "0", "cmp": "0",
        "touched": "75.0 %", "energy": "18 pJ", "share": "6.8 %", "dense": "460 pJ",
        "ratio": "25.56x",
    }  # fmt: skip
    # the head is 2300 of 2644, spiking or not
    assert lines["lm_head"]["share"] == "87.0 %"
    assert lines["lm_head"]["ratio"] == "1.00x"
    assert (lines["neuron"]["cmp"], lines["neuron"]["ratio"]) == ("10", "-")
    assert lines["total"]["energy"] == "264 pJ"
    assert lines["total"]["ratio"] == "2.61x"


def test_modules_are_cut_to_a_depth_and_added_up():
    names = [line[0] for line in part_section(report(), "module").lines]
    assert names == [
        "layers.0.mlp.in_neuron", "layers.0.mlp.up_proj", "lm_head", "total",
    ]  # fmt: skip
    cut = lines_of(part_section(report(), "module", 2))
    assert list(cut) == ["layers.0", "lm_head", "total"]
    # 164 + 180 pJ of 10 tokens, dense 4600
    assert (cut["layers.0"]["energy"], cut["layers.0"]["dense"]) == (
        "34.4 pJ", "460 pJ",
    )  # fmt: skip


def test_other_lines_and_depths_are_refused():
    with pytest.raises(ValueError, match="by must be 'group' or 'module', got 'layer'"):
        part_section(report(), "layer")
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        part_section(report(), "module", 0)


def test_the_largest_modules_lead_and_the_rest_is_counted():
    section = largest_section(report(), 2)
    assert [line[0] for line in section.lines] == ["lm_head", "layers.0.mlp.up_proj"]
    assert section.notes == ("1 more modules: table('module')",)
    assert largest_section(report(), 3).notes == ()


def test_traffic_stands_below_the_arithmetic():
    first, *lines = traffic_section(report()).lines
    assert first == ("arithmetic only", "-", "-", "-", "264 pJ", "690 pJ", "2.61x")
    assert lines[0] == (
        "weights once a call", "SRAM", "120 B", "120 B",
        f"414 pJ{DASH}1.76 nJ", f"840 pJ{DASH}2.19 nJ", f"1.24{DASH}2.03x",
    )  # fmt: skip
    assert lines[1][-1] == f"1.01{DASH}1.02x"
    assert len(lines) == 6


def test_missing_bytes_and_missing_prices_are_said():
    assert traffic_section(report(profile=own_profile())).notes == (
        "own has no price of memory",
    )
    bare = [replace(r, moved=ByteCounts(), dense_moved=ByteCounts()) for r in RUN.rows]
    section = traffic_section(report(replace(RUN, rows=tuple(bare))))
    assert section.notes == ("no bytes were counted",)


def test_all_three_baselines_are_there_with_their_ratios():
    assert baseline_section(report()).lines == (
        ("dense", "690 pJ", "264 pJ", "2.61x"),
        ("quantised dense, 4 bits", f"250{DASH}260 pJ", "248 pJ", f"1.01{DASH}1.05x"),
        ("zero-skipping dense", f"253{DASH}322 pJ", "264 pJ", f"0.96{DASH}1.22x"),
    )


def test_a_baseline_without_a_price_says_why():
    section = baseline_section(report(profile=own_profile()))
    # every price is 1: 500 MAC and 200 AC and 20 mul of 10 tokens, cmp unpriced
    assert section.lines[1][1:] == ("-", "72 pJ", "-")
    assert section.notes == (
        "quantised dense, 4 bits: own has no int8_mul and int32_add",
    )


def test_the_break_even_says_on_which_side_the_model_stands():
    section = sections(report())["Break-even of T·rate, arithmetic only"]
    assert section.lines == (
        ("the projections alone", "5.111", "0.2", "below"),
        ("the whole model", "4.929", "0.2", "below"),
        ("against the quantised dense model", f"2{DASH}3", "0.2", "below"),
    )
    assert "would be 2.80x" in section.notes[0]


@pytest.mark.parametrize(
    ("spikes", "stands"), [(2500, "within"), (4000, "above"), (1900, "below")]
)
def test_a_model_may_stand_within_the_bounds(spikes, stands):
    ops = replace(UP_PROJ.ops, ac_add=spikes, ac_sub=0, sop_unit=spikes)
    busy = report(replace(RUN, rows=(replace(UP_PROJ, ops=ops), LM_HEAD)))
    lines = sections(busy)["Break-even of T·rate, arithmetic only"].lines
    assert lines[2][-1] == stands


def test_a_break_even_without_a_price_is_left_out():
    lines = sections(report(profile=own_profile()))[
        "Break-even of T·rate, arithmetic only"
    ].lines
    assert [line[0] for line in lines] == ["the projections alone", "the whole model"]


def test_a_model_without_spikes_has_no_break_even():
    assert not any(
        title.startswith("Break-even")
        for title in sections(report(replace(RUN, rows=(LM_HEAD,))))
    )


def test_the_spread_over_batches_is_printed_or_said_to_be_missing():
    section = sections(report())["Over 2 batches"]
    assert section.header == ("per token", "mean", "std", "95 % interval")
    # 265.15 ± 47.65
    assert section.lines[0] == ("spiking", "265 pJ", "5.3 pJ", f"218{DASH}313 pJ")
    assert section.lines[2][:2] == ("ratio", "2.60x")
    one = sections(report(replace(RUN, batches=(FIRST,)), units=4))["Over 1 batches"]
    assert (one.lines, one.notes) == ((), ("No spread over batches: 1 known.",))
    none = sections(report(replace(RUN, batches=()), units=4))["Over 0 batches"]
    assert none.notes == ("No spread over batches: none known.",)


def test_batches_that_are_alike_have_no_deviation():
    alike = report(replace(RUN, batches=(FIRST, FIRST)), units=8)
    lines = sections(alike)["Over 2 batches"].lines
    assert lines[0] == ("spiking", "269 pJ", "0", "269 pJ")


def test_phases_are_per_unit_of_their_own():
    run = replace(
        RUN,
        rows=(replace(UP_PROJ, phase="prefill"), replace(LM_HEAD, phase="decode")),
        batches=(replace(FIRST, phase="prefill"), replace(SECOND, phase="decode")),
    )
    counted = report(run)
    assert counted.methodology["workload"]["phases"] == "prefill, decode"
    section = sections(counted)["Phases, each per unit of its own"]
    assert section.header[1] == "tokens"
    # 180 pJ of 4 tokens against 4600, 2300 pJ of 6 tokens
    assert section.lines == (
        ("prefill", "4", "45 pJ", "7.3 %", "1.15 nJ", "25.56x"),
        ("decode", "6", "383 pJ", "92.7 %", "383 pJ", "1.00x"),
    )
    names = [line[0] for line in part_section(counted, "module").lines]
    assert names[:2] == ["layers.0.mlp.up_proj [prefill]", "lm_head [decode]"]
    single = report(replace(RUN, rows=(replace(LM_HEAD, phase="decode"),)))
    assert part_section(single, "module").lines[0][0] == "lm_head"
    assert "Phases, each per unit of its own" not in sections(report())


def test_neurons_are_listed_with_silent_and_saturated_channels():
    section = firing_section(report(), by_site=False)
    # 70 spikes of 400, 50 of them +1
    assert lines_of(section)["layers.0.mlp.in_neuron"] == {
        "T": "4", "rate": "0.1750", "rate by step": "0.400 0.150 0.080 0.070",
        "p(+1)": "0.125", "p(-1)": "0.050", "balance": "+0.43",
        "silent": "20.0 %", "saturated": "10.0 %",
    }  # fmt: skip
    assert section.notes == (
        "All neurons: firing rate 0.175 per element and step, sign balance +0.43.",
    )


def test_layers_are_pooled_by_site():
    firing = {f"layers.{i}.mlp.in_neuron": FIRING for i in range(3)}
    section = firing_section(report(replace(RUN, firing=firing)), by_site=True)
    lines = lines_of(section)
    assert list(lines) == ["mlp.in_neuron"]
    assert lines["mlp.in_neuron"]["rate by step"] == "0.400 0.150 0.080 0.070"
    assert lines["mlp.in_neuron"]["silent"] == "20.0 %"


def test_sites_of_unlike_t_or_place_stay_apart():
    short = Firing(pos=(1,), neg=(0,), elements=(4,))
    firing = {"layers.0.n": FIRING, "layers.1.n": short, "other.0.n": short}
    section = firing_section(report(replace(RUN, firing=firing)), by_site=True)
    lines = lines_of(section)
    assert list(lines) == [
        "layers.*.n (T = 4)", "layers.*.n (T = 1)", "other.*.n (T = 1)",
    ]  # fmt: skip
    assert lines["layers.*.n (T = 1)"]["silent"] == "-"  # channels are not known


def test_the_summary_has_units_baseline_coverage_and_detection():
    assert title(report()) == "Modelled energy per token of Tiny, horowitz-45nm-fp32"
    assert summary(report()) == (
        "10 tokens, baseline dense, 100 % of calls have a rule, "
        "100 % of SynOps declared."
    )
    half = (UP_PROJ, replace(UP_PROJ, name="b", detection="inferred"))
    run = replace(RUN, rows=half, uncounted={"aten.foo": 1}, calls=4)
    mixed = report(run, per="run")
    assert summary(mixed) == (
        "1 run, baseline dense, 75 % of calls have a rule, "
        "50 % of SynOps declared, 50 % of SynOps inferred."
    )
    assert "1 aten.foo (no rule, 25 % of calls), memory" in not_included(mixed)
