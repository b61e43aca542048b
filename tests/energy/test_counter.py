"""The counter as a context manager: what it sees, what it leaves alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.neurons.atmn import ATMNNode
from mar_snn.neurons.coder import ATMNCoder
from mar_snn.neurons.spikes import is_listening


class Block(nn.Module):
    """A small network with a shared layer."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.shared(self.shared(x)) + x)


X = torch.linspace(-1, 1, 12).view(3, 4)


def assert_nothing_is_left_behind():
    assert not _get_current_dispatch_mode_stack()
    assert not is_listening()
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_each_module_has_one_row_however_often_it_is_called(count_model):
    counter = count_model(Block(), X)
    by_name = {row.name: row for row in counter.rows()}
    assert set(by_name) == {"", "shared", "last"}
    assert (by_name[""].group, by_name[""].type) == ("other", "Block")
    # the residual: 3 · 4
    assert by_name[""].ops == OpCounts(add=12)
    # twice 3 · 4 · 4 and 3 · 4 biases
    assert by_name["shared"].calls == 2
    assert by_name["shared"].ops == OpCounts(dense_mac=96, mac=96, bias_add=24)
    assert by_name["last"].ops == OpCounts(dense_mac=24, mac=24, bias_add=6)
    assert counter.total() == OpCounts(dense_mac=120, mac=120, bias_add=30, add=12)


def test_a_module_under_two_names_is_one_row_under_the_first(count_model):
    one = nn.Linear(4, 4)
    (row,) = count_model(nn.Sequential(one, one), X).rows()
    assert (row.name, row.calls, row.ops.mac) == ("0", 2, 96)


def test_counting_leaves_outputs_and_gradients_bitwise_alone():
    model = Block()
    model(X).sum().backward()
    plain = model(X), model.last.weight.grad.clone()
    model.zero_grad()
    with SpikeOpCounter(model):
        out = model(X)
        out.sum().backward()
    assert torch.equal(out, plain[0])
    assert torch.equal(model.last.weight.grad, plain[1])


def test_backward_is_not_counted():
    model = Block()
    with SpikeOpCounter(model) as counter:
        out = model(X)
        forward = counter.total()
        out.sum().backward()
    assert counter.total() == forward


def test_a_checkpointed_block_that_runs_again_is_counted_once():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=False)

    model = Checkpointed()
    with SpikeOpCounter(model) as counter:
        model(X).sum().backward()
    assert counter.total().mac == 120
    assert {row.calls for row in counter.rows()} == {1, 2}


def test_several_blocks_add_up():
    model = Block()
    counter = SpikeOpCounter(model)
    for _ in range(2):
        with torch.no_grad(), counter:
            model(X)
    with torch.inference_mode(), counter:
        model(X)
    assert counter.total() == OpCounts(dense_mac=360, mac=360, bias_add=90, add=36)
    assert_nothing_is_left_behind()


def test_firing_of_calls_with_more_or_fewer_steps_adds_up_by_step(decode):
    model = decode("sum")
    counter = SpikeOpCounter(model)
    for steps in (1, 3, 2):
        with torch.no_grad(), counter:
            model(-torch.ones(steps, 5))
    (firing,) = counter.run().firing.values()
    assert firing.neg == firing.elements == (15, 10, 5)
    assert firing.pos == (0, 0, 0)


def test_a_counter_cannot_run_inside_itself():
    counter = SpikeOpCounter(Block())
    with counter, pytest.raises(RuntimeError, match=r"already: leave its block first"):
        counter.__enter__()
    assert_nothing_is_left_behind()
    counter.__exit__(None, None, None)


def test_an_exception_restores_everything_and_counting_goes_on_later():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.RMSNorm(4)
            self.linear = nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(self.norm(x))

    model = Fails()
    counter = SpikeOpCounter(model)
    with pytest.raises(RuntimeError), counter:
        model(torch.rand(3, 5))
    assert_nothing_is_left_behind()
    assert counter.total() == OpCounts()
    with counter:
        with pytest.raises(RuntimeError):
            model(torch.rand(3, 5))
        model(X)
    # 3 · 4 · 2 products after the failed call
    assert counter.total().mac == 24


def test_what_runs_outside_the_model_is_not_counted():
    model, other = Block(), nn.Linear(4, 4)
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        other(X)
        _ = X @ X.T
    assert counter.total() == OpCounts()
    assert counter.rows() == []


def test_a_neuron_outside_the_model_is_not_listened_to(fire):
    model, other = Block(), fire()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(other(torch.ones(3, 4)))
    assert counter.run().firing == {}
    assert counter.total().sop_unit == 0


def test_a_module_that_is_made_on_the_way_counts_where_it_is_used(call, count_model):
    model = nn.Sequential(call(lambda x: nn.ReLU()(x)))
    (row,) = count_model(model, X).rows()
    assert (row.name, row.ops) == ("0", OpCounts(cmp=12))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operations_without_a_rule_are_listed_with_their_calls(call, unpriced, mode):
    model = call(lambda x: unpriced(x) + unpriced(x))
    with mode(), SpikeOpCounter(model) as counter:
        model(X)
    run = counter.run()
    assert run.uncounted == {"mar_snn_tests.twist.default": 2}
    assert run.calls == 3
    assert counter.total() == OpCounts(add=12)


