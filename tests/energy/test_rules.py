"""The registries anybody can add to."""

from pathlib import Path

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
from mar_snn.energy.rules import registry
from mar_snn.energy.rules.registry import CountingSettings, ModuleCall, OpCall


@pytest.fixture(autouse=True)
def registries_as_before(monkeypatch):
    monkeypatch.setattr(registry, "_op_rules", dict(registry._op_rules))
    monkeypatch.setattr(registry, "_module_rules", dict(registry._module_rules))


def count(model, x):
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(x)
    return counter


TWIST = torch.ops.mar_snn_tests.twist.default


def test_a_new_rule_prices_an_operation(call, unpriced):
    @register_op_rule(TWIST)
    def price_twist(call):
        assert call.argument(0, "x") is call.args[0]
        assert call.argument(9, "nowhere", "default") == "default"
        return Cost({"special": call.output.numel()})

    counter = count(call(unpriced), torch.rand(2, 3))
    assert counter.total() == OpCounts(special=6)
    counter.report(per="run").assert_complete()


def test_a_rule_without_an_answer_leaves_the_operation_uncounted(call, unpriced):
    @register_op_rule(TWIST)
    def price_twist(call):
        return None

    counter = count(call(unpriced), torch.rand(2, 3))
    assert counter.run().uncounted == {str(TWIST): 1}


def test_a_rule_may_leave_the_modules_inside_to_themselves(unpriced, fire):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.inner = fire(), nn.Linear(3, 2, bias=False)

        def forward(self, x):
            # spikes are followed through what the rule stands for
            return unpriced(self.inner(self.neuron(x).unsqueeze(0).squeeze(0)))

    @register_module_rule(Gate, children="counted")
    def price_gate(call):
        return Cost({"special": call.output.numel()})

    counter = count(Gate(), torch.tensor([[1.0, 0, -1]]))
    assert [(row.name, row.ops) for row in counter.rows()] == [
        ("", OpCounts(special=2)),
        ("inner", OpCounts(dense_mac=6, ac_add=2, ac_sub=2, sop_unit=4)),
    ]
    assert counter.run().uncounted == {}


def test_children_are_priced_or_counted():
    with pytest.raises(ValueError, match="must be 'priced' or 'counted', got 'both'"):
        register_module_rule("a.path", children="both")


def test_a_module_rule_without_an_answer_leaves_the_module_uncounted():
    class Secret(nn.Module):
        def forward(self, x):
            return x.exp()

    register_module_rule(Secret)(lambda call: None)
    counter = count(Secret(), torch.rand(3))
    assert counter.run().uncounted == {"Secret": 1}
    assert counter.total() == OpCounts()


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("spikes", "guessed", "'declared' or 'inferred'"),
        ("padding", "maybe", "'exclude' or 'include'"),
        ("causal", "half", "'exact' or 'full'"),
    ],
)
def test_an_unknown_setting_is_refused_with_those_there_are(name, value, choices):
    with pytest.raises(ValueError, match=f"{name} must be {choices}, got '{value}'"):
        SpikeOpCounter(nn.Identity(), **{name: value})


def test_rules_read_the_settings_and_leave_notes(call, unpriced):
    class Scan(nn.Module):
        def forward(self, x):
            return x.exp()

    @register_op_rule(TWIST)
    def price_twist(call):
        call.note("attention", "fused")
        return Cost({"mul": 1 if call.settings.padding == "include" else 2})

    @register_module_rule(Scan)
    def price_scan(call):
        call.note("scan", f"chunks of {call.output.shape[-1]}")
        return Cost({"add": 1 if call.settings.causal == "full" else 2})

    model = nn.Sequential(call(unpriced), Scan())
    with (
        torch.no_grad(),
        SpikeOpCounter(model, padding="include", causal="full") as counter,
    ):
        for width in (3, 4, 3):
            model(torch.rand(2, width))
    assert counter.total() == OpCounts(mul=3, add=3)
    assert counter.run().settings == {
        "spikes": "declared",
        "padding": "include",
        "causal": "full",
        "depth": "all",
        "attention": "fused",
        "scan": "chunks of 3, chunks of 4",
    }


