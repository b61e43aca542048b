"""The block that says how the figures came about."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

from mar_snn.energy import EnergyReport
from mar_snn.energy.counts import Firing
from mar_snn.energy.reporting.methodology import (
    NOT_INCLUDED,
    check_methodology,
    count_tokens,
    write_methodology,
)
from mar_snn.energy.reporting.profiles import get_profile
from mar_snn.energy.rules.registry import RULES_VERSION
from tests.energy.energy_runs import LM_HEAD, RUN, UP_PROJ

FP32 = get_profile("horowitz-45nm-fp32")


def block_of(run=RUN, profile=FP32, **options):
    given = {"per": "token", "units": 10, "baseline": "dense"} | options
    return write_methodology(run, profile, **given)


@pytest.fixture
def block():
    return block_of()


def test_tool_rules_and_versions_are_named(block):
    assert block["quantity"] == "modelled"
    assert block["tool"] == f"mar_snn {version('mar-snn')}"
    assert block["rules"] == RULES_VERSION
    assert block["torch"] == torch.__version__
    assert block["python"].startswith("3.")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/somewhere/run.py", "--text", "a b"], "run.py --text 'a b'"),
        (["/lib/pytest/__main__.py", "-q"], "pytest -q"),
        (["-c"], "none: run interactively"),
        ([""], "none: run interactively"),
        ([], "none: run interactively"),
    ],
)
def test_the_command_is_that_of_the_script_without_its_folder(
    monkeypatch, arguments, command
):
    monkeypatch.setattr(sys, "argv", arguments)
    assert block_of()["command"] == command


def git(*arguments):
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(
        ["git", *author, *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_commit_is_that_of_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert block_of()["git"] == "not in a git repository"
    git("init", "-q")
    file = tmp_path / "a.txt"
    file.write_text("1", encoding="utf-8")
    git("add", "a.txt")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert len(commit) == 40
    assert block_of()["git"] == commit
    # what is not committed cannot be named
    file.write_text("2", encoding="utf-8")
    assert block_of()["git"] == f"{commit}+"


def test_a_machine_without_git_is_no_error(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert block_of()["git"] == "not in a git repository"


def test_the_model_is_named_with_its_size_and_types(block):
    assert block["model"] == {
        "class": "Tiny",
        "parameters": 9,
        "dtypes": ["torch.float32"],
    }
    assert block["precision"] == {
        "weights": ["torch.float32"],
        "activations": "as executed",
        "accumulators": "fp32",
    }


def test_the_workload_is_what_was_counted_and_what_the_caller_says():
    stated = {"dataset": "wikitext", "split": "test", "seed": 3, "prompts": ["a"]}
    workload = block_of(workload=stated)["workload"]
    assert workload["per"] == "token"
    assert (workload["units"], workload["tokens"]) == (10, 10)
    assert workload["dataset"] == "wikitext"
    assert (workload["seed"], workload["prompts"]) == (3, ["a"])
    # nothing is made up, and nothing is passed over
    for key in ("model", "model_revision", "dataset_revision", "batch", "context"):
        assert workload[key] == "not stated"


def test_a_workload_cannot_contradict_the_count_nor_escape_json():
    with pytest.raises(ValueError, match="gives tokens, units, which the counter"):
        block_of(workload={"units": 3, "tokens": 4})
    with pytest.raises(ValueError, match="must hold numbers, words and lists of them"):
        block_of(workload={"dataset": object()})


def test_tokens_are_those_of_the_passes_and_else_those_of_the_rows():
    assert count_tokens(RUN) == 10
    lookup = replace(LM_HEAD, ops=replace(LM_HEAD.ops, lookup=7))
    assert count_tokens(replace(RUN, batches=(), rows=(lookup,))) == 7


def test_kinds_of_neurons_are_listed_once_with_their_number():
    one = Firing(pos=(1, 0), neg=(0, 0), elements=(2, 2), tau=0.5, readout="sum")
    firing = {"a": one, "b": one, **RUN.firing}
    kinds = block_of(replace(RUN, firing=firing))["temporal"]
    told = [(k["T"], k["tau"], k["readout"], k["neurons"]) for k in kinds]
    assert told == [(2, 0.5, "sum", 2), (4, 0.5, "geometric", 1)]
    assert all(kind["alphabet"] == [-1, 0, 1] for kind in kinds)
    assert all("not tokens" in kind["axis"] for kind in kinds)


def test_detection_is_a_share_of_the_synaptic_operations():
    assert block_of()["detection"] == {"declared": 1.0, "inferred": 0.0}
    # 200 declared, 600 inferred
    many = replace(UP_PROJ.ops, ac_add=600, ac_sub=0, sop_unit=600)
    foreign = replace(UP_PROJ, name="b", detection="inferred", ops=many)
    mixed = block_of(replace(RUN, rows=(UP_PROJ, foreign)))["detection"]
    assert mixed == {"declared": 0.25, "inferred": 0.75}
    silent = block_of(replace(RUN, rows=(LM_HEAD,)))["detection"]
    assert silent == {"declared": None, "inferred": None}


def test_the_settings_of_the_counter_stand_among_the_conventions(block):
    conventions = block["conventions"]
    assert (
        conventions["spikes"] == "declared by the neurons, never inferred from values"
    )
    assert conventions["padding"] == "excluded, dense and spiking"
    assert conventions["causal"].startswith("existing positions only")
    assert "with a rule the recurrent form" in conventions["scan"]
    chunked = block_of(replace(RUN, settings={"scan": "chunked, 64 tokens"}))
    assert chunked["conventions"]["scan"] == "chunked, 64 tokens"


def test_what_has_no_rule_is_in_the_coverage_and_among_the_excluded():
    block = block_of(replace(RUN, uncounted={"aten.erf": 1}, calls=4))
    assert block["coverage"] == {
        "calls": 4, "covered": 0.75, "dense_mac": None, "uncounted": {"aten.erf": 1},
    }  # fmt: skip
    why = "no rule, 25 % of calls"
    assert {"what": "aten.erf", "why": why, "count": 1} in block["excluded"]
    assert block_of()["coverage"]["dense_mac"] == 1.0
    nothing = block_of(replace(RUN, calls=0))["coverage"]
    assert (nothing["covered"], nothing["dense_mac"]) == (None, None)


def test_what_is_never_counted_is_always_excluded(block):
    excluded = {entry["what"]: entry for entry in block["excluded"]}
    for what, why in NOT_INCLUDED.items():
        assert excluded[what] == {"what": what, "why": why, "count": None}
    assert "memory traffic" in excluded


def test_what_has_no_price_is_excluded_with_its_count():
    lookup = replace(LM_HEAD, ops=replace(LM_HEAD.ops, lookup=7, special=3))
    excluded = block_of(replace(RUN, rows=(lookup,)))["excluded"]
    assert excluded[:2] == [
        {"what": "special", "why": "no price in horowitz-45nm-fp32", "count": 3},
        {"what": "lookup", "why": "no price in horowitz-45nm-fp32", "count": 7},
    ]


def test_the_baseline_is_defined(block):
    assert block["baseline"]["name"] == "dense"
    assert "without neurons" in block["baseline"]["definition"]
    assert block_of(baseline="Teacher")["baseline"] == {
        "name": "Teacher",
        "definition": "the report of Teacher with the same profile and unit",
    }


def test_every_price_has_value_unit_node_voltage_source_check_and_note(block):
    profile = block["profile"]
    assert set(profile["prices"]) == {
        "mac", "ac", "mul", "add", "cmp", "int8_mul", "int32_add",
    }  # fmt: skip
    assert profile["prices"]["mac"] == {
        "value": 4.6,
        "unit": "pJ an operation",
        "node_nm": 45.0,
        "voltage_v": 0.9,
        "source": "Horowitz, ISSCC 2014, doi:10.1109/ISSCC.2014.6757323",
        "checked": "equal in PMC8934428, Table 3, and in a public listing, "
        "gist.github.com/V0XNIHILI/2b6fa61edd4c06d9ffce5551065124c1",
        "note": "fp32 multiplication 3.7 + fp32 addition 0.9",
    }


def test_every_memory_has_its_interval_and_the_assumption_of_reuse(block):
    tiers = block["memory"]["tiers"]
    assert list(tiers) == ["SRAM 8 kB", "SRAM 32 kB", "SRAM 1 MB", "DRAM"]
    assert tiers["DRAM"]["value"] == [1300.0, 2600.0]
    assert tiers["DRAM"]["unit"] == "pJ an access of 64 bits"
    assert "once for each call" in block["memory"]["reuse"]


def test_statistics_say_what_they_were_taken_over(block):
    assert block["statistics"]["batches"] == 2
    assert block["statistics"]["units of a batch"] == "its tokens"
    samples = block_of(per="sample", units=2)["statistics"]
    assert samples["units of a batch"] == "an equal part of the run"
    none = block_of(replace(RUN, batches=()))["statistics"]
    assert none["units of a batch"] == "no batches were kept"


def test_nothing_measured_is_said_and_a_sensor_is_named(block):
    assert block["hardware"] == "none: nothing was measured"
    report = EnergyReport.of(RUN, FP32, measured={"source": "nvml"})
    assert report.methodology["hardware"] == "measured apart, source nvml"
    assert "no event-driven chip was measured" in block["assumptions"]


def test_the_block_is_json(block):
    assert json.loads(json.dumps(block)) == block


@pytest.mark.parametrize("point", sorted(block_of().keys() - {"python"}))
def test_a_block_without_one_of_its_points_is_refused_by_name(block, point):
    check_methodology(block)
    del block[point]
    with pytest.raises(ValueError, match=rf"block; missing: {point}\. SpikeOpCounter"):
        check_methodology(block)
