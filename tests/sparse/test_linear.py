"""The modules: nn.Linear in everything, and the kernels where few rows come."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mar_snn.sparse import DenseLinear, EventLinear
from mar_snn.sparse import linear as module
from tests.bounds import assert_linear

KINDS = pytest.mark.parametrize("kind", [EventLinear, DenseLinear])


@pytest.fixture
def plain():
    return nn.Linear(20, 36)


@pytest.fixture
def calls(monkeypatch):
    """Which kernel was called, and with how many rows."""
    found = []
    for name in ("event_linear", "dense_linear"):
        kernel = getattr(module, name)

        def counted(x, *args, name=name, kernel=kernel, **kwargs):
            found.append((name, x.numel() // x.shape[-1]))
            return kernel(x, *args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    return found


@KINDS
@pytest.mark.parametrize("shape", [(20,), (1, 20), (1, 1, 20), (2, 2, 20)])
def test_few_rows_go_to_the_kernel_and_keep_their_shape(plain, calls, kind, shape):
    x = torch.randn(shape)
    with torch.no_grad():
        y = kind(plain)(x)
    assert y.shape == (*shape[:-1], 36)
    assert_linear(y, x, plain.weight, plain.bias)
    name = "event_linear" if kind is EventLinear else "dense_linear"
    assert calls == [(name, x.numel() // 20)]


@KINDS
@pytest.mark.parametrize("shape", [(5, 20), (1, 7, 20), (0, 20)])
def test_many_rows_and_none_are_nn_linears(plain, calls, kind, shape):
    x = torch.randn(shape)
    with torch.no_grad():
        assert_linear(kind(plain)(x), x, plain.weight, plain.bias)
    assert calls == []


@KINDS
def test_gradients_are_nn_linears(plain, calls, kind):
    linear, x = kind(plain.double()), torch.randn(1, 20).double()
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    linear(ours).square().sum().backward()
    found = [ours.grad, linear.weight.grad.clone(), linear.bias.grad.clone()]
    plain.zero_grad()
    plain(theirs).square().sum().backward()
    for mine, other in zip(
        found, [theirs.grad, plain.weight.grad, plain.bias.grad], strict=True
    ):
        torch.testing.assert_close(mine, other)
    assert calls == []


def test_the_weights_of_an_input_lie_side_by_side(plain):
    linear = EventLinear(plain)
    assert torch.equal(linear.weight, plain.weight)
    assert linear.weight.stride() == (1, 36)
    assert linear.weight.data_ptr() != plain.weight.data_ptr()


def test_the_weights_of_a_dense_head_stay_the_same_parameter(plain):
    assert DenseLinear(plain).weight is plain.weight


@KINDS
def test_copies_pickles_and_state_dicts_are_whole(plain, kind, tmp_path):
    linear, x = kind(plain), torch.randn(1, 20)
    with torch.no_grad():
        expected = linear(x)
        for again in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
            assert torch.equal(again(x), expected)
    fresh = nn.Linear(20, 36)
    fresh.load_state_dict(linear.state_dict())
    assert torch.equal(fresh.weight, plain.weight)
    other = kind(nn.Linear(20, 36))
    other.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), expected)


@KINDS
def test_int8_weights_are_within_half_a_step(plain, kind):
    linear = kind(plain, weights="int8")
    assert linear.weight is None
    assert linear.weight_int8.dtype == torch.int8
    axis = 0 if kind is EventLinear else 1
    # 127 steps to the largest weight of an input, or of an output
    step = plain.weight.abs().amax(axis, keepdim=True) / 127
    error = (linear.dense_weight(torch.float64) - plain.weight).abs()
    # the quotient that is rounded to one of 127 is off by half an eps of itself
    assert bool((error <= step * (0.5 + 127 * torch.finfo(torch.float32).eps)).all())
    assert error.max() > 0


@KINDS
def test_int8_gives_few_and_many_rows_the_same_weights(plain, kind):
    linear, x = kind(plain, weights="int8"), torch.randn(6, 20)
    with torch.no_grad():
        weight = linear.dense_weight(torch.float64)
        one_by_one = torch.cat([linear(row[None]) for row in x])
        assert_linear(one_by_one, x, weight, plain.bias)
        assert_linear(linear(x), x, weight, plain.bias)


@KINDS
def test_a_row_of_zeros_stays_zero_in_int8(kind):
    plain = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        plain.weight.zero_()
        assert not kind(plain, weights="int8")(torch.ones(1, 4)).any()


@KINDS
def test_rounded_weights_are_not_saved(plain, kind):
    with pytest.raises(RuntimeError, match="save the model before optimize_for_deco"):
        kind(plain, weights="int8").state_dict()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"weights": "int4"}, "weights must be 'same' or 'int8', got 'int4'"),
        ({"max_rows": 0}, "max_rows must be at least 1, got 0"),
    ],
)
@KINDS
def test_what_cannot_be_says_so(plain, kind, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        kind(plain, **wrong)


def test_the_modules_say_what_they_are(plain):
    text = repr(EventLinear(plain, weights="int8", max_rows=2, break_even=0.5))
    assert "in_features=20" in text
    assert "weights=int8, max_rows=2, break_even=0.50" in text


def test_large_weights_are_copied_to_memory_of_their_own():
    plain = nn.Linear(2048, 1024, bias=False)
    linear = EventLinear(plain)
    assert torch.equal(linear.weight, plain.weight)
    linear.weight.data.zero_()
    assert plain.weight.any()
