"""benchmarks/energy_counters.py: how it asks, and what its committed results say."""

import ast
import importlib
import json
import math
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from tests.energy.hand_derived import Call, Case, cases

with pytest.MonkeyPatch.context() as patch:
    # a benchmark is run from the root, where it finds the tests
    patch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1])])
    claims_of = importlib.import_module("benchmarks.energy_counter_claims")
    energy_counters = importlib.import_module("benchmarks.energy_counters")

TOOLS = energy_counters.TOOLS

CASES = {case.name: case for case in cases()}
RESULTS = json.loads(energy_counters.RESULTS.read_text(encoding="utf-8"))
ROWS = {row["name"]: row for row in RESULTS["cases"]}


def verdict(case, tool):
    return ROWS[case]["tools"][tool]["verdict"]


def figures(case, tool):
    return ROWS[case]["tools"][tool]["figures"]


# ---- the committed results


def test_the_results_are_about_every_hand_derived_case_and_every_tool():
    assert {name: row["by_hand"] for name, row in ROWS.items()} == {
        name: case.expected for name, case in CASES.items()
    }
    assert list(RESULTS["tools"]) == list(TOOLS)
    assert RESULTS["left_out"] == []


def test_mar_snn_is_right_in_all_cases():
    assert RESULTS["tools"]["mar_snn"]["counts"] == {
        "right": len(CASES),
        "wrong": 0,
        "cannot": 0,
    }
    for name, case in CASES.items():
        assert figures(name, "mar_snn") == case.expected


def test_the_counts_of_a_tool_are_those_of_its_rows():
    for tool, about in RESULTS["tools"].items():
        found = Counter(verdict(name, tool) for name in CASES)
        assert about["counts"] == {v: found[v] for v in ("right", "wrong", "cannot")}
        assert sum(about["counts"].values()) == len(CASES)


def test_judging_the_committed_figures_again_gives_the_committed_verdicts():
    answers = {
        tool: {
            "versions": about["versions"],
            "figures": {name: figures(name, tool) for name in CASES},
        }
        for tool, about in RESULTS["tools"].items()
    }
    again = json.loads(json.dumps(energy_counters.judged(answers)))
    assert again == {key: RESULTS[key] for key in ("tools", "left_out", "cases")}


def test_the_versions_are_those_that_the_script_says_how_to_install():
    recipe = ast.get_docstring(ast.parse(Path(energy_counters.__file__).read_text()))
    for tool in ("syops", "neurobench"):
        for package, version in RESULTS["tools"][tool]["versions"].items():
            assert package == "torch" or f"{package}=={version}" in recipe
    assert RESULTS["tools"]["spikingjelly"]["versions"]["spikingjelly"] == "2.0.0"
    assert len({a["versions"]["torch"] for a in RESULTS["tools"].values()}) == 1


@pytest.mark.parametrize("tool", ["mar_snn", "mar_snn-inferred", "spikingjelly"])
def test_the_tools_of_this_environment_still_report_what_is_committed(tool):
    found = energy_counters.ask(TOOLS[tool])["figures"]
    assert found == {name: figures(name, tool) for name in CASES}


def test_flop_counter_mode_still_reports_what_is_committed_but_for_attention():
    # which kernel attends, and so whether it is counted, is up to torch's build
    found = energy_counters.ask(TOOLS["flop_counter"])["figures"]
    for name in CASES:
        if not claims_of.is_sdpa(CASES[name]):
            assert found[name] == figures(name, "flop_counter")


@pytest.mark.parametrize(
    ("case", "tool", "reported"),
    [
        # the mistakes that the survey of counters found elsewhere, found here again
        ("C02-bias", "syops", {"ac": 10.125, "mac": 0}),
        ("C03-ternary", "spikingjelly", {"synops": 0, "mac": 24, "ac": 0}),
        ("C03-ternary", "syops", {"ac": 0, "mac": 24}),
        ("C08-zero-weights", "spikingjelly", {"synops": 0, "mac": 0, "ac": 0}),
        ("C09-corner", "syops", {"ac": 18, "mac": 0}),
        ("J3-lif-alone", "spikingjelly", {"synops": 0, "mac": 0, "ac": 48}),
        ("N1-bfloat16-row", "neurobench", {"ac": 76800, "mac": 0, "dense_mac": 76800}),
        ("attention", "flop_counter", {"dense_mac": 0}),
        ("C01-binary", "spikingjelly-inference", {"synops": 0, "mac": 0, "ac": 0}),
    ],
)
def test_known_mistakes_are_reproduced(case, tool, reported):
    assert figures(case, tool) == reported


