"""What a report says, what it refuses, and that it survives a file."""

import io
import json
import math
from dataclasses import replace

import pytest
import rich.console
import torch
from torch import nn

from mar_snn.energy import EnergyProfile, EnergyReport, SpikeOpCounter
from mar_snn.energy.measured.measurement import Measurement
from mar_snn.energy.reporting.profiles import Price
from mar_snn.energy.reporting.schema import SCHEMA
from tests.energy.energy_runs import RUN


class Model(nn.Module):
    """Two tokens a row are looked up, fired and projected; a dense head follows."""

    def __init__(self, fire):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.fire = fire()
        self.linear = nn.Linear(4, 10, bias=False)
        self.lm_head = nn.Linear(10, 2, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor([1.0, 0, -1, 0]).expand(5, 4))

    def forward(self, ids):
        return self.lm_head(self.linear(self.fire(self.embedding(ids))).exp())


IDS = torch.tensor([[0, 1], [2, 3], [4, 0]])


@pytest.fixture
def counter(fire):
    model = Model(fire)
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(IDS)
    return counter


@pytest.fixture
def report(counter):
    return counter.report()


def test_every_ratio_has_a_name_and_two_ends(report):
    ratios = report.ratios
    assert ratios["dense"] == pytest.approx((report.ratio, report.ratio))
    by_name = {f"{t.assumption}, {t.memory}": t.ratio for t in report.traffic}
    assert len(by_name) == 6
    assert by_name.items() <= ratios.items()
    assert ratios["weights once a call, dram"][1] < report.ratio
    unpriced = replace(
        report, profile=replace(report.profile, int8_mul=None, memory=())
    )
    assert [n for n in unpriced.ratios if "quant" in n or "ram" in n] == []


def test_energy_is_counts_times_prices_for_each_token(report):
    # 6 tokens, each: 2 spikes · 10 AC · 0.9 = 18, head 10 · 2 MAC · 4.6 = 92
    assert report.units == 6
    assert report.energy_pj == pytest.approx(18 + 92)
    # dense: 4 · 10 MAC instead of the spikes
    assert report.baseline_pj == pytest.approx(40 * 4.6 + 92)
    assert report.ratio == pytest.approx(276 / 110)
    assert report.ratio_without("lm_head") == pytest.approx(184 / 18)
    assert report.total.sop_unit == 6 * 20


def test_groups_share_the_energy_of_the_model(report):
    groups = report.groups
    assert set(groups) == {"embedding", "Linear", "other", "lm_head"}
    assert groups["Linear"].energy_pj == pytest.approx(18)
    assert groups["Linear"].ratio == pytest.approx(184 / 18)
    assert groups["lm_head"].share == pytest.approx(92 / 110)
    assert math.isnan(groups["other"].ratio)  # exp is unpriced


def test_firing_is_reported_by_neuron_and_in_all(report):
    firing = report.firing["fire"]
    assert (firing.rate, firing.p_pos, firing.p_neg) == (0.5, 0.25, 0.25)
    assert firing.rate_by_step == [0.5]
    assert (report.firing_rate, report.sign_balance) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("options", "units"),
    [
        ({"per": "run"}, 1),
        ({"per": "sample", "samples": 3}, 3),
        ({"per": "token", "tokens": 2}, 2),
    ],
)
def test_energy_is_divided_by_the_units_asked_for(counter, options, units):
    report = counter.report(**options)
    assert report.energy_pj == pytest.approx(660 / units)
    assert report.ratio == pytest.approx(276 / 110)


def test_one_count_is_priced_by_many_profiles(counter):
    # AC 0.4 and MAC 1.5; AC 0.1 and MAC 0.3
    assert counter.report("horowitz-45nm-fp16").energy_pj == pytest.approx(38)
    assert counter.report("horowitz-45nm-int8").energy_pj == pytest.approx(8)
    ones = dict.fromkeys(
        ("mac", "ac", "mul", "add"), Price(value_pj=1.0, source="a test")
    )
    own = EnergyProfile(
        name="ones", node_nm=1.0, voltage_v=1.0, accumulator="fp32", **ones
    )
    assert counter.report(own).energy_pj == pytest.approx(40)


def test_units_that_are_not_known_must_be_given(counter):
    with pytest.raises(ValueError, match=r"samples is unknown: pass samples=\.\.\."):
        counter.report(per="sample")
    with pytest.raises(ValueError, match="per must be one of token, sample, run, got"):
        counter.report(per="word")
    empty = SpikeOpCounter(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="number of tokens is unknown"):
        empty.report()


def test_a_baseline_must_mean_the_same(counter, report):
    assert counter.report(baseline=report).ratio == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"same profile and unit: this report has"):
        counter.report("horowitz-45nm-fp16", baseline=report)
    with pytest.raises(ValueError, match=r"per run, the baseline 'horowitz-45nm-fp32'"):
        counter.report(per="run", baseline=report)
    with pytest.raises(ValueError, match="must be 'dense' or an EnergyReport, got 'sp"):
        counter.report(baseline="sparse")


