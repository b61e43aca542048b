"""Every hand-derived case: by hand, by plain loops and by the counter."""

import ast
import inspect

import pytest
import torch

from mar_snn.energy import OpCounts, SpikeOpCounter
from tests.energy import brute
from tests.energy.hand_derived import Case, cases

CASES = cases()


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_there_are_at_least_forty_of_them_and_no_two_share_a_name():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


def test_plain_loops_arrive_at_the_numbers_of_the_comments(case):
    assert case.again() == case.expected


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_counter_arrives_at_them_too_and_leaves_nothing_out(case, mode):
    model, inputs = case.model(), case.tensors()
    with mode(), SpikeOpCounter(model, **case.settings) as counter:
        model(*inputs)
    assert counter.total() == OpCounts(**case.expected)
    assert counter.run().uncounted == {}


def test_the_plain_loops_know_nothing_of_torch():
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(inspect.getsource(brute)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [])
        + [alias.name for alias in node.names if isinstance(node, ast.Import)]
    }
    assert imported == {"collections", "itertools", "math", "typing"}
