"""Which weights are touched: the union over steps, samples and positions; by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mar_snn.energy import SpikeOpCounter
from mar_snn.energy.weights import Weights

#: two tokens; of four features 0 and 2 fire, 0 twice and with both signs
SPIKES = torch.tensor([[1.0, 0, -1, 0], [-1, 0, 0, 0]])


def columns(counter, name="1"):
    """(touched, all) of one row."""
    (row,) = (row for row in counter.rows() if row.name == name)
    return row.columns_touched, row.columns


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(2, 4), (1, 2, 4), (2, 1, 1, 4)])
def test_a_column_is_touched_once_however_often_it_fires(
    fire, count_model, bias, shape
):
    model = nn.Sequential(fire(), nn.Linear(4, 3, bias=bias))
    counter = count_model(model, SPIKES.view(shape))
    assert columns(counter) == (2, 4)


def test_the_weights_of_columns_that_are_touched_are_a_part_of_all(fire, count_model):
    model = nn.Sequential(fire(), nn.Linear(4, 3, bias=False))
    row = count_model(model, SPIKES).rows()[-1]
    # 2 of 4 columns of 3 weights of 4 bytes; the dense twin reads all
    assert (row.moved.weight_touched, row.moved.weight_dense) == (24, 48)
    assert row.dense_moved.weight_touched == row.dense_moved.weight_dense == 48


@pytest.mark.parametrize("readout", ["sum", "geometric"])
def test_the_union_runs_over_the_planes(decode, count_model, readout):
    # feature 0 fires in plane 0, feature 3 in plane 2; together two of four
    planes = torch.zeros(3, 2, 4)
    planes[0, 0, 0] = planes[2, 1, 3] = 1
    model = nn.Sequential(decode(readout), nn.Linear(4, 3))
    assert columns(count_model(model, planes)) == (2, 4)


def test_planes_that_cancel_touch_their_column(decode, count_model):
    planes = torch.tensor([[[1.0, 0]], [[-1.0, 0]]])
    model = nn.Sequential(decode("sum"), nn.Linear(2, 3))
    assert columns(count_model(model, planes)) == (1, 2)


def test_calls_add_their_columns_up(fire):
    model = nn.Sequential(fire(), nn.Linear(4, 3))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(SPIKES)
        model(SPIKES.flip(-1))
        model(torch.zeros(1, 4))
    assert columns(counter) == (2 + 2 + 0, 12)


def test_steps_stacked_in_front_are_samples_like_others(fire, count_model):
    # [T, N, C] by a node: the union over T and N
    spikes = torch.zeros(3, 2, 4)
    spikes[0, 0, 1] = spikes[1, 1, 1] = spikes[2, 0, 3] = 1
    model = nn.Sequential(fire(), nn.Linear(4, 2))
    assert columns(count_model(model, spikes)) == (2, 4)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 2, 2), (2, 3, 5)),
        (nn.Conv2d(3, 6, 3, groups=3, padding=1), (2, 3, 4, 4)),
        (nn.ConvTranspose2d(3, 2, 2, stride=2), (2, 3, 4, 4)),
        (nn.Conv3d(3, 2, 1), (1, 3, 2, 2, 2)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_columns_of_a_convolution_are_its_input_channels(
    fire, count_model, layer, shape
):
    spikes = torch.zeros(shape)
    spikes[0, 0].view(-1)[1] = spikes[-1, 2].view(-1)[0] = -1
    assert columns(count_model(nn.Sequential(fire(), layer), spikes)) == (2, 3)


class Product(nn.Module):
    """Spikes and weights, multiplied in whatever form."""

    def __init__(self, fire, multiply, *shape):
        super().__init__()
        self.fire, self.multiply = fire, multiply
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.fire(x), self.weight)


@pytest.mark.parametrize(
    ("multiply", "shape", "expected"),
    [
        # features 0 and 2 of 4
        (lambda x, w: x @ w, (4, 3), (2, 4)),
        (lambda x, w: F.linear(x, w), (3, 4), (2, 4)),
        (lambda x, w: w @ x.t(), (3, 4), (2, 4)),
        (lambda x, w: torch.einsum("nk,kd->nd", x, w), (4, 3), (2, 4)),
        (lambda x, w: torch.addmm(torch.zeros(3), x, w), (4, 3), (2, 4)),
        (lambda x, w: x @ w, (4,), (2, 4)),
        (lambda x, w: w @ x.t(), (4,), (2, 4)),
        # the first token alone: 0 and 2; its own features are all there is
        (lambda x, w: w @ x[0], (3, 4), (2, 4)),
        (lambda x, w: x[0] @ w, (4, 3), (2, 4)),
        (lambda x, w: x[0] @ w, (4,), (2, 4)),
        # tokens as features: both fire
        (lambda x, w: w @ x, (3, 2), (2, 2)),
        # each token has weights of its own: 2 + 1 of 2 · 4
        (lambda x, w: x.unsqueeze(1) @ w, (2, 4, 3), (3, 8)),
        (lambda x, w: w @ x.unsqueeze(-1), (2, 3, 4), (3, 8)),
        # one matrix for both, expanded
        (lambda x, w: torch.bmm(x.unsqueeze(1), w.expand(2, 4, 3)), (4, 3), (2, 4)),
        (lambda x, w: torch.bmm(x[None], w[None]), (4, 3), (2, 4)),
    ],
)
def test_every_form_of_a_product_knows_its_input_features(
    fire, count_model, multiply, shape, expected
):
    counter = count_model(Product(fire(), multiply, *shape), SPIKES)
    assert columns(counter, "") == expected


def test_a_dense_input_touches_no_column_in_particular(count_model):
    (row,) = count_model(nn.Linear(4, 3), torch.rand(2, 4)).rows()
    assert (row.columns_touched, row.columns) == (0, 0)


def test_what_spikes_meet_other_than_weights_has_no_columns(fire, call, count_model):
    model = nn.Sequential(fire(), call(lambda x: x @ torch.ones(4, 2)))
    assert columns(count_model(model, SPIKES)) == (0, 0)


def test_weights_are_known_under_autocast(fire):
    model = nn.Sequential(fire(), nn.Linear(4, 3))
    with torch.autocast("cpu", torch.bfloat16):
        model(SPIKES)  # the casts of the weights are in the cache before the block
        with SpikeOpCounter(model) as counter:
            model(SPIKES)
    row = counter.rows()[-1]
    assert (row.columns_touched, row.columns) == (2, 4)
    # 3 · 4 weights and 3 biases, in two bytes
    assert row.moved.weight_dense == 30


@pytest.mark.parametrize(
    "make",
    [
        lambda w: w,
        lambda w: w.t().t(),
        lambda w: w[:3],
        lambda w: w.view(-1)[:12].view(3, 4),
        lambda w: w.bfloat16().float(),
        lambda w: w.sign() * w.abs().mean(),
        lambda w: torch.where(w > 0, w, w) + w,
    ],
)
def test_what_is_made_of_weights_alone_is_a_weight(fire, count_model, make):
    # quantised on the fly, normalised, cast: {-a, 0, a} does not make it spikes
    model = Product(fire(), lambda x, w: F.linear(x, make(w)), 3, 4)
    assert columns(count_model(model, SPIKES), "") == (2, 4)


def test_what_an_activation_goes_into_is_no_weight(fire, count_model):
    # as soon as an input takes part it is an activation: a fast weight
    class Fast(Product):
        def forward(self, x):
            return F.linear(self.fire(x), self.weight * x.mean())

    model = Fast(fire(), None, 3, 4)
    assert columns(count_model(model, SPIKES), "") == (0, 0)


def test_weights_are_found_where_they_lie_when_the_pass_begins():
    layer = nn.Linear(2, 2)
    weights = Weights()
    weights.collect(layer)
    assert layer.weight in weights
    assert layer.weight.detach()[0] in weights
    assert torch.ones(2) not in weights
    assert "no tensor" not in weights
    layer.double()
    weights.collect(layer)
    assert layer.bias.detach() in weights


def test_a_model_that_moves_between_passes_keeps_its_weights(fire):
    model = nn.Sequential(fire(), nn.Linear(4, 3))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        model(SPIKES)
        model.double()(SPIKES.double())
    assert columns(counter) == (4, 8)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_weights_that_get_their_shape_in_the_first_pass_are_weights(fire):
    model = nn.Sequential(fire(), nn.LazyLinear(3))
    with torch.no_grad(), SpikeOpCounter(model) as counter:
        for _ in range(2):
            model(SPIKES)
    assert columns(counter) == (4, 8)
    assert counter.rows()[-1].moved.weight_dense == 2 * (48 + 12)