def test_another_dispatch_mode_sees_the_same_as_without_the_counter():
    model = Block()
    totals = []
    for counting in (False, True):
        with torch.no_grad(), FlopCounterMode(display=False) as flops:
            if counting:
                with SpikeOpCounter(model):
                    model(X)
            else:
                model(X)
        totals.append(flops.get_total_flops())
    # two operations a MAC
    assert totals == [240, 240]


def test_two_counters_agree(count_model):
    model = Block()
    outer, inner = SpikeOpCounter(model), SpikeOpCounter(model)
    with torch.no_grad(), outer, inner:
        model(X)
    assert outer.total() == inner.total() == count_model(model, X).total()


def test_a_module_is_counted_by_keyword_as_by_position(count_model):
    model = Block()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(x=X)
    assert counter.total() == count_model(model, X).total()


def test_counts_follow_autocast():
    model = Block()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = model(X)
        with SpikeOpCounter(model) as counter:
            counted = model(X)
    assert torch.equal(plain, counted)
    assert counter.total().mac == 120


# ---- functional calls, dtypes, devices


def test_a_functional_call_counts_in_the_module_whose_forward_makes_it(count_model):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.owner = nn.Linear(4, 3)

        def forward(self, x):
            return F.linear(x, self.owner.weight, self.owner.bias)

    model = nn.Sequential(Functional())
    (row,) = count_model(model, X).rows()
    assert (row.name, row.type) == ("0", "Functional")
    assert row.ops == OpCounts(dense_mac=36, mac=36, bias_add=9)
    # the weights of another module are weights all the same: 12 and 3 of 4 bytes
    assert row.moved.weight_dense == 60


def test_parameters_that_are_passed_in_are_the_weights():
    model = nn.Linear(4, 3)
    swapped = {name: p.detach().double() for name, p in model.named_parameters()}
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        torch.func.functional_call(model, swapped, (X.double(),))
    (row,) = counter.rows()
    assert (row.ops.mac, row.moved.weight_dense) == (36, 120)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_products_are_counted_exactly_in_any_dtype(fire, dtype):
    # 257 · 300 spikes of 301 outputs: 23,207,100 > 2 ** 24
    model = nn.Sequential(fire(), nn.Linear(300, 301, bias=False, dtype=dtype))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(torch.ones(257, 300, dtype=dtype))
    assert counter.total().ac_add == 257 * 300 * 301


def test_a_model_on_meta_is_counted_by_its_shapes():
    model = nn.Linear(4, 3, device="meta")
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(X.to("meta"))
    assert counter.total() == OpCounts(dense_mac=36, mac=36, bias_add=9)


WAITS = ("item", "tolist", "numpy", "__int__", "__bool__", "__float__", "__index__")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("readout", ["sum", "geometric"])
def test_nothing_is_asked_of_a_tensor_before_the_report(monkeypatch, mode, readout):
    def refuse(*_):
        raise AssertionError("waits for the device")

    model = nn.Sequential(
        ATMNCoder(4, time_steps=3, readout=readout),
        nn.Linear(4, 6),
        ATMNNode(),
        nn.Linear(6, 2),
        nn.LayerNorm(2),
    )
    counter = SpikeOpCounter(model)
    with monkeypatch.context() as patched, mode():
        for name in WAITS:
            patched.setattr(torch.Tensor, name, refuse)
        with pytest.raises(AssertionError, match="waits for the device"):
            bool(X.sum())
        with counter, counter.phase("all"):
            model(10 * X)
            model[2].reset()
            model(X)
    assert counter.total().sop_unit > 0
    assert len(counter.run().batches) == 2
    assert counter.rows()[1].columns_touched > 0


def test_reading_in_the_middle_of_a_pass_adds_nothing(fire):
    totals = []

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(fire(), nn.Linear(2, 2, bias=False))
            self.second = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            x = self.first(x)
            totals.append((counter.total(), counter.run().batches))
            return self.second(x)

    model = Reads()
    counter = SpikeOpCounter(model)
    with torch.no_grad(), counter:
        model(torch.tensor([[1.0, -1]]))
    first = OpCounts(dense_mac=4, ac_add=2, ac_sub=2, sop_unit=4)
    assert totals == [(first, ())]
    both = OpCounts(dense_mac=8, mac=4, ac_add=2, ac_sub=2, sop_unit=4)
    (batch,) = counter.run().batches
    assert counter.total() == batch.ops == both


def test_leaving_the_block_in_the_middle_of_a_pass_keeps_what_ran(fire):
    class Leaves(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(fire(), nn.Linear(2, 2, bias=False))
            self.second = nn.Linear(2, 2, bias=False)

        def forward(self, x):
            x = self.first(x)
            counter.__exit__(None, None, None)
            return self.second(x)

    model = Leaves()
    counter = SpikeOpCounter(model)
    with torch.no_grad(), counter:
        model(torch.tensor([[1.0, -1]]))
    assert counter.total() == OpCounts(dense_mac=4, ac_add=2, ac_sub=2, sop_unit=4)
    assert counter.run().batches == ()
    assert_nothing_is_left_behind()
