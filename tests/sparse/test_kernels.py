"""The products of a step: by hand, against their references, and what they may read."""

import logging

import pytest
import torch
import torch.nn.functional as F

from mar_snn.neurons import native
from mar_snn.sparse import dense_linear, event_linear, kernels
from mar_snn.sparse.kernels import dense_linear_reference, event_linear_reference
from tests.bounds import assert_linear

#: inputs, outputs: one, no multiple of anything, lines and remainders of lines
SIZES = [(1, 1), (3, 5), (8, 16), (17, 64), (40, 100), (129, 131), (64, 257)]


def decoded(rows, inputs, density, dtype=torch.float32):
    fires = torch.rand(rows, inputs) < density
    return (torch.randint(1, 16, (rows, inputs)) / 8 * fires).to(dtype)


def by_input(weight):
    """The same numbers, those of an input side by side."""
    return weight.t().contiguous().t()


def rounded(weight, axis):
    scale = weight.abs().amax(1 - axis) / 127
    return (weight / scale.unsqueeze(1 - axis)).round().to(torch.int8), scale


def test_the_product_is_worked_by_hand(where):
    weight = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0]])
    x = torch.tensor([[0.5, 0.0, -1.0]])
    assert event_linear(x, by_input(weight)).tolist() == [[-99.5, -199.0]]
    bias = torch.tensor([1.0, 0.0])
    assert event_linear(x, by_input(weight), bias).tolist() == [[-98.5, -199.0]]
    assert dense_linear(x, weight, bias).tolist() == [[-98.5, -199.0]]


def test_int8_rows_have_a_scale_for_each_input(where):
    weight = torch.tensor([[1, -2], [100, 3]], dtype=torch.int8)
    x, scale = torch.tensor([[2.0, 1.0]]), torch.tensor([0.5, 0.25])
    # 2 · 1 / 2 - 2 / 4 and 2 · 100 / 2 + 3 / 4
    y = event_linear(x, by_input(weight), None, scale)
    assert y.tolist() == [[0.5, 100.75]]
    # (2 · 1 - 2) / 2 and (2 · 100 + 3) / 4
    assert dense_linear(x, weight, None, scale).tolist() == [[0.0, 50.75]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_reading_what_fired_is_the_dense_product(where, dtype, size, rows, density):
    inputs, outputs = size
    weight = by_input(torch.randn(outputs, inputs, dtype=dtype))
    bias = torch.randn(outputs, dtype=dtype)
    x = decoded(rows, inputs, density, dtype)
    for y in (event_linear(x, weight, bias), event_linear_reference(x, weight, bias)):
        assert y.dtype == dtype
        assert_linear(y, x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 3])
