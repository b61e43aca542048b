"""benchmarks/energy_counter_claims.py: what each tool claims, and how it is judged."""

import importlib
import sys
from collections import Counter
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.energy.hand_derived import cases

with pytest.MonkeyPatch.context() as patch:
    # a benchmark is run from the root, where it finds the tests
    patch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1])])
    claims_of = importlib.import_module("benchmarks.energy_counter_claims")

CASES = {case.name: case for case in cases()}


# ---- judging


def test_what_matches_our_convention_is_right_and_needs_no_note():
    assert claims_of.judge({"ac": 9, "mac": 0}, {"ac": {9: ""}, "mac": {0: ""}}) == (
        "right",
        "",
    )


def test_what_matches_a_convention_of_the_tool_is_right_and_says_so_once():
    claims = {"ac": {15: "bias included", 9: ""}, "mac": {2: "bias included", 0: ""}}
    assert claims_of.judge({"ac": 15, "mac": 2}, claims) == ("right", "bias included")


def test_one_wrong_figure_makes_the_case_wrong_and_names_the_figure_by_hand():
    claims = {"ac": {15: "bias included", 9: ""}, "mac": {0: ""}}
    assert claims_of.judge({"ac": 10.125, "mac": 0}, claims) == (
        "wrong",
        "ac 10.125 (9)",
    )
    assert claims_of.judge({"ac": 10, "mac": 4}, claims) == (
        "wrong",
        "ac 10 (9), mac 4 (0)",
    )


def test_a_figure_that_is_not_reported_is_zero():
    assert claims_of.judge({}, {"mac": {0: ""}}) == ("right", "")
    assert claims_of.judge({}, {"mac": {3: ""}}) == ("wrong", "mac 0 (3)")


def test_figures_that_nobody_claims_are_not_judged():
    assert claims_of.judge({"synops": 9, "ac": 60}, {"synops": {9: ""}}) == (
        "right",
        "",
    )


def test_what_is_outside_of_a_tool_is_not_held_against_it():
    assert claims_of.judge({"mac": 7}, "no rule for a scan") == (
        "cannot",
        "no rule for a scan",
    )
    assert claims_of.judge({"error": "no"}, "outside") == ("cannot", "outside")


def test_a_failure_is_no_wrong_number():
    assert claims_of.judge({"error": "ValueError: x"}, {"mac": {0: ""}}) == (
        "cannot",
        "ValueError: x",
    )


# ---- conventions


def padded_macs(layer: nn.Module, x: torch.Tensor) -> int:
    """The products of a convolution, padded zeros included, from its attributes."""
    out = layer(x)
    if isinstance(out, tuple):  # the causal one: channels last, and a state
        return out[0].numel() * prod(layer.kernel_size) * layer.weight.shape[1]
    positions = x if isinstance(layer, nn.modules.conv._ConvTransposeNd) else out
    return len(x) * prod(positions.shape[2:]) * layer.weight.numel()


def test_padded_products_are_those_of_the_layers():
    convolutions = [
        c for c in CASES.values() if claims_of.group_of(c) == "convolutions"
    ]
    assert len(convolutions) == 12
    for case in convolutions:
        if not case.settings:
            padded = padded_macs(case.layer(), *case.tensors())
            assert claims_of.PADDED.get(case.name, case.expected["dense_mac"]) == padded
    included = CASES["C11-analogue-border-included"].expected["dense_mac"]
    assert claims_of.PADDED["C11-analogue-border"] == included


def test_effective_products_are_of_two_numbers_that_are_not_zero():
    for name, effective in claims_of.EFFECTIVE.items():
        weight, (x,) = CASES[name].layer().weight, CASES[name].tensors()
        met = (x != 0).float() @ (weight != 0).float().T
        assert met.sum() == effective < CASES[name].expected["mac"]


def test_masked_attention_may_be_counted_whole():
    assert claims_of.flop_counter(CASES["attention-causal"]) == {
        "dense_mac": {36: "all pairs", 24: ""}
    }
    assert claims_of.flop_counter(CASES["attention"]) == {"dense_mac": {36: ""}}


def test_padding_may_be_included_in_products_but_not_in_accumulations():
    border, corner = CASES["C11-analogue-border"], CASES["C09-corner"]
    included = {162: "padding included", 98: ""}
    assert claims_of.spikingjelly(border) == {"synops": {0: ""}, "mac": included}
    assert claims_of.syops(border) == {"ac": {0: ""}, "mac": included}
    assert claims_of.syops(corner) == {"ac": {8: ""}, "mac": {0: ""}}
    assert claims_of.flop_counter(corner) == {"dense_mac": included}
    assert claims_of.neurobench(corner) == {
        "ac": {8: ""},
        "mac": {0: ""},
        "dense_mac": {98: ""},
    }


def test_conventions_of_single_tools():
    # 9 accumulations and 6 biases
    assert claims_of.syops(CASES["C02-bias"])["ac"] == {15: "bias included", 9: ""}
    # 12 accumulations and 8 updates; the neuron alone
    once = "1 AC per neuron and step"
    assert claims_of.syops(CASES["S1-lif-over-time"])["ac"] == {20: once, 12: ""}
    assert claims_of.syops(CASES["J3-lif-alone"])["ac"] == {8: once, 0: ""}
    # 3 and 2 spikes of 3 outputs: 15 unit, 6 graded
    integer = CASES["C06-integer-spikes"]
    assert claims_of.spikingjelly(integer)["synops"] == {6: "graded", 15: ""}
    assert list(claims_of.neurobench(integer)["mac"]) == [6, 0]
    zero = CASES["C08-zero-weights"]
    assert claims_of.neurobench(zero)["mac"] == {0: "effective MACs", 12: ""}
    # ours has to be right about all of them
    assert len(claims_of.mar_snn(zero)) == 13
    assert claims_of.mar_snn(zero) == claims_of.mar_snn_inferred(zero)


@pytest.mark.parametrize(
    ("case", "tools"),
    [
        # products without a module, which tools with hooks say they do not see
        ("einsum", ["syops", "neurobench"]),
        ("attention", ["spikingjelly", "syops", "neurobench"]),
        # what is in no tensor
        ("coder-geometric", ["mar_snn_inferred", "spikingjelly", "neurobench"]),
        ("ternary-if", ["syops"]),
        ("layer-norm", ["spikingjelly", "syops", "neurobench", "flop_counter"]),
        ("scan-recurrent", ["spikingjelly", "syops", "neurobench", "flop_counter"]),
        # the same call as another case
        ("attention-causal-all-pairs", ["spikingjelly", "flop_counter"]),
        ("C11-analogue-border-included", ["syops", "neurobench", "flop_counter"]),
        ("J3-lif-alone", ["spikingjelly", "neurobench", "flop_counter"]),
    ],
)
def test_what_a_tool_does_not_claim_has_a_reason(case, tools):
    assert isinstance(claims_of.mar_snn(CASES[case]), dict)
    for tool in tools:
        reason = getattr(claims_of, tool)(CASES[case])
        assert isinstance(reason, str)
        assert reason


def test_every_case_has_a_group():
    assert Counter(map(claims_of.group_of, CASES.values())) == {
        "linear layers, binary": 5,
        "linear layers, ternary": 2,
        "linear layers, analogue": 4,
        "16-bit layers": 4,
        "products without a module": 6,
        "attention": 9,
        "convolutions": 12,
        "neurons and coders, T steps": 8,
        "softmax, norm, upsampling, scan": 4,
    }
