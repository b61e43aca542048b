"""Two reports side by side, and many as one."""

import io
import math
from dataclasses import replace

import pytest
import rich.console

from mar_snn.energy import EnergyReport
from mar_snn.energy.counts import ByteCounts
from tests.energy.energy_runs import LM_HEAD, NEURON, RUN, UP_PROJ


def report(*rows, profile="horowitz-45nm-fp32", **options):
    return EnergyReport.of(replace(RUN, rows=rows or RUN.rows), profile, **options)


def text_of(renderable):
    console = rich.console.Console(width=100, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def busy():
    """Twice the spikes: 180 pJ more a run."""
    ops = replace(UP_PROJ.ops, ac_add=300, ac_sub=100, sop_unit=400)
    return replace(UP_PROJ, ops=ops)


def test_groups_are_compared_by_energy_and_spikes():
    found = EnergyReport.compare(report(), report(NEURON, busy(), LM_HEAD))
    assert found.groups_pj["ffn"] == pytest.approx((18, 36))
    assert found.groups_pj["lm_head"] == pytest.approx((230, 230))
    assert found.groups_pj["total"] == pytest.approx((264.4, 282.4))
    assert found.synops["ffn"] == found.synops["total"] == (20, 40)


def test_a_group_that_one_report_lacks_is_zero_there():
    found = EnergyReport.compare(report(), report(LM_HEAD))
    assert found.groups_pj["ffn"] == (pytest.approx(18), 0.0)
    assert found.synops["ffn"] == (20, 0)


def test_the_comparison_prints_differences_with_their_sign():
    found = EnergyReport.compare(report(), report(busy(), LM_HEAD))
    text = found.to_markdown()
    assert text.startswith("# a: Tiny, b: Tiny; modelled energy per token, horowitz")
    assert "| ffn | 18 pJ | 36 pJ | +18 pJ | 2.00x | 20 | 40 |" in text
    assert "| neuron | 16.4 pJ | 0 pJ | -16.4 pJ | - | 0 | 0 |" in text
    assert text.endswith("Not a measurement.\n")
    assert "+18 pJ" in text_of(found)
    assert text_of(found.table()) == text_of(found)


def test_models_go_by_the_names_that_were_stated():
    named = EnergyReport.of(RUN, "horowitz-45nm-fp32", workload={"model": "student"})
    found = EnergyReport.compare(report(), named)
    assert found.names == ("Tiny", "student")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"profile": "horowitz-45nm-fp16"}, "the profile is 'horowitz-45nm-fp32' and"),
        ({"per": "run"}, "the unit is 'token' and 'run'"),
    ],
)
def test_reports_that_mean_something_else_are_not_compared(options, sentence):
    for function in (EnergyReport.compare, lambda a, b: EnergyReport.pooled([a, b])):
        with pytest.raises(ValueError, match=sentence):
            function(report(), report(**options))


def test_reports_of_other_rules_are_not_compared():
    older = report()
    older = replace(older, methodology=older.methodology | {"rules": "0"})
    with pytest.raises(ValueError, match=r"counting rules is .* and '0'\. Price the"):
        EnergyReport.compare(report(), older)
    with pytest.raises(ValueError, match="without its methodology block"):
        EnergyReport.compare(report(), replace(report(), methodology={}))


def test_seeds_are_pooled_as_one_value_each():
    # 264.4 and 282.4: mean 273.4, std 18 / √2, interval ± 12.7062 · 9
    found = EnergyReport.pooled([report(), report(NEURON, busy(), LM_HEAD)])
    energy = found.statistics["energy_pj"]
    assert (energy.mean, energy.n) == (pytest.approx(273.4), 2)
    assert energy.std == pytest.approx(18 / math.sqrt(2))
    half = 12.706205 * 9
    assert energy.ci95 == pytest.approx((273.4 - half, 273.4 + half))
    assert found.statistics["ratio"].mean == pytest.approx(
        (690 / 264.4 + 690 / 282.4) / 2
    )
    assert found.statistics["firing_rate"].std == 0.0
    assert found.groups_pj["ffn"].mean == pytest.approx(27)
    # the dearest DRAM: 39690 / 39264.4 and 39690 / 39282.4
    dram = found.statistics["ratio, weights once a call, DRAM"]
    assert dram.mean == pytest.approx((39690 / 39264.4 + 39690 / 39282.4) / 2)


def test_the_pool_prints_means_with_their_spread():
    found = EnergyReport.pooled([report(), report(NEURON, busy(), LM_HEAD)])
    text = found.to_markdown()
    assert text.startswith("# 2 runs, modelled energy per token, horowitz-45nm-fp32")
    assert "| energy | 273 pJ | 12.7 pJ | 159\N{EN DASH}388 pJ |" in text
    assert "| firing rate | 0.175 | 0 | 0.175 |" in text
    assert "firing rate" in text_of(found)
    assert text_of(found.table()) == text_of(found)


def test_traffic_that_one_report_lacks_is_not_pooled():
    bare = [replace(r, moved=ByteCounts(), dense_moved=ByteCounts()) for r in RUN.rows]
    found = EnergyReport.pooled([report(), report(*bare)])
    assert set(found.statistics) == {"energy_pj", "baseline_pj", "ratio", "firing_rate"}


def test_what_is_not_a_number_has_no_mean():
    silent = replace(report(), firing={})
    assert "firing_rate" not in EnergyReport.pooled([silent, silent]).statistics


def test_a_spread_needs_two_reports():
    with pytest.raises(ValueError, match="needs at least two reports, got 1"):
        EnergyReport.pooled([report()])
