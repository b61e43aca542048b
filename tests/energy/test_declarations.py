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
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: torch.cat([x, torch.rand_like(x)]),
        lambda x: torch.cat([x, torch.ones_like(x)]),
        lambda x: x.index_put((torch.tensor([0]),), torch.zeros(3), accumulate=True),
        lambda x: x * torch.rand_like(x),
        lambda x: x * torch.tensor(1.0),
        lambda x: x.view(torch.int32).float(),
        lambda x: x.clamp(min=0.5),
        lambda x: torch.zeros(3, 3).index_put_((torch.arange(2),), x.add(0.0)),
        lambda x: x.add_(0.0),
        lambda x: x.clone().view(-1).mul_(1.0).view(2, 3),
        lambda x: F.avg_pool2d(x[None], (1, 1))[0],
        lambda x: torch.where(x > 0, x, 0.5),
        lambda x: torch.where(x > 0, x, torch.nan),
    ],
)
def test_spikes_are_spikes_no_more_once_something_computes_with_them(
    fire, call, count_model, change
):
    model = nn.Sequential(fire(), call(lambda x: project(change(x))))
    total = count_model(model, torch.tensor(SPIKES)).total()
    assert total.sop_unit == 0
    assert total.mac == total.dense_mac > 0


def _in_place(write):
    """A move of a copy: write(copy)."""

    def move(x):
        copy = x.clone()
        write(copy)
        return copy

    return move


def _put_in(parts, x):
    """Rows of x, written one by one into new memory."""
    for part, row in zip(parts, x, strict=False):
        part.copy_(row)


def _filled(x, new):
    memory = new(4, 3)
    _put_in(memory, x)
    memory[2:] = 0
    return memory


INDEX = torch.tensor([[1, 0, 0], [0, 1, 1]])
MASK = torch.tensor([True, False, True])

#: What only moves, repeats or drops elements, or sets some to zero.
MOVES = {
    "an index": lambda x: x[:, [1, 0]],
    "two indices": lambda x: x[[0, 1, 1], [0, 2, 1]],
    "a mask as an index": lambda x: x[:, MASK],
    "gather": lambda x: x.gather(0, INDEX),
    "take": lambda x: x.take(INDEX),
    "take_along_dim": lambda x: x.take_along_dim(INDEX, 1),
    "masked_select": lambda x: x.masked_select(MASK),
    "embedding": lambda x: F.embedding(torch.tensor([1, 1, 0]), x),
    "roll": lambda x: x.roll(1, 1),
    "rot90": lambda x: x.rot90(),
    "movedim": lambda x: x.movedim(0, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(3, 0),
    "tile": lambda x: x.tile(2, 2),
    "scatter": lambda x: torch.zeros(2, 3).scatter(0, INDEX, x),
    "a scattered zero": lambda x: x.scatter(0, INDEX[:1], 0.0),
    "index_put": lambda x: x.index_put((torch.tensor([1]),), x[:1]),
    "index_copy": lambda x: x.index_copy(0, torch.tensor([1]), x[:1]),
    "index_fill": lambda x: x.index_fill(1, torch.tensor([2]), 0),
    "put": lambda x: x.put(torch.tensor([5]), torch.zeros(1)),
    "masked_fill": lambda x: x.masked_fill(MASK, 0),
    "masked_scatter": lambda x: x.masked_scatter(MASK, torch.zeros(6)),
    "where": lambda x: torch.where(MASK, x, 0.0),
    "where of both": lambda x: torch.where(MASK, x, x.flip(1)),
    "where of zeros": lambda x: torch.where(MASK, torch.zeros_like(x), x),
    "select_scatter": lambda x: x.select_scatter(torch.zeros(3), 0, 1),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :1], 1, 2),
    "diagonal_scatter": lambda x: x.diagonal_scatter(torch.zeros(2)),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "a padded concatenation": lambda x: torch.cat([x, x.new_zeros(2, 3)]),
    "a stack with zeros": lambda x: torch.stack([torch.full_like(x, 0), x]),
    "hstack": lambda x: torch.hstack([x, x]),
    "block_diag": lambda x: torch.block_diag(x, x),
    "zero padding": lambda x: nn.ZeroPad2d(1)(x[None])[0],
    "reflection": lambda x: F.pad(x, (2, 2), mode="reflect"),
    "replication": lambda x: F.pad(x, (1, 1), mode="replicate"),
    "circular padding": lambda x: F.pad(x, (1, 1), mode="circular"),
    "diagonal": lambda x: x.diagonal(),
    "diag_embed": lambda x: x.diag_embed(),
    "as_strided": lambda x: x.as_strided((2, 3), (1, 2)),
    "windows": lambda x: F.unfold(x[None, None], 2).mT[0],
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.view(1, 1, 2, 3).tile(1, 4, 1, 1), 2)[
        0, 0
    ],
    "channel_shuffle": lambda x: F.channel_shuffle(x.view(1, 6, 1, 1), 2).flatten(),
    "a nearest neighbour": lambda x: F.interpolate(x[None], scale_factor=2)[0],
    "max_unpool": lambda x: F.max_unpool2d(x[None], torch.arange(6).view(1, 2, 3), 1)[
        0
    ],
    "channels last": lambda x: x[None, None].to(memory_format=torch.channels_last)[
        0, 0
    ],
    "a mask of numbers": lambda x: x * MASK.to(x.dtype),
    "a mask": lambda x: MASK * x,
    "a triangle of ones": lambda x: x * torch.ones(2, 3).tril(),
    "dropout while evaluating": lambda x: F.dropout(x, training=False),
    "a sign": lambda x: -x,
    "a row set to zero": _in_place(lambda x: x[0].zero_()),
    "a row set to 0": _in_place(lambda x: x.__setitem__(0, 0)),
    "masked elements set to 0": _in_place(
        lambda x: x.__setitem__((slice(None), MASK), 0)
    ),
    "masked_fill_": _in_place(lambda x: x.t().masked_fill_(MASK[:, None], 0)),
    "a row over another": _in_place(lambda x: x[0].copy_(x[1])),
    "mul_ by a mask": _in_place(lambda x: x[1].mul_(MASK)),
    "tril_": _in_place(lambda x: x.tril_()),
    "neg_ of a view": _in_place(lambda x: x.view(-1)[1:5].neg_()),
    "a shape in place": lambda x: x.clone().unsqueeze_(0).transpose_(1, 2),
    "rows written into zeros": lambda x: _filled(x, torch.zeros),
    "rows written into new memory": lambda x: _filled(x, torch.empty),
    "a result in given memory": lambda x: torch.cat([x, x], out=torch.empty(0)),
    "a result in a part": _in_place(
        lambda x: torch.index_select(x.clone(), 0, torch.tensor([1]), out=x[:1])
    ),
}
#: The same, where one plane holds the value.
CHOICES = {
    "relu": lambda x: x.relu(),
    "relu_": _in_place(lambda x: x.relu_()),
    "abs": lambda x: x.abs(),
    "clamp": lambda x: x.clamp(min=0),
    "sign": lambda x: x.sign(),
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(2).values,
    "amax": lambda x: x.amax(0),
    "max": lambda x: x.max(1).values,
    "median": lambda x: x.flatten().median(),
    "maximum": lambda x: torch.maximum(x, x.flip(1)),
    "pooling": lambda x: F.max_pool1d(x, 2, 1),
    "adaptive pooling": lambda x: F.adaptive_max_pool1d(x, 2),
    "spikes times spikes": lambda x: x * x.flip(1),
    "a cast": lambda x: x.bool().float(),
}


