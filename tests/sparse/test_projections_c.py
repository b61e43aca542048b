"""projections.c: exact on every width of registers, where rows and memory end.

Integers are small enough for their sums to be exact in float32, in any order.
"""

import platform
from pathlib import Path

import pytest
import torch

from mar_snn.neurons import native
from mar_snn.sparse import DenseLinear, EventLinear, dense_linear, event_linear, kernels
from mar_snn.sparse import linear as module

#: inputs and outputs around lines of 16, 32 and 64 weights, and around four streams
SIZES = [(1, 1), (15, 3), (16, 4), (63, 5), (64, 9), (65, 64), (129, 66), (200, 131)]
SCALE = 2.0**-7


@pytest.fixture(params=["", "-mno-avx512f", "-mno-avx"], ids=["all", "256", "128"])
def registers(request, monkeypatch):
    """The library with all this machine has, and with registers of fewer bits."""
    if why := native.obstacle():
        pytest.skip(why)
    if request.param and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{platform.machine()} has other registers")
    source = Path(kernels.__file__).with_name("projections.c")
    library = native.load(source, *kernels._FLAGS, *request.param.split())
    monkeypatch.setattr(kernels, "_library", lambda: library)
    kernels._function.cache_clear()
    yield
    kernels._function.cache_clear()


def between_nans(t):
    """The same numbers in memory whose surroundings show in every sum."""
    wild = float("nan") if t.is_floating_point() else 127
    around = torch.full((t.numel() + 256,), wild, dtype=t.dtype)
    around[128:-128] = t.reshape(-1)
    return around[128:-128].view(t.shape)


def integers(rows, inputs, outputs):
    """x and W of whole numbers, W with both ends of int8 and a row of zeros."""
    x = torch.randint(-8, 9, (rows, inputs)) * (torch.rand(rows, inputs) < 0.6)
    weight = torch.randint(-127, 128, (outputs, inputs))
    weight[0], weight[-1, ::2], weight[outputs // 2] = 127, -127, 0
    return x, weight


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_sums_of_whole_numbers_are_exact(registers, rows):
    for inputs, outputs in SIZES:
        x, weight = integers(rows, inputs, outputs)
        exact = (x @ weight.t()).double()
        for dtype in (torch.float32, torch.bfloat16):
            fed = between_nans(x.to(dtype))
            for stored in (torch.float32, torch.bfloat16, torch.int8):
                by_output = between_nans(weight.to(stored))
                by_input = between_nans(weight.t().to(stored)).t()
                expected = exact.to(dtype)
                assert torch.equal(dense_linear(fed, by_output), expected)
                assert torch.equal(event_linear(fed, by_input), expected)


def test_scales_of_int8_are_exact_where_they_are_powers_of_two(registers):
    for inputs, outputs in SIZES:
        x, weight = integers(2, inputs, outputs)
        each_output = SCALE * 2.0 ** torch.arange(outputs).remainder(3)
        each_input = SCALE * 2.0 ** torch.arange(inputs).remainder(3)
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            y = dense_linear(x.to(dtype), weight.to(torch.int8), None, each_output)
            exact = (x @ weight.t()) * each_output.double()
            assert torch.equal(y, exact.to(dtype))
            by_input = weight.t().to(torch.int8).contiguous().t()
            y = event_linear(x.to(dtype), by_input, None, each_input)
            exact = (x * each_input.double()) @ weight.t().double()
            assert torch.equal(y, exact.to(dtype))


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.int8])
def test_threads_change_no_bit(registers, weights):
    x = torch.randn(2, 150)
    before = torch.get_num_threads()
    try:
        for outputs in (1, 5, 16, 100, 259):
            weight = (20 * torch.randn(outputs, 150)).to(weights)
            by_input = weight.t().contiguous().t()
            found = []
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                found += [dense_linear(x, weight), event_linear(x, by_input)]
            for dense, event in zip(found[2::2], found[3::2], strict=True):
                assert torch.equal(dense, found[0])
                assert torch.equal(event, found[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(0, 7), (2, 0), (0, 0)])
@pytest.mark.parametrize("outputs", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_to_add_up_is_zero(where, shape, outputs, dtype):
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(outputs, shape[1])
    expected = torch.zeros(shape[0], outputs, dtype=dtype)
    for stored in (weight.to(dtype), weight.to(torch.int8)):
        scales = (None, None)
        if stored.dtype == torch.int8:
            scales = torch.ones(outputs), torch.ones(shape[1])
        assert torch.equal(dense_linear(x, stored, None, scales[0]), expected)
        by_input = stored.t().contiguous().t()
        assert torch.equal(event_linear(x, by_input, None, scales[1]), expected)


@pytest.mark.parametrize("kind", [EventLinear, DenseLinear])
@pytest.mark.parametrize("weights", ["same", "int8"])
def test_all_weights_lie_on_huge_pages(monkeypatch, kind, weights):
    moved = []
    move = module._on_huge_pages
    monkeypatch.setattr(
        module, "_on_huge_pages", lambda t: moved.append(t.dtype) or move(t)
    )
    kind(torch.nn.Linear(20, 36), weights=weights)
    assert moved == [torch.int8 if weights == "int8" else torch.float32]
