"""A module that runs its own forward through its slots."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mar_snn.hosts import Plan, plans, register_plan
from mar_snn.hosts.view import run_through_slots, run_without_slots


class Halve(nn.Module):
    """Stands in for a coder, and counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x / 2


class Gated(nn.Module):
    """down(relu(gate(x)) * up(x)) + scale, by a method of its own."""

    scale = 1.0

    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(3, 2), nn.Linear(3, 2)
        self.down = nn.Linear(2, 3, bias=False)
        self.seen = 0

    def forward(self, x, *, twice=False):
        """A docstring of the host's."""
        self.seen += 1
        y = self.inner(x)
        return self.down(y) * (2 if twice else 1) + self.scale

    def inner(self, x):
        return F.relu(self.gate(x)) * self.up(x)


class Touching(nn.Module):
    """Uses its projection in the way it is told."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(3, 2)

    def forward(self, x, how):
        return how(self, x)


OVERRIDDEN = Plan(
    sites={"mlp.in": ("gate", "up"), "mlp.out": ("down",)}, overrides={"scale": 0.0}
)


@pytest.fixture(autouse=True, scope="module")
def _plans():
    known = dict(plans._plans)
    register_plan(Gated, OVERRIDDEN)
    register_plan(Touching, Plan(sites={"mlp.in": ("up",)}))
    yield
    plans._plans.clear()
    plans._plans.update(known)


@pytest.fixture
def gated() -> Gated:
    module = Gated()
    module.in_neuron, module.out_neuron = Halve(), Halve()
    run_through_slots(module)
    return module


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 3)


def by_hand(module, x):
    y = F.relu(module.gate(x / 2)) * module.up(x / 2)
    return module.down(y / 2)


@pytest.mark.usefixtures("float64")
def test_each_projection_reads_what_its_coder_hands_on(gated, x):
    torch.testing.assert_close(gated(x), by_hand(gated, x))
    torch.testing.assert_close(gated(x, twice=True), 2 * by_hand(gated, x))


@pytest.mark.usefixtures("float64")
def test_gradients_go_through_the_coders(gated, x):
    x.requires_grad_()
    expected = torch.autograd.grad(by_hand(gated, x).square().sum(), x)
    found = torch.autograd.grad(gated(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_a_tensor_that_two_projections_read_is_coded_once(gated, x):
    gated(x)
    assert (gated.in_neuron.calls, gated.out_neuron.calls) == (1, 1)
    gated(x)
    assert (gated.in_neuron.calls, gated.out_neuron.calls) == (2, 2)


@pytest.mark.usefixtures("float64")
def test_tensors_that_differ_are_coded_apart(x):
    class Apart(Gated):
        def inner(self, x):
            return F.relu(self.gate(x)) * self.up(x + 1)

    module = Apart()
    module.in_neuron = Halve()
    run_through_slots(module)
    y = F.relu(module.gate(x / 2)) * module.up((x + 1) / 2)
    torch.testing.assert_close(module(x), module.down(y))
    assert module.in_neuron.calls == 2


@pytest.mark.usefixtures("float64")
def test_a_site_without_a_coder_stays_dense(gated, x):
    del gated.in_neuron
    y = F.relu(gated.gate(x)) * gated.up(x)
    torch.testing.assert_close(gated(x), gated.down(y / 2))


def test_what_the_forward_sets_is_set_on_the_module(gated, x):
    gated(x), gated(x)
    assert gated.seen == 2


@pytest.mark.usefixtures("float64")
def test_overrides_reach_the_forward_alone(gated, x):
    assert gated.scale == 1.0
    run_without_slots(gated)
    dense = gated.down(gated.inner(x)) + 1.0
    torch.testing.assert_close(gated(x), dense)


def test_a_module_looks_like_what_it_was(gated):
    assert isinstance(gated, Gated)
    assert type(gated).__name__ == "Gated"
    assert type(gated).__qualname__ == Gated.__qualname__
    assert type(gated).__module__ == Gated.__module__
    assert inspect.signature(gated.forward) == inspect.signature(Gated().forward)
    assert set(dict(gated.named_parameters())) == set(dict(Gated().named_parameters()))
    run_through_slots(gated)
    run_without_slots(gated)
    assert type(gated) is Gated
    run_without_slots(gated)
    assert type(gated) is Gated


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_module_can_be_pickled(gated, x, protocol):
    again = pickle.loads(pickle.dumps(gated, protocol))
    assert type(again) is type(gated)
    torch.testing.assert_close(again(x), gated(x))
    run_without_slots(again)
    assert type(again) is Gated


@pytest.mark.usefixtures("float64")
def test_a_copy_has_coders_of_its_own(gated, x):
    before = gated(x)
    again = copy.deepcopy(gated)
    again.in_neuron = nn.Identity()
    torch.testing.assert_close(gated(x), before)
    assert not torch.allclose(again(x), before)


@pytest.mark.usefixtures("float64")
def test_what_takes_the_place_of_a_projection_reads_the_code(gated, x):
    gated.set_submodule("down", nn.Identity())
    y = F.relu(gated.gate(x / 2)) * gated.up(x / 2)
    torch.testing.assert_close(gated(x), y / 2)


# ---- what would go past the coder


@pytest.fixture
def touching() -> Touching:
    module = Touching()
    module.in_neuron = Halve()
    run_through_slots(module)
    return module


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda m, x: F.linear(x, m.up.weight), "up.weight"),
        (lambda m, x: F.linear(x, torch.ones(2, 3), bias=m.up.bias), "up.bias"),
        (lambda m, x: x @ m.up.weight.T, "up.weight"),
        (lambda m, x: m.up.weight @ x.T, "up.weight"),
        (lambda m, x: x.mT.new_ones(2, 2) @ m.up.weight, "up.weight"),
        (lambda m, x: m.up.forward(x), "up.forward"),
    ],
)
def test_a_weight_that_is_used_past_the_coder_is_an_error(touching, x, how, what):
    with pytest.raises(
        RuntimeError, match=f"Touching uses {what} past the coder; its plan must turn"
    ):
        touching(x, how)


def test_what_a_weight_is_may_be_asked(touching, x):
    weight = touching.up.weight
    found = touching(
        x,
        lambda m, x: (
            m.up.weight.device,
            m.up.weight.dtype,
            m.up.weight.shape,
            m.up.in_features,
            hasattr(m.up, "base_layer"),
        ),
    )
    assert found == (weight.device, weight.dtype, weight.shape, 3, False)


def test_a_bias_that_is_none_is_none(touching, x):
    touching.up.register_parameter("bias", None)
    assert touching(x, lambda m, x: m.up.bias) is None