def test_a_group_that_is_not_there_cannot_be_left_out(report):
    with pytest.raises(ValueError, match=r"no group 'head'; choose from other, emb"):
        report.ratio_without("head")


def test_ratios_without_energy_are_infinite_or_nothing(fire):
    model = nn.Sequential(fire(), nn.Linear(2, 2, bias=False))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(torch.zeros(1, 2))
    silent = counter.report(per="run")
    assert silent.ratio == math.inf
    assert math.isnan(silent.sign_balance)
    assert silent.groups["Linear"].share == 0.0
    empty = SpikeOpCounter(model).report(per="run")
    assert math.isnan(empty.ratio)
    assert math.isnan(empty.firing_rate)


def test_an_operation_without_a_rule_is_named_and_fails_the_check():
    run = replace(RUN, uncounted={"aten.b": 1, "aten.a": 6})
    report = EnergyReport.of(run, "horowitz-45nm-fp32")
    with pytest.raises(ValueError, match=r"prices aten\.a \(6\), aten\.b \(1\); add"):
        report.assert_complete()
    assert report.methodology["coverage"]["covered"] == 0.0
    # of seven calls
    assert "1 aten.b (no rule, 14.3 % of calls)" in text_of(report.table())


# ---- renderings


def text_of(renderable):
    console = rich.console.Console(width=80, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_print_ends_with_what_it_leaves_out(report):
    text = text_of(report)
    assert "Modelled energy per token of Model, horowitz-45nm-fp32" in text
    assert "2.51x" in text  # 276 / 110
    flat = " ".join(text.split())
    assert "firing rate 0.5 per element and step, sign balance +0.00" in flat
    # exp of 6 · 10 values
    assert "NOT INCLUDED: 60 special (no price in horowitz-45nm-fp32), 6 lookup" in flat
    assert "memory traffic" in flat
    assert flat.endswith(
        "Event-driven hardware assumed. Modelled from counts, a lower "
        "bound. Not a measurement."
    )


def test_a_table_by_module_is_cut_to_a_depth():
    deep = nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)))
    with torch.no_grad(), SpikeOpCounter(deep) as counter:
        deep(torch.ones(1, 1))
    report = counter.report(per="run")
    assert "0.1" in text_of(report.table("module")).split("With the traffic")[0]
    cut = text_of(report.table("module", depth=1)).split("With the traffic")[0]
    assert "0.1" not in cut
    # two layers of one product and one bias: 2 · (4.6 + 0.9), in the row and the total
    assert cut.count(" 11 pJ ") == 4  # of the model and of the dense model
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        report.table("module", depth=0)
    with pytest.raises(ValueError, match="by must be 'group' or 'module', got 'layer'"):
        report.table("layer")


def test_large_numbers_are_shortened(counter):
    run = counter.run()
    huge = [replace(row, ops=replace(row.ops, mac=3 * 10**12)) for row in run.rows]
    report = EnergyReport.of(
        replace(run, rows=tuple(huge)), "horowitz-45nm-fp32", per="run"
    )
    text = text_of(report.table("module"))
    assert "3T" in text  # each row
    assert "13.8 J" in text  # 3e12 · 4.6 pJ
    assert "1.66 nJ" in text  # the dense model: 6 · 276 pJ


def test_the_markdown_holds_table_firing_methodology_and_exclusions(report, tmp_path):
    report.to_markdown(tmp_path / "energy.md")
    text = (tmp_path / "energy.md").read_text(encoding="utf-8")
    assert "| lm_head | 20 | 20 | 0 |" in text
    assert "| **total** | 60 | 20 | 20 |" in text
    assert "| `fire` | 1 | 0.5000 | 0.500 | 0.250 | 0.250 | +0.00 |" in text
    assert "## Methodology" in text
    assert "doi:10.1109/ISSCC.2014.6757323" in text
    assert "Not a measurement." in text


