"""The counter as a context manager: what it sees, what it leaves alone."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mar_snn.energy import OpCounts, SpikeOpCounter
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


def test_operations_without_a_rule_are_listed_with_their_calls(call):
    model = call(lambda x: x.softmax(-1) + x.softmax(0))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(X)
    run = counter.run()
    assert run.uncounted == {"aten._softmax.default": 2}
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