# ---- asking


@pytest.mark.parametrize(
    ("figure", "kept"),
    [
        (9, 9),
        (4.5, 4.5),
        # 1000 · 0.1 in float32
        (100.00000149, 100),
        (10.125, 10.125),
        (1 / 3, 0.333333),
        # off by one is off by one, however large
        (19_880_748.0, 19_880_748),
        (math.inf, "inf"),
        ("RuntimeError: a\nb", "RuntimeError: a"),
    ],
)
def test_figures_are_whole_but_for_the_rounding_of_a_rate(figure, kept):
    assert energy_counters.tidy(figure) == kept
    assert type(energy_counters.tidy(figure)) is type(kept)


def test_a_layer_of_several_inputs_becomes_one_of_its_first():
    layer = energy_counters.OneInput(nn.Bilinear(2, 3, 1), [torch.ones(4, 3)])
    assert layer(x=torch.ones(4, 2)).shape == (4, 1)


def test_an_operation_without_a_rule_is_an_error_and_no_number():
    case = SimpleNamespace(
        model=lambda: Call(torch.fft.fft), tensors=lambda: [torch.ones(2)], settings={}
    )
    found = energy_counters.ask_mar_snn(case)
    assert found["error"].startswith("no rule for ")


def test_what_a_tool_raises_is_kept(monkeypatch):
    def fail(case: Case):
        raise ValueError(f"not {case.name}")

    monkeypatch.setattr(energy_counters, "cases", lambda: [CASES["silence"]])
    tool = TOOLS["flop_counter"]._replace(ask=fail)
    figure = {"error": "ValueError: not silence"}
    assert energy_counters.ask(tool)["figures"] == {"silence": figure}


@pytest.fixture
def older_spikingjelly(monkeypatch):
    """A stand-in for spikingjelly.clock_driven, which version 2 does not have."""

    def multi_step(**how):
        node = nn.Identity()
        node.how = how
        return node

    package = ModuleType("spikingjelly.clock_driven")
    package.neuron = SimpleNamespace(MultiStepLIFNode=multi_step)
    monkeypatch.setitem(sys.modules, "spikingjelly.clock_driven", package)


def test_syops_gets_the_neurons_and_the_layers_that_it_knows(older_spikingjelly):
    net = energy_counters.with_older_neurons(CASES["S1-lif-over-time"].layer())
    assert net[0].how == {"v_threshold": 1.0, "v_reset": 0.0, "tau": 2.0}
    assert type(net[1]) is nn.Linear
    assert net[1].weight.shape == (3, 2)
    assert net[1].bias is None


def test_syops_gets_no_neuron_in_place_of_one_that_it_does_not_know(older_spikingjelly):
    with pytest.raises(LookupError, match="syops has no TernaryIFNode"):
        energy_counters.with_older_neurons(CASES["ternary-if"].layer())


def test_a_process_that_fails_is_reported_with_what_it_said():
    with pytest.raises(RuntimeError, match="no-such-tool failed under") as failure:
        energy_counters.ask_in_a_process("no-such-tool", sys.executable)
    assert "invalid choice: 'no-such-tool'" in str(failure.value)


def test_a_tool_without_an_interpreter_is_left_out_and_said_so(
    monkeypatch, tmp_path, capsys
):
    committed = {
        tool: {
            "versions": about["versions"],
            "figures": {name: figures(name, tool) for name in CASES},
        }
        for tool, about in RESULTS["tools"].items()
    }
    path = tmp_path / "energy_counters.json"
    monkeypatch.setattr(energy_counters, "RESULTS", path)
    monkeypatch.setattr(
        energy_counters, "ask_in_a_process", lambda name, _: committed[name]
    )
    monkeypatch.setattr(sys, "argv", ["energy_counters", "--syops-python", "python"])
    energy_counters.main()
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["left_out"] == ["NeuroBench"]
    assert list(written["tools"]) == [name for name in TOOLS if name != "neurobench"]
    assert written["cases"][0]["tools"]["syops"] == ROWS["C01-binary"]["tools"]["syops"]
    shown = capsys.readouterr().out
    assert energy_counters.markdown(written) in shown
    assert "- Left out, not installed: NeuroBench.\n" in shown


