"""The block that says how the figures came about."""

import json
from importlib.metadata import version

import pytest
import torch
from torch import nn

from mar_snn.energy import SpikeOpCounter
from mar_snn.energy.methodology import NOT_INCLUDED, check_methodology
from mar_snn.energy.rules import RULES_VERSION
from mar_snn.neurons.coder import ATMNCoder


@pytest.fixture
def counter():
    model = nn.Sequential(
        ATMNCoder(3, time_steps=2, tau=0.5),
        nn.Linear(3, 3),
        ATMNCoder(3, time_steps=4, tau=1.0, readout="sum"),
        nn.Linear(3, 3),
        ATMNCoder(3, time_steps=4, tau=1.0, readout="sum"),
        nn.Softmax(dim=-1),
    )
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(torch.tensor([[1.0, -2.0, 0.5]]))
    return counter


@pytest.fixture
def block(counter):
    return counter.report(per="sample", samples=1).methodology


def test_tool_rules_and_versions_are_named(block):
    assert block["tool"] == f"mar_snn {version('mar-snn')}"
    assert block["rules"] == RULES_VERSION
    assert block["torch"] == torch.__version__
    assert block["python"].startswith("3.")


def test_the_model_is_named_with_its_size_and_types(block):
    # two layers of 9 + 3, three coders of 3 thresholds
    assert block["model"] == {
        "class": "Sequential",
        "parameters": 33,
        "dtypes": ["torch.float32"],
    }


def test_kinds_of_neurons_are_listed_once_with_their_number(block):
    kinds = block["temporal"]
    assert [kind.pop("alphabet") for kind in kinds] == [[-1, 0, 1]] * 2
    assert kinds == [
        {"T": 2, "tau": 0.5, "readout": "geometric", "neurons": 1},
        {"T": 4, "tau": 1.0, "readout": "sum", "neurons": 2},
    ]


def test_what_has_no_rule_is_in_the_coverage_and_among_the_excluded(block):
    coverage = block["coverage"]
    assert coverage["uncounted"] == {"aten._softmax.default": 1}
    assert coverage["covered"] == 1 - 1 / coverage["calls"]
    assert {"what": "aten._softmax.default", "why": "no rule", "count": 1} in block[
        "excluded"
    ]


def test_what_is_never_counted_is_always_excluded(block):
    excluded = {entry["what"]: entry for entry in block["excluded"]}
    for what, why in NOT_INCLUDED.items():
        assert excluded[what] == {"what": what, "why": why, "count": None}
    assert "memory traffic" in excluded


def test_a_model_without_spikes_detects_none_and_nothing_covers_nothing():
    linear = nn.Linear(3, 3)
    with torch.no_grad(), SpikeOpCounter(linear) as counter:
        linear(torch.rand(1, 3))
    block = counter.report(per="run").methodology
    assert block["detection"] == {"declared": None, "inferred": None}
    assert block["temporal"] == []
    empty = SpikeOpCounter(linear).report(per="run").methodology
    assert empty["coverage"]["covered"] is None


def test_the_baseline_is_defined(counter, block):
    assert block["baseline"]["name"] == "dense"
    assert "without neurons" in block["baseline"]["definition"]
    other = counter.report(per="run")
    against = counter.report(per="run", baseline=other).methodology["baseline"]
    assert against["name"] == "Sequential"
    assert against["definition"] == (
        "the report of Sequential with the same profile and unit"
    )


def test_every_price_has_its_source(block):
    profile = block["profile"]
    assert (profile["node_nm"], profile["voltage_v"]) == (45.0, 0.9)
    assert set(profile["prices"]) == {"mac", "ac", "mul", "add", "cmp"}
    for entry in profile["prices"].values():
        assert entry["source"].startswith("Horowitz")


def test_the_block_is_json(block):
    assert json.loads(json.dumps(block)) == block


def test_a_block_with_a_missing_point_is_refused_by_name(block):
    check_methodology(block)
    del block["assumptions"], block["profile"]
    with pytest.raises(ValueError, match=r"missing: profile, assumptions\. SpikeOp"):
        check_methodology(block)