def test_int8_products_are_those_of_the_rounded_weights(where, dtype, size, rows):
    inputs, outputs = size
    x = decoded(rows, inputs, 0.4, dtype)
    bias = torch.randn(outputs, dtype=dtype)
    weight, scale = rounded(torch.randn(outputs, inputs), axis=1)
    for function in (event_linear, event_linear_reference):
        y = function(x, by_input(weight), bias, scale)
        assert_linear(y, x, weight.double() * scale, bias)
    weight, scale = rounded(torch.randn(outputs, inputs), axis=0)
    for function in (dense_linear, dense_linear_reference):
        y = function(x, weight, bias, scale)
        assert_linear(y, x, weight.double() * scale[:, None], bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_the_dense_product_is_nn_linears(where, dtype, size):
    inputs, outputs = size
    x, weight = torch.randn(2, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    assert_linear(dense_linear(x, weight), x, weight)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("outputs", [5, 16, 100, 1000])
def test_threads_share_the_outputs_and_change_no_bit(threads, outputs):
    if why := native.obstacle():
        pytest.skip(why)
    x, weight = decoded(1, 50, 0.5), by_input(torch.randn(outputs, 50))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = event_linear(x, weight)
        torch.set_num_threads(threads)
        assert torch.equal(event_linear(x, weight), alone)
    finally:
        torch.set_num_threads(before)


def test_the_weights_of_silent_inputs_are_never_read(where):
    weight = by_input(torch.full((70, 30), float("nan")))
    fired = torch.tensor([0, 7, 29])
    weight[:, fired] = torch.randn(70, 3)
    x = torch.zeros(2, 30)
    x[0, fired[:2]], x[1, fired[2]] = 1.0, -2.0
    assert event_linear(x, weight).isfinite().all()


def test_what_is_not_a_number_reaches_the_sum(where):
    x = torch.tensor([[0.0, float("nan"), 1.0]])
    assert event_linear(x, by_input(torch.randn(20, 3))).isnan().all()


def test_nothing_that_fired_leaves_the_bias(where):
    weight, bias = by_input(torch.randn(20, 9)), torch.randn(20)
    assert torch.equal(event_linear(torch.zeros(1, 9), weight, bias)[0], bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_above_the_break_even_density_the_product_is_dense(where, monkeypatch, dtype):
    weight, scale = torch.randn(20, 10), None
    if dtype == torch.int8:
        weight, scale = rounded(weight, axis=1)
    exact = weight if scale is None else weight.double() * scale
    weight = by_input(weight)
    x = torch.zeros(1, 10)
    x[0, :5] = 1.0
    calls = []
    linear = F.linear
    monkeypatch.setattr(
        kernels.F, "linear", lambda *args: calls.append(args) or linear(*args)
    )
    sparse = event_linear(x, weight, None, scale, break_even=0.5)
    assert not calls
    dense = event_linear(x, weight, None, scale, break_even=0.49)
    assert len(calls) == 1
    for y in (sparse, dense):
        assert_linear(y, x, exact)


def test_inputs_with_gaps_are_read_where_they_are(where):
    x, weight = decoded(3, 40, 0.5)[:, ::2], torch.randn(30, 20)
    for stored in (weight, by_input(weight)):
        assert_linear(event_linear(x, stored), x, weight)
        assert_linear(dense_linear(x, stored), x, weight)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 1, 7), (1, 2, 1, 7)])
def test_rows_may_lie_along_any_axes(where, shape):
    x, weight = torch.randn(shape), torch.randn(5, 7)
    for y in (event_linear(x, by_input(weight)), dense_linear(x, weight)):
        assert y.shape == (*shape[:-1], 5)
        assert_linear(y, x, weight)


@pytest.mark.parametrize("name", ["event_linear", "dense_linear"])
def test_inputs_that_do_not_fit_the_weights_are_refused(where, name):
    # below the shape checker of the tests, which users do not have
    operation = getattr(torch.ops.mar_snn, name)
    more = (1.0,) if name == "event_linear" else ()
    weight = torch.randn(5, 7)
    stored = by_input(weight) if more else weight
    with pytest.raises(ValueError, match=r"expected 7 inputs .* shape \(1, 6\)"):
        operation(torch.randn(1, 6), stored, None, None, *more)


def test_sixteen_bits_are_rounded_to_the_nearest_and_to_even(where):
    # 1 + 2^-8 and 1 + 3 · 2^-8 lie in the middle between two numbers of 8 bits
    weight = torch.tensor(
        [[2.0**-8], [3 * 2.0**-8], [2.0**-8 + 2.0**-15], [-(2.0**-8)]]
    )
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    weight = torch.cat([torch.ones(4, 1), weight], 1).bfloat16()
    weight[3, 0] = -1
    expected = [[1.0, 1 + 2.0**-6, 1 + 2.0**-7, -1.0]]
    assert event_linear(x, by_input(weight)).tolist() == expected
    assert dense_linear(x, weight).tolist() == expected


def test_the_operations_are_registered_as_pytorch_wants_them(where):
    x, weight, bias = decoded(1, 8, 0.5), torch.randn(16, 8), torch.randn(16)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for operation, args in (
        (
            torch.ops.mar_snn.event_linear.default,
            (x, by_input(weight), bias, None, 1.0),
        ),
        (torch.ops.mar_snn.dense_linear.default, (x, weight, bias, None)),
    ):
        torch.library.opcheck(operation, args, test_utils=checks)


def test_without_a_compiler_it_is_said_once_and_pytorch_runs(monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    kernels._library.cache_clear()
    x, weight = decoded(1, 8, 0.5), by_input(torch.randn(16, 8))
    try:
        with caplog.at_level(logging.WARNING, "mar_snn.sparse.kernels"):
            for _ in range(3):
                assert_linear(event_linear(x, weight), x, weight)
    finally:
        kernels._library.cache_clear()
    assert len(caplog.messages) == 1
    assert "no C compiler 'no-such-compiler'" in caplog.messages[0]
