"""Kernels that torch does not see are found by the memory that they fill."""

import pytest
import torch
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter, register_module_rule
from mar_snn.energy.counts import Cost
from mar_snn.energy.rules import registry


def doubled(x):
    """Twice x, by a kernel that is no operation of torch: numpy's."""
    # the tests poison torch.empty
    out = x.new_empty(x.shape)
    out.detach().numpy()[...] = 2 * x.detach().numpy()
    return out


class Kernel(nn.Module):
    def forward(self, x):
        return doubled(x)


def counted(model, *inputs):
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(*inputs)
    return counter


@pytest.mark.parametrize("after", [nn.Linear(3, 2), nn.ReLU(), nn.Flatten(0)])
def test_a_kernel_is_listed_with_the_module_that_launched_it(after):
    report = counted(nn.Sequential(Kernel(), after), torch.rand(2, 3)).report(per="run")
    coverage = report.methodology["coverage"]
    assert coverage["uncounted"] == {"a kernel unknown to torch, in Kernel": 1}
    # it is one of the calls
    assert coverage["covered"] == 1 - 1 / coverage["calls"]
    with pytest.raises(ValueError, match="a kernel unknown to torch, in Kernel"):
        report.assert_complete()


def test_each_launch_is_listed():
    counter = counted(nn.Sequential(Kernel(), nn.ReLU(), Kernel(), nn.ReLU()),
                      torch.rand(2, 3))  # fmt: skip
    assert counter.run().uncounted == {"a kernel unknown to torch, in Kernel": 2}


def test_a_result_is_read_through_its_views_and_listed_once(call):
    def twice(x):
        out = doubled(x)
        rows = out.view(3, 2).t()[:1]
        return rows + 1, rows * 2, out.sum()

    counter = counted(call(twice), torch.rand(2, 3))
    assert counter.run().uncounted == {"a kernel unknown to torch, in Call": 1}


@pytest.mark.parametrize(
    "fill",
    [
        lambda out, x: out.copy_(x),
        lambda out, x: out.zero_(),
        lambda out, x: out.normal_(),
        lambda out, x: out[0].copy_(x[0]),
        lambda out, x: torch.mul(x, 2, out=out),
        lambda out, x: torch._foreach_copy_([out], [x]),
        lambda out, x: out.__setitem__(slice(None), x),
    ],
)
def test_memory_that_an_operation_fills_is_nothing_unseen(call, fill):
    def filled(x):
        out = x.new_empty(x.shape)
        fill(out, x)
        return out + 1

    counter = counted(call(filled), torch.rand(2, 3))
    assert not [name for name in counter.run().uncounted if "unknown" in name]


def test_its_shape_may_be_asked_and_nothing_may_be_joined_to_something(call):
    def shapes(x):
        blank = x.new_empty(4, 4)
        zeros = torch.zeros_like(blank) + blank.new_ones(4)
        nothing = x.new_empty(0, 3)
        return torch.cat([nothing, x]).sum() + zeros.sum() + blank.dim()

    assert counted(call(shapes), torch.rand(2, 3)).run().uncounted == {}


def test_memory_that_is_given_away_again_is_not_taken_for_the_old(call):
    def again(x):
        for _ in range(50):
            x.new_empty(x.shape)  # freed at once
            x = (x + 1).clone()
        return x

    assert counted(call(again), torch.rand(64, 64)).run().uncounted == {}


def test_a_kernel_is_listed_where_only_a_module_with_a_rule_reads_it():
    counter = counted(nn.Sequential(Kernel(), nn.RMSNorm(3)), torch.rand(2, 3))
    assert counter.run().uncounted == {"a kernel unknown to torch, in Kernel": 1}


def test_what_a_priced_module_fills_is_not_listed(monkeypatch):
    monkeypatch.setattr(registry, "_module_rules", dict(registry._module_rules))
    register_module_rule(Kernel)(lambda call: Cost({"mul": call.output.numel()}))
    counter = counted(nn.Sequential(Kernel(), nn.ReLU()), torch.rand(2, 3))
    assert counter.run().uncounted == {}
    assert counter.total() == OpCounts(mul=6, cmp=6)


@pytest.mark.parametrize("wrap", [tuple, list, lambda out: {"out": out[0]}])
def test_the_result_of_the_model_itself_may_be_a_kernel_s(call, wrap):
    counter = counted(call(lambda x: wrap((doubled(x), None))), torch.rand(2, 3))
    assert counter.run().uncounted == {"a kernel unknown to torch, in Call": 1}
