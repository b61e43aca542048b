"""The JSON document of a report, field by field."""

import json

import pytest

from mar_snn.energy import EnergyReport, OpCounts
from mar_snn.energy.counts import CountedRun, Firing, ModuleRow
from mar_snn.energy.serialise import from_json, to_json


@pytest.fixture
def report():
    row = ModuleRow(
        name="layers.0.mlp.down_proj",
        type="Linear",
        group="ffn",
        calls=3,
        ops=OpCounts(dense_mac=100, ac_add=20, ac_sub=10, sop_unit=30, mul=5),
        dense_ops=OpCounts(dense_mac=100, mac=100),
        time_steps=4,
        readout="geometric",
    )
    firing = Firing(pos=(3, 1), neg=(1, 1), elements=(8, 8), tau=0.5, readout="sum")
    run = CountedRun(
        rows=(row,),
        firing={"layers.0.mlp.out_neuron": firing},
        calls=7,
        uncounted={"aten.erfinv.default": 2},
        model={"class": "Tiny", "parameters": 9, "dtypes": ["torch.float32"]},
    )
    return EnergyReport.of(run, "horowitz-45nm-fp32", per="token", units=10)


def test_the_document_has_the_sections_of_the_schema_in_order(report):
    assert list(to_json(report)) == [
        "schema", "kind", "methodology", "profiles", "totals", "modules", "groups",
        "firing", "baselines", "measured",
    ]  # fmt: skip


def test_a_module_is_written_with_counts_of_the_run_and_energy_of_a_unit(report):
    (module,) = to_json(report)["modules"]
    assert module["name"] == "layers.0.mlp.down_proj"
    assert (module["type"], module["group"], module["calls"]) == ("Linear", "ffn", 3)
    assert (module["spiking"], module["T"], module["readout"]) == (True, 4, "geometric")
    assert module["ops"]["ac_sub"] == 10
    assert module["dense_ops"]["mac"] == 100
    # (30 · 0.9 + 5 · 3.7) / 10
    assert module["energy_pj"] == pytest.approx(4.55)


def test_totals_name_their_unit_and_split_the_energy_by_price(report):
    totals = to_json(report)["totals"]
    assert (totals["per"], totals["units"]) == ("token", 10)
    assert totals["energy_pj"] == pytest.approx(4.55)
    assert totals["energy_by_price_pj"] == pytest.approx(
        {"mac": 0.0, "ac": 2.7, "add": 0.0, "mul": 1.85, "cmp": 0.0}
    )
    assert totals["unpriced"] == {}
    # 6 spikes of 16, (4 - 2) / 6
    assert totals["firing_rate"] == 0.375
    assert totals["sign_balance"] == pytest.approx(1 / 3)


def test_a_baseline_is_written_with_its_groups(report):
    (baseline,) = to_json(report)["baselines"]
    assert baseline["name"] == "dense"
    assert baseline["groups_pj"] == pytest.approx({"ffn": 46.0})
    assert baseline["ratio"] == pytest.approx(46 / 4.55)


def test_firing_is_written_as_counts_and_as_rates(report):
    firing = to_json(report)["firing"]["layers.0.mlp.out_neuron"]
    assert (firing["pos"], firing["neg"]) == ([3, 1], [1, 1])
    assert firing["rate_by_step"] == [0.5, 0.25]
    assert (firing["p_pos"], firing["p_neg"]) == (0.25, 0.125)


def test_reading_what_was_written_gives_the_same_report(report):
    document = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert EnergyReport(**from_json(document)) == report


def test_prices_come_back_with_their_sources(report):
    fields = from_json(json.loads(json.dumps(to_json(report))))
    assert fields["profile"] == report.profile
    assert "ISSCC" in fields["profile"].mac.source
    assert fields["profile"].special is None


def test_a_document_without_a_schema_is_refused():
    with pytest.raises(ValueError, match="schema 'mar-snn/energy-report/1', got None"):
        from_json({})
