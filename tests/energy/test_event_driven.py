"""Event-driven decoding: the operations stay, the traffic is what was read."""

import pytest
import torch
from torch import nn

from mar_snn.energy import SpikeOpCounter
from mar_snn.neurons import ATMNCoder
from mar_snn.sparse import DenseLinear, EventLinear
from tests.seed import SEED


def network(bias=False):
    torch.manual_seed(SEED)
    return nn.Sequential(ATMNCoder(6, time_steps=2), nn.Linear(6, 10, bias=bias))


def count(model, x):
    with torch.inference_mode(), SpikeOpCounter(model) as counter:
        model(x)
    return counter


def bytes_of(counter):
    return {row.name: row.moved for row in counter.rows()}["1"]


@pytest.mark.parametrize("bias", [False, True])
def test_the_operations_are_those_of_the_dense_product(bias):
    model, x = network(bias), torch.randn(1, 6)
    expected = count(model, x).total()
    assert expected.sop_unit > 0
    model[1] = EventLinear(model[1])
    counter = count(model, x)
    assert counter.total() == expected
    counter.report(per="run").assert_complete()


def test_the_bytes_are_the_rows_that_were_read():
    model = network()
    # 2 fires at once and 0.4 at the second step; 0.1 never does
    x = torch.tensor([[2.0, 0.4, 0.1, 0.0, -2.0, 0.0]])
    linear = model[1] = EventLinear(model[1])
    moved = bytes_of(count(model, x))
    active = int((model[0](x) != 0).sum())
    assert active == 3
    assert moved.weight_touched == 3 * 10 * 4
    assert moved.weight_dense == 6 * 10 * 4
    linear.break_even = 0.4  # three of six are more: all rows were read
    assert bytes_of(count(model, x)).weight_touched == 6 * 10 * 4


def test_int8_rows_are_a_byte_a_weight_and_a_scale():
    model = network(bias=True)
    x = torch.tensor([[2.0, 0.0, 0.0, 0.0, -2.0, 0.0]])
    model[1] = EventLinear(model[1], weights="int8")
    moved = bytes_of(count(model, x))
    assert moved.weight_touched == 2 * (10 + 4) + 10 * 4
    assert moved.activation == 10 * 4


def test_a_dense_head_reads_everything():
    model = nn.Sequential(nn.Identity(), nn.Linear(6, 10, bias=False))
    expected = count(model, torch.randn(1, 6))
    model[1] = DenseLinear(model[1])
    counter = count(model, torch.randn(1, 6))
    assert counter.total() == expected.total()
    assert bytes_of(counter) == bytes_of(expected)


def test_the_report_names_the_path(tmp_path):
    model, x = network(), torch.randn(1, 6)
    texts = []
    for linear in (model[1], EventLinear(model[1])):
        model[1] = linear
        count(model, x).report(per="run").to_markdown(tmp_path / "report.md")
        texts.append((tmp_path / "report.md").read_text("utf-8"))
    assert [text.count("those that the kernel read") for text in texts] == [0, 1]
