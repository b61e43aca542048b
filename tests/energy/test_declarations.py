"""A declaration follows what moves spikes and is dropped by what changes them."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.energy.spike_trains import SpikeTrain, SpikeTrains

#: Two +1 and one -1 among six.
SPIKES = [[1.0, 0, 0], [0, -1, 1]]


def project(x):
    """Two outputs of every feature."""
    return F.linear(x, torch.ones(2, x.shape[-1]))


@pytest.mark.parametrize(
    ("move", "add", "sub"),
    [
        (lambda x: x.view(3, 2), 4, 2),
        (lambda x: x.reshape(-1), 4, 2),
        (lambda x: x.t(), 4, 2),
        (lambda x: x.transpose(0, 1).contiguous(), 4, 2),
        (lambda x: x.permute(1, 0), 4, 2),
        (lambda x: x.unsqueeze(0).squeeze(0), 4, 2),
        (lambda x: x.flip(0).roll(1, 0), 4, 2),
        (lambda x: x.double().float(), 4, 2),
        (lambda x: x.clone().detach(), 4, 2),
        (lambda x: F.pad(x, (1, 2)), 4, 2),
        (lambda x: torch.cat([x, x], dim=-1), 8, 4),
        (lambda x: torch.stack([x, x]), 8, 4),
        (lambda x: x.repeat(1, 3), 12, 6),
        (lambda x: x.expand(5, 2, 3), 20, 10),
        (lambda x: x[1:], 2, 2),
        (lambda x: x[0], 2, 0),
        (lambda x: x.unbind(0)[1], 2, 2),
        (lambda x: x.split(1)[1], 2, 2),
        (lambda x: x.chunk(2)[0], 2, 0),
        (lambda x: x.index_select(0, torch.tensor([1, 1])), 4, 4),
        (lambda x: x.unfold(1, 2, 1), 4, 4),
    ],
)
@pytest.mark.parametrize("planes", [1, 2])
def test_spikes_keep_their_signs_under_moves(
    fire, decode, call, count_model, move, add, sub, planes
):
    spikes = torch.tensor(SPIKES)
    model = nn.Sequential(
        fire() if planes == 1 else decode("sum"), call(lambda x: project(move(x)))
    )
    x = spikes if planes == 1 else torch.stack([spikes, -spikes])
    total = count_model(model, x).total()
    if planes == 2:  # the second plane has the opposite signs
        add = sub = add + sub
    assert (total.ac_add, total.ac_sub, total.mac) == (add, sub, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 0.0,
        lambda x: x * 1.0,
        lambda x: 2 * x,
        lambda x: x.relu(),
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: torch.cat([x, torch.zeros_like(x)]),
        lambda x: x.add_(0.0),
        lambda x: x.clone().view(-1).mul_(1.0).view(2, 3),
        lambda x: F.avg_pool2d(x[None], (1, 1))[0],
        lambda x: torch.where(x > 0, x, x),
    ],
)
def test_spikes_are_spikes_no_more_once_something_computes_with_them(
    fire, call, count_model, change
):
    model = nn.Sequential(fire(), call(lambda x: project(change(x))))
    total = count_model(model, torch.tensor(SPIKES)).total()
    assert total.sop_unit == 0
    assert total.mac == total.dense_mac > 0


def test_writing_to_a_view_makes_the_whole_memory_ordinary(fire, call, count_model):
    def write_elsewhere(x):
        x[0].add_(0.5)
        return project(x)

    model = nn.Sequential(fire(), call(write_elsewhere))
    total = count_model(model, torch.tensor(SPIKES)).total()
    assert total == OpCounts(dense_mac=12, mac=12, add=3)


def test_writing_elsewhere_leaves_a_declaration_alone(fire, call, count_model):
    def write_elsewhere(x):
        torch.zeros(3).add_(1.0)
        return project(x)

    model = nn.Sequential(fire(), call(write_elsewhere))
    assert count_model(model, torch.tensor(SPIKES)).total().mac == 0


def test_writing_into_spikes_inside_a_module_with_a_rule_is_noticed(fire):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.fire, self.norm = fire(), nn.RMSNorm(3)
            self.norm.register_forward_pre_hook(spoil)

        def forward(self, x):
            spikes = self.fire(x)
            self.norm(spikes)
            return project(spikes)

    def spoil(module, args):
        args[0].add_(0.5)

    model = InPlace()
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(torch.tensor([[1.0, 0, 0]]))
    # 1 row · 3 · 2 products, and nothing accumulated
    assert (counter.total().mac, counter.total().sop_unit) == (6, 0)


def test_a_maximum_of_decoded_values_carries_no_planes(decode, call, count_model):
    model = nn.Sequential(
        decode("sum"), call(lambda x: project(F.max_pool2d(x[None], 1)[0]))
    )
    total = count_model(model, torch.tensor([SPIKES, SPIKES])).total()
    assert (total.sop_unit, total.mac) == (0, 12)


def test_planes_of_different_coders_do_not_join(fire, decode, call, count_model):
    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = fire(), decode("sum")

        def forward(self, x, planes):
            return project(torch.cat([self.one(x), self.two(planes)]))

    x = torch.tensor(SPIKES)
    total = count_model(Join(), x, torch.stack([x, x])).total()
    assert (total.sop_unit, total.mac) == (0, 24)


def test_a_residual_of_spikes_is_an_ordinary_addition(fire, call, count_model):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fire = fire()

        def forward(self, x):
            return x + self.fire(x)

    assert count_model(Residual(), torch.tensor(SPIKES)).total() == OpCounts(add=6)


def test_a_declaration_does_not_keep_its_tensor_alive():
    trains = SpikeTrains()
    tensor = torch.ones(3)
    trains.declare(tensor, SpikeTrain([tensor.detach()], "unit"))
    assert trains.of(tensor) is not None
    assert trains.of("no tensor") is None
    del tensor
    gc.collect()
    assert len(trains._trains) == 0