def test_rows_are_written_for_latex_and_for_spreadsheets(report, tmp_path):
    report.to_latex(tmp_path / "energy.tex")
    text = (tmp_path / "energy.tex").read_text(encoding="utf-8")
    assert r"lm\_head & 20 & 0 & 0 & 92 pJ &" in text
    report.to_csv(tmp_path / "energy.csv")
    lines = (tmp_path / "energy.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(report.rows)
    assert lines[0].startswith("name,type,group,phase,calls,T,")


def test_a_report_survives_a_file(report, tmp_path):
    report.to_json(tmp_path / "energy.json")
    loaded = EnergyReport.load(tmp_path / "energy.json")
    assert loaded == report
    assert loaded.ratio == report.ratio
    assert text_of(loaded) == text_of(report)


def test_the_json_holds_the_sections_of_the_schema(report, tmp_path):
    report.to_json(tmp_path / "energy.json")
    document = json.loads((tmp_path / "energy.json").read_text(encoding="utf-8"))
    assert document["schema"] == SCHEMA == "mar-snn/energy-report/2"
    assert document["kind"] == "modelled"
    assert document["measured"] is None
    assert document["totals"]["per"] == "token"
    assert document["totals"]["ops"]["sop_unit"] == 120
    assert document["totals"]["energy_pj"] == pytest.approx(110)
    assert sum(document["totals"]["energy_by_price_pj"].values()) == pytest.approx(110)
    assert document["against"]["ratio"] == pytest.approx(276 / 110)
    modules = {module["name"]: module for module in document["modules"]}
    assert modules["linear"]["spiking"]
    assert not modules["lm_head"]["spiking"]
    assert document["groups"]["lm_head"]["share"] == pytest.approx(92 / 110)
    assert document["firing"]["fire"]["rate_by_step"] == [0.5]


def test_what_is_not_a_number_is_null_in_the_json(fire, tmp_path):
    model = nn.Sequential(fire(), nn.Linear(2, 2, bias=False))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(torch.zeros(1, 2))
    report = counter.report(per="run")
    report.to_json(tmp_path / "energy.json")
    document = json.loads((tmp_path / "energy.json").read_text(encoding="utf-8"))
    assert document["against"]["ratio"] is None
    assert document["baselines"][0]["ratio"] == [None, None]
    assert document["totals"]["sign_balance"] is None
    assert EnergyReport.load(tmp_path / "energy.json") == report


def test_a_file_of_another_schema_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"schema": "other/2"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"energy-report/2', got 'other/2'"):
        EnergyReport.load(path)
    path.write_text('{"schema": "mar-snn/energy-report/1"}', encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be made of it: count the run again"):
        EnergyReport.load(path)


# ---- what a report is asked for


def test_a_report_is_asked_for_its_figures():
    report = EnergyReport.of(RUN, "horowitz-45nm-fp32")
    assert [line.memory for line in report.traffic] == ["sram", "dram"] * 3
    assert [baseline.name for baseline in report.baselines] == [
        "dense", "quantised dense, 4 bits", "zero-skipping dense",
    ]  # fmt: skip
    assert report.break_even.spikes_per_synapse == 0.2
    assert report.statistics["energy_pj"].n == 2
    assert report.groups["ffn"].columns_touched == 0.75
    assert report.moved.weight_touched == 1000


def test_a_run_in_which_everything_had_a_rule_is_complete():
    report = EnergyReport.of(RUN, "horowitz-45nm-fp32")
    report.assert_complete()
    assert report.methodology["coverage"]["covered"] == 1.0


def test_a_measurement_needs_a_source_and_values_that_can_be_written():
    with pytest.raises(ValueError, match=r"needs the key 'source', .*; got joules"):
        EnergyReport.of(RUN, "horowitz-45nm-fp32", measured={"joules": 1})
    with pytest.raises(ValueError, match="got an empty dictionary"):
        EnergyReport.of(RUN, "horowitz-45nm-fp32", measured={})
    with pytest.raises(ValueError, match="must hold numbers, words and lists of them"):
        EnergyReport.of(
            RUN, "horowitz-45nm-fp32", measured={"source": "nvml", "x": object()}
        )


def test_what_the_meter_says_survives_a_file_beside_the_model(tmp_path):
    measured = Measurement(source="none", warnings=("no sensor",)).as_dict()
    report = EnergyReport.of(RUN, "horowitz-45nm-fp32", measured=measured)
    report.to_json(tmp_path / "energy.json")
    loaded = EnergyReport.load(tmp_path / "energy.json")
    assert loaded == report
    assert Measurement.from_dict(loaded.measured).warnings == ("no sensor",)


def test_a_measurement_changes_no_modelled_figure():
    plain = EnergyReport.of(RUN, "horowitz-45nm-fp32")
    measured = {"source": "nvml", "joules_gross": [3.0]}
    beside = EnergyReport.of(RUN, "horowitz-45nm-fp32", measured=measured)
    assert beside.measured == measured
    assert (beside.energy_pj, beside.ratio) == (plain.energy_pj, plain.ratio)
    assert beside.traffic == plain.traffic
    assert beside.baselines == plain.baselines


@pytest.mark.parametrize(
    "render",
    [
        lambda report, path: report.table(),
        lambda report, path: report.to_json(path),
        lambda report, path: report.to_markdown(path),
        lambda report, path: report.to_latex(path),
        lambda report, path: report.to_csv(path),
        lambda report, path: report.__rich__(),
        lambda report, path: report.assert_complete(),
    ],
)
def test_nothing_is_rendered_without_the_methodology(report, tmp_path, render):
    without = replace(report, methodology={"quantity": "modelled"})
    with pytest.raises(ValueError, match="its methodology block; missing: tool, git"):
        render(without, tmp_path / "out")
    assert not (tmp_path / "out").exists()