def test_a_process_of_a_tool_answers_in_its_last_line(monkeypatch, capsys):
    monkeypatch.setattr(energy_counters, "cases", lambda: [CASES["silence"]])
    monkeypatch.setattr(sys, "argv", ["energy_counters", "--tool", "flop_counter"])
    energy_counters.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["figures"] == {"silence": {"dense_mac": 12}}


# ---- the tables


def small(verdicts: dict[str, dict[str, tuple[str, str]]]) -> dict:
    """Results of cases a, b, ... in groups by their first letter."""
    tools = sorted({tool for row in verdicts.values() for tool in row})
    counts = {
        tool: Counter(row[tool][0] for row in verdicts.values()) for tool in tools
    }
    return {
        "left_out": [],
        "tools": {
            tool: {
                "title": tool.upper(),
                "convention": "counts",
                "versions": {tool: "1"},
                "counts": counts[tool],
            }
            for tool in tools
        },
        "cases": [
            {
                "name": name,
                "group": name[0],
                "tools": {
                    tool: {"verdict": found, "why": why}
                    for tool, (found, why) in row.items()
                },
            }
            for name, row in verdicts.items()
        ],
    }


SMALL = small(
    {
        "a1": {"x": ("right", ""), "y": ("wrong", "mac 4 (0)")},
        "a2": {"x": ("right", ""), "y": ("cannot", "no rule")},
        "b1": {"x": ("cannot", "error"), "y": ("right", "padding included")},
    }
)


def test_a_table_has_a_rule_below_its_header():
    assert energy_counters.table(["a", "b"], [["1", "2"]]) == [
        "| a | b |",
        "| --- | --- |",
        "| 1 | 2 |",
    ]


def test_verdicts_are_counted_by_group_and_in_all():
    assert energy_counters.markdown(SMALL) == (
        "| right / wrong / cannot | X | Y |\n"
        "| --- | --- | --- |\n"
        "| a (2) | 2 / 0 / 0 | 0 / 1 / 1 |\n"
        "| b (1) | 0 / 0 / 1 | 1 / 0 / 0 |\n"
        "| all (3) | 2 / 0 / 1 | 1 / 1 / 1 |\n"
        "\n"
        "- X (x 1): counts.\n"
        "- Y (y 1): counts.\n"
    )


def test_mistakes_are_rows_of_tools_that_made_any():
    assert energy_counters.mistakes(SMALL) == (
        "| reported (by hand) | Y |\n| --- | --- |\n| a1 | mac 4 (0) |\n"
    )


def test_a_cell_says_by_which_convention_a_tool_is_right():
    row = {"verdict": "right", "why": "padding included"}
    assert energy_counters.cell(row) == "right, padding included"
    assert energy_counters.cell(row | {"why": ""}) == "right"
    assert energy_counters.cell({"verdict": "cannot", "why": "no rule"}) == "cannot"


def test_the_tables_of_the_committed_results_hold_their_counts():
    shown, listed = energy_counters.markdown(RESULTS), energy_counters.mistakes(RESULTS)
    totals = (
        " / ".join(str(about["counts"][v]) for v in ("right", "wrong", "cannot"))
        for about in RESULTS["tools"].values()
    )
    assert f"| all (54) | {' | '.join(totals)} |\n" in shown
    for name, row in ROWS.items():
        drawn = {"spikingjelly-inference"}
        wrong = any(
            found["verdict"] == "wrong"
            for tool, found in row["tools"].items()
            if tool not in drawn
        )
        assert (f"\n| {name} |" in listed) == wrong


def test_the_table_of_the_documentation_is_that_of_the_committed_results():
    page = Path(__file__).parents[1] / "docs" / "energy.md"
    shown = energy_counters.markdown(RESULTS).strip()
    assert shown in page.read_text(encoding="utf-8")