def test_a_call_that_nobody_watches_has_no_spikes_and_no_weights():
    x = torch.ones(2, 3)
    op = OpCall(torch.ops.aten.mm.default, (x, x.t()), {}, x @ x.t())
    module = ModuleCall(nn.Identity(), (x,), {}, x, None, lambda *_: None)
    for call in (op, module):
        assert call.spikes(x) is None
        assert not call.is_weight(x)
        assert call.settings == CountingSettings()
        assert call.note("key", "value") is None
    assert op.touched(x) is None
    # K of the left factor and of the right
    assert (op.columns(x), op.columns(op.args[1])) == (3, 3)


def test_a_product_that_is_not_known_has_features_on_its_last_axis():
    x = torch.ones(2, 5)
    assert OpCall(torch.ops.aten.relu.default, (x,), {}, x).columns(x) == 5


def test_spikes_that_a_rule_declares_may_be_scaled():
    class Scaled(nn.Module):
        def forward(self, x):
            return 0.25 * x.sign()

    @register_module_rule(Scaled)
    def price_scaled(call):
        events = call.declare(call.output.unsqueeze(0), call.output)
        return Cost({"cmp": events.pos, "add": events.neg}, dense={})

    model = nn.Sequential(Scaled(), nn.Linear(3, 2, bias=False))
    first, second = count(model, torch.tensor([[2.0, -1, 0]])).rows()
    assert first.ops == OpCounts(cmp=1, add=1)
    # the scale folds into the weights
    assert second.ops == OpCounts(dense_mac=6, ac_add=2, ac_sub=2, sop_unit=4)
    assert second.readout == "unit"


def test_integers_that_a_rule_declares_are_graded():
    class Counts(nn.Module):
        def forward(self, x):
            return x.clamp(0, 4).round()

    @register_module_rule(Counts)
    def price_counts(call):
        events = call.declare(call.output, call.output, "graded")
        return Cost({"add": events.pos}, dense={})

    model = nn.Sequential(Counts(), nn.Linear(4, 3, bias=False))
    first, second = count(model, torch.tensor([[3.0, 0, 2, -1]])).rows()
    assert first.ops == OpCounts(add=5)
    # 2 events or 5 units, of 3 outputs
    assert second.ops == OpCounts(dense_mac=12, ac_add=15, sop_unit=15, sop_graded=6)
    assert (second.readout, second.detection) == ("graded", "declared")


def test_a_neuron_may_say_itself_that_its_spikes_are_graded(fire):
    neuron = fire()
    neuron.readout = "graded"
    model = nn.Sequential(neuron, nn.Linear(4, 3, bias=False))
    total = count(model, torch.tensor([[3.0, 0, 2, -1]])).total()
    assert total == OpCounts(
        dense_mac=12, ac_add=15, ac_sub=3, sop_unit=18, sop_graded=9
    )


def test_a_module_rule_sees_the_spikes_and_the_weights_of_its_module(fire):
    class Fused(nn.Linear):
        pass

    @register_module_rule(Fused)
    def price_fused(call):
        train = call.spikes(call.args[0])
        assert call.is_weight(call.module.weight.t())
        assert not call.is_weight(call.args[0])
        return Cost({"ac_add": train.events.pos * 2, "ac_sub": train.events.neg * 2})

    model = nn.Sequential(fire(), Fused(3, 2))
    (row,) = count(model, torch.tensor([[1.0, 1, -1]])).rows()
    assert row.ops == OpCounts(ac_add=4, ac_sub=2)
    assert (row.detection, row.time_steps) == ("declared", 1)


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


def test_every_file_of_rules_has_filled_the_registries():
    folder = Path(registry.__file__).parent
    names = {file.stem for file in folder.glob("*.py")}
    # the registry itself, and what rules share
    assert names - {"__init__", "registry", "traffic"} == set(rules.__all__)
