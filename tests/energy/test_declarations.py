"""A declaration follows what moves spikes and is dropped by what changes them."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.energy import OpCounts, SpikeOpCounter
from mar_snn.energy.declarations import SpikeTrains
from mar_snn.energy.spike_trains import SpikeTrain
from mar_snn.neurons.spikes import declare_spikes, is_listening

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


def test_a_copy_keeps_its_spikes_when_the_original_is_written_to(
    fire, call, count_model
):
    def write_the_original(x):
        joined, cast, half = torch.cat([x, x]), x.double(), x[:1].clone()
        x.add_(0.5)
        return (
            project(joined),
            F.linear(cast, torch.ones(2, 3).double()),
            project(half),
            project(x),
        )

    model = nn.Sequential(fire(), call(write_the_original))
    total = count_model(model, torch.tensor(SPIKES)).total()
    # two outputs of 4 + 2 of the joined rows, of 2 + 1, of the first row's one; then
    # 6 additions, and 2 · 3 · 2 products of what was written to
    assert (total.ac_add, total.ac_sub) == (8 + 4 + 2, 4 + 2)
    assert (total.mac, total.add) == (12, 6)


def test_planes_that_a_neuron_keeps_may_be_written_to_later(fire, call, count_model):
    class Reuses(nn.Module):
        """Hands on the sum of planes that lie in memory which it uses again."""

        readout = "sum"

        def __init__(self):
            super().__init__()
            self.buffer = torch.zeros(2, 1, 3)

        def forward(self, x):
            self.buffer[:] = x
            value = self.buffer.sum(0)
            if is_listening():
                declare_spikes(self, self.buffer, value)
            return value

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.coder = Reuses()

        def forward(self, x):
            value = self.coder(x).view(3)
            self.coder.buffer.zero_()
            return project(value), project(value.unsqueeze(0))

    planes = torch.tensor([[[1.0, 0, -1]], [[1.0, 1, 0]]])
    total = count_model(Model(), planes).total()
    assert (total.ac_add, total.ac_sub) == (3 * 4, 4)


def test_an_index_may_be_written_to_after_it_was_used(fire, call, count_model):
    def select(x):
        index = torch.tensor([0])
        picked = x.index_select(0, index)
        index.fill_(1)
        return project(picked)

    model = nn.Sequential(fire(), call(select))
    total = count_model(model, torch.tensor(SPIKES)).total()
    # the first row has one +1
    assert (total.ac_add, total.ac_sub) == (2, 0)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize(
    ("pool", "shape"),
    [(F.max_pool2d, (1, 1, 2, 4)), (F.max_pool3d, (1, 1, 2, 4, 1))],
)
def test_the_maximum_of_spikes_is_a_spike_scaled_or_not(
    call, count_model, scale, pool, shape
):
    class Scaled(nn.Module):
        def forward(self, x):
            value = scale * x
            if is_listening():
                declare_spikes(self, x.unsqueeze(0), value)
            return value

    # 2 x 2 windows: the first holds a +1, the second nothing but -1
    x = torch.tensor([[1.0, 0, -1, -1], [-1, 0, -1, -1]]).view(shape)
    size = (2, 2) if len(shape) == 4 else (2, 2, 1)
    model = nn.Sequential(Scaled(), call(lambda x: project(pool(x, size).flatten(1))))
    total = count_model(model, x).total()
    assert (total.ac_add, total.ac_sub) == (2, 2)


def test_the_maximum_of_integers_is_an_integer(fire, call, count_model):
    neuron = fire()
    neuron.readout = "graded"
    pooled = call(lambda x: project(F.max_pool2d(x, 2).flatten(1)))
    x = torch.tensor([[[[3.0, 0, 1, 2], [2, 1, 0, 0]]]])
    total = count_model(nn.Sequential(neuron, pooled), x).total()
    # 3 and 2, two outputs each
    assert (total.ac_add, total.sop_graded) == (10, 4)


def test_nothing_is_moved_before_somebody_asks():
    trains, spikes = SpikeTrains(), torch.tensor(SPIKES)
    calls = []

    class Flip:
        overloadpacket = torch.ops.aten.flip
        _schema = torch.ops.aten.flip.default._schema

        def __call__(self, *args):
            calls.append(args)
            return torch.ops.aten.flip.default(*args)

    func = Flip()
    moved = func(spikes, [0])
    calls.clear()
    trains.declare(spikes, SpikeTrain([spikes.detach()], "unit"))
    trains.follow(func, (spikes, [0]), {}, moved)
    train = trains.of(moved)
    assert (train.steps, train.ndim, calls) == (1, 2, [])
    assert train.counts(0).pos.tolist() == [1, 1]
    assert train.planes[0] is train.planes[0]
    assert len(calls) == 1


@pytest.mark.parametrize("lead", [(), (2,), (3, 2)])
def test_what_is_counted_for_one_view_is_not_counted_again(lead):
    # [.., 6] -> [N, 6]: the last axis is the same, so its counts are those of before
    spikes = torch.tensor([1.0, -1, 0, 0, 1, 0]).expand(*lead, 6).contiguous()
    trains = SpikeTrains()
    train = SpikeTrain([spikes], "unit")
    by_feature = train.counts(-1)
    total = train.events
    trains.declare(spikes, train)
    view = spikes.view(-1, 6)
    trains.follow(torch.ops.aten.view.default, (spikes, [-1, 6]), {}, view)
    moved = trains.of(view)
    assert moved.counts(-1) is by_feature
    assert moved.events is total
    # but not where the last axis changes
    other = spikes.view(-1, 3)
    trains.follow(torch.ops.aten.view.default, (spikes, [-1, 3]), {}, other)
    assert trains.of(other).counts(-1).pos.shape == (3,)


def test_counts_by_position_are_sums_of_finer_ones():
    spikes = torch.tensor([[[1.0, -1], [0, 1]], [[1, 0], [0, -1]]])
    train = SpikeTrain([spikes, spikes.abs()], "sum")
    fine = train.counts(0, 2)
    # planes together: +1 at [0, 0, 0] twice, [0, 0, 1] once, [0, 1, 1] twice, ...
    assert fine.pos.tolist() == [[2, 3], [2, 1]]
    assert fine.neg.tolist() == [[0, 1], [0, 1]]
    assert train.counts(2).pos.tolist() == [4, 4]
    assert train.counts(-3).neg.tolist() == [1, 1]
    assert (int(train.events.pos), int(train.events.neg)) == (8, 2)
    assert train.counts(0, 1, 2).pos.tolist() == [[[2, 1], [0, 2]], [[2, 0], [0, 1]]]
    assert train.fired(1).tolist() == [6, 4]
    assert int(train.touched(1, 2)) == 3
    assert train.touched(0) is train.touched(-3)