class Scaled(nn.Module):
    """Hands on a quarter of the sum of its planes, so that values are no spikes."""

    readout = "sum"

    def forward(self, planes):
        value = planes.sum(0) / 4
        if is_listening():
            declare_spikes(self, planes, value)
        return value


def _accumulations(moved):
    """Two outputs of every +1, and of every -1."""
    return [2 * int((moved > 0).sum()), 2 * int((moved < 0).sum())]


def _count_scaled(call, move, planes, mode):
    model = nn.Sequential(Scaled(), call(lambda x: project(move(x).flatten())))
    with mode(), SpikeOpCounter(model) as counter:
        model(planes)
    return counter.total()


def test_what_only_moves_or_chooses_elements_leaves_spikes_spikes(call):
    spikes = torch.tensor(SPIKES)
    for what, move in (MOVES | CHOICES).items():
        total = _count_scaled(call, move, spikes[None], torch.enable_grad)
        found = [total.ac_add, total.ac_sub, total.mac]
        assert found == [*_accumulations(move(spikes)), 0], what


def test_what_only_moves_elements_moves_every_plane(call):
    planes = torch.tensor(SPIKES), torch.tensor([[0.0, -1, -1], [1, 0, 1]])
    for what, move in MOVES.items():
        first, second = (_accumulations(move(plane)) for plane in planes)
        total = _count_scaled(call, move, torch.stack(planes), torch.inference_mode)
        found = [total.ac_add, total.ac_sub, total.mac]
        assert found == [first[0] + second[0], first[1] + second[1], 0], what


def test_a_choice_by_a_decoded_value_is_one_no_plane_made(call):
    planes = torch.tensor([SPIKES, SPIKES])
    for what, choose in CHOICES.items():
        total = _count_scaled(call, choose, planes, torch.no_grad)
        assert total.mac == total.dense_mac > 0 == total.sop_unit, what


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
