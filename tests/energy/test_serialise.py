"""The JSON document of a report, field by field."""

import json
from dataclasses import replace

import pytest

from mar_snn.energy import EnergyReport
from mar_snn.energy.reporting.serialise import finite, from_json, to_json
from tests.energy.energy_runs import RUN, UP_PROJ


@pytest.fixture
def report():
    run = replace(RUN, uncounted={"aten.erfinv.default": 2})
    return EnergyReport.of(run, "horowitz-45nm-fp32")


@pytest.fixture
def document(report):
    return to_json(report)


def test_the_document_has_the_sections_of_the_schema_in_order(document):
    assert list(document) == [
        "schema", "kind", "methodology", "profiles", "totals", "modules", "groups",
        "phases", "firing", "against", "baselines", "traffic", "break_even", "batches",
        "statistics", "measured",
    ]  # fmt: skip


def test_a_module_is_written_with_counts_of_the_run_and_energy_of_a_unit(document):
    module = document["modules"][1]
    assert module["name"] == "layers.0.mlp.up_proj"
    assert (module["type"], module["group"], module["calls"]) == ("Linear", "ffn", 2)
    assert (module["spiking"], module["T"], module["readout"]) == (True, 4, "geometric")
    assert module["detection"] == "declared"
    assert module["ops"]["ac_sub"] == 50
    assert module["dense_ops"]["mac"] == 1000
    assert (module["moved"]["weight_touched"], module["columns_touched"]) == (600, 15)
    assert module["energy_pj"] == pytest.approx(18)
    assert module["share"] == pytest.approx(18 / 264.4)


def test_totals_name_their_unit_and_split_the_energy_by_price(document):
    totals = document["totals"]
    assert (totals["per"], totals["units"]) == ("token", 10)
    assert totals["energy_pj"] == pytest.approx(264.4)
    assert totals["energy_by_price_pj"] == pytest.approx(
        {"mac": 230.0, "ac": 18.0, "add": 0.0, "mul": 7.4, "cmp": 9.0}
    )
    assert totals["unpriced"] == {}
    assert totals["moved"]["weight_dense"] == 1200
    # 70 spikes of 400, (50 - 20) / 70
    assert totals["firing_rate"] == 0.175
    assert totals["sign_balance"] == pytest.approx(3 / 7)


def test_what_the_report_is_against_is_written_with_its_groups(document):
    against = document["against"]
    assert against["name"] == "dense"
    assert against["groups_pj"] == pytest.approx(
        {"neuron": 0.0, "ffn": 460.0, "lm_head": 230.0}
    )
    assert against["ratio"] == pytest.approx(690 / 264.4)
    assert against["bytes"]["activation"] == pytest.approx(26)
    assert against["batches_pj"] == pytest.approx([690, 690])


def test_baselines_traffic_and_break_even_are_written_as_figures(document):
    names = [baseline["name"] for baseline in document["baselines"]]
    assert names == ["dense", "quantised dense, 4 bits", "zero-skipping dense"]
    assert document["baselines"][2]["energy_pj"] == pytest.approx([253, 322])
    assert document["baselines"][0]["profile"] == "horowitz-45nm-fp32"
    assert document["traffic"][0]["energy_pj"] == pytest.approx([414.4, 1764.4])
    assert document["traffic"][0]["memory"] == "sram"
    assert document["break_even"]["spikes_per_synapse"] == 0.2


def test_batches_and_their_statistics_are_written(document):
    assert [batch["tokens"] for batch in document["batches"]] == [4, 6]
    assert [batch["units"] for batch in document["batches"]] == [4.0, 6.0]
    assert document["batches"][0]["ops"]["cmp"] == 40
    assert document["statistics"]["energy_pj"]["mean"] == pytest.approx(265.15)
    assert document["statistics"]["ratio"]["n"] == 2


def test_firing_is_written_as_counts_and_as_rates(document):
    firing = document["firing"]["layers.0.mlp.in_neuron"]
    assert (firing["pos"], firing["neg"]) == ([30, 10, 5, 5], [10, 5, 3, 2])
    assert firing["rate_by_step"] == [0.4, 0.15, 0.08, 0.07]
    assert (firing["p_pos"], firing["p_neg"]) == (0.125, 0.05)
    assert (firing["silent_channels"], firing["channels"]) == (2, 10)


def test_reading_what_was_written_gives_the_same_report(report):
    document = json.loads(json.dumps(to_json(report), allow_nan=False))
    assert EnergyReport(**from_json(document)) == report


def test_phases_measurements_and_other_baselines_come_back_too(report):
    prefill = replace(RUN, rows=(replace(UP_PROJ, phase="prefill"),))
    full = EnergyReport.of(
        prefill,
        "horowitz-45nm-fp32",
        baseline=report,
        measured={"source": "nvml", "joules_gross": (1.0, float("nan"))},
        workload={"dataset": "wikitext", "seed": 3},
    )
    document = json.loads(json.dumps(to_json(full), allow_nan=False))
    assert document["phases"]["prefill"]["units"] == 10
    assert document["measured"] == {"source": "nvml", "joules_gross": [1.0, None]}
    assert document["methodology"]["workload"]["dataset"] == "wikitext"
    assert document["against"]["name"] == "Tiny"
    assert EnergyReport(**from_json(document)) == full


def test_prices_come_back_with_their_sources(report):
    fields = from_json(json.loads(json.dumps(to_json(report))))
    assert fields["profile"] == report.profile
    assert "ISSCC" in fields["profile"].mac.source
    assert fields["profile"].special is None
    assert fields["profile"].memory[-1].high_pj == 2600


def test_a_document_without_a_schema_is_refused():
    with pytest.raises(ValueError, match="schema 'mar-snn/energy-report/2', got None"):
        from_json({})


def test_what_json_cannot_say_is_null():
    value = {"a": (1, float("inf")), "b": [float("nan")], "c": 2.5, "d": None}
    assert finite(value) == {"a": [1, None], "b": [None], "c": 2.5, "d": None}
