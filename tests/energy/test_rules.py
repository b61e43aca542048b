"""The registries anybody can add to."""

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from mar_snn.energy import (
    OpCounts,
    SpikeOpCounter,
    register_module_rule,
    register_op_rule,
    rules,
)
from mar_snn.energy.counts import Cost


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch):
    monkeypatch.setattr(rules, "_op_rules", dict(rules._op_rules))
    monkeypatch.setattr(rules, "_module_rules", dict(rules._module_rules))


def count(model, x):
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(x)
    return counter


def test_a_new_rule_prices_an_operation(call):
    @register_op_rule(torch.ops.aten._softmax.default)
    def price_softmax(call):
        assert call.argument(1, "dim") == -1
        assert call.argument(9, "nowhere", "default") == "default"
        return Cost({"special": call.output.numel()})

    counter = count(call(lambda x: x.softmax(-1)), torch.rand(2, 3))
    assert counter.total() == OpCounts(special=6)
    counter.report(per="run").assert_complete()


def test_a_rule_without_an_answer_leaves_the_operation_uncounted(call):
    @register_op_rule(torch.ops.aten._softmax.default)
    def price_softmax(call):
        return None

    counter = count(call(lambda x: x.softmax(-1)), torch.rand(2, 3))
    assert counter.run().uncounted == {"aten._softmax.default": 1}


@pytest.mark.parametrize(
    "operation", [torch.ops.aten.mm.default, torch.ops.aten.view.default]
)
def test_a_second_rule_for_an_operation_is_refused(operation):
    with pytest.raises(ValueError, match=r"aten\.\w+\.default has a rule already"):
        register_op_rule(operation)


def test_an_operation_made_of_others_cannot_have_a_rule():
    with pytest.raises(ValueError, match=r"aten\.linear\.default is taken apart"):
        register_op_rule(torch.ops.aten.linear.default)


def test_a_module_with_a_rule_is_priced_as_a_whole():
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x, *, scale):
            return scale * self.inner(x).sigmoid()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = Gate()

        def forward(self, x):
            return self.gate(x, scale=2.0)

    @register_module_rule(Gate)
    def price_gate(call):
        assert call.argument(1, "scale") == 2.0
        return Cost({"lookup": call.args[0].numel()})

    (row,) = count(Model(), torch.rand(2, 3)).rows()
    assert (row.name, row.ops) == ("gate", OpCounts(lookup=6))


def test_a_rule_can_price_a_dense_twin_and_declare_spikes():
    class Threshold(nn.Module):
        def forward(self, x):
            return (x > 0).float()

    @register_module_rule(Threshold)
    def price_threshold(call):
        events = call.declare(call.output.unsqueeze(0), call.output)
        return Cost({"cmp": call.output.numel(), "add": events.pos}, dense={"mul": 1})

    model = nn.Sequential(Threshold(), nn.Linear(3, 2, bias=False))
    first, second = count(model, torch.tensor([[1.0, -1, 1]])).rows()
    assert first.ops == OpCounts(cmp=3, add=2)
    assert first.dense_ops == OpCounts(mul=1)
    assert second.ops == OpCounts(dense_mac=6, ac_add=4, sop_unit=4)


def test_a_class_that_need_not_be_installed_is_named_by_its_path():
    path = f"{__name__}.Later"
    register_module_rule(path)(lambda call: Cost({"special": 1}))

    class Later(nn.Module):
        def forward(self, x):
            return x.exp()

    Later.__qualname__ = "Later"
    assert count(Later(), torch.rand(3)).total() == OpCounts(special=1)
    with pytest.raises(ValueError, match=r"Later has a rule already"):
        register_module_rule(Later)


def test_a_second_rule_for_a_class_is_refused():
    with pytest.raises(ValueError, match=r"IFNode has a rule already; a second would"):
        register_module_rule(neuron.IFNode)


def test_an_unknown_field_of_a_cost_is_refused():
    with pytest.raises(
        ValueError, match=r"fields of OpCounts and ByteCounts, got divs; choose"
    ):
        Cost({"divs": 3})
