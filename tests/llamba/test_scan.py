import pytest
import torch
from torch import Tensor

from mar_snn.llamba.scan import (
    LlambaScan,
    ssd_chunked,
    ssd_matrix,
    ssd_sequential,
)


def problem(
    batch: int, length: int, heads: int, groups: int, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    shape = (batch, length)
    return {
        "x": torch.randn(*shape, heads, 3, dtype=dtype),
        "b": torch.randn(*shape, groups, 5, dtype=dtype),
        "c": torch.randn(*shape, groups, 5, dtype=dtype),
        "log_decay": -torch.rand(*shape, heads, dtype=dtype) * 2,
    }


SHAPES = [(1, 1, 1, 1), (2, 31, 4, 2), (1, 64, 3, 3), (3, 97, 6, 2)]


def test_the_recurrence_is_worked_by_hand():
    # S1 = 2·3 = 6, y1 = 6·1;  S2 = 0.5·6 + 1·1 = 4, y2 = 4·2
    y, state = ssd_sequential(
        x=torch.tensor([2.0, 1.0]).view(1, 2, 1, 1),
        b=torch.tensor([3.0, 1.0]).view(1, 2, 1, 1),
        c=torch.tensor([1.0, 2.0]).view(1, 2, 1, 1),
        log_decay=torch.tensor([0.9, 0.5]).log().view(1, 2, 1),
    )
    torch.testing.assert_close(y.flatten(), torch.tensor([6.0, 8.0]))
    torch.testing.assert_close(state.flatten(), torch.tensor([4.0]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_size", [1, 7, 32])
def test_the_chunked_form_is_the_recurrence(shape, chunk_size):
    p = problem(*shape)
    state = torch.randn(shape[0], shape[2], 3, 5, dtype=torch.float64)
    expected = ssd_sequential(**p, state=state)
    result = ssd_chunked(**p, state=state, chunk_size=chunk_size)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_matrix_form_is_the_recurrence(shape):
    p = problem(*shape)
    y = ssd_matrix(p["x"], p["b"], p["c"], p["log_decay"]) @ p["x"].transpose(1, 2)
    expected, _ = ssd_sequential(**p)
    torch.testing.assert_close(y.transpose(1, 2), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_every_gradient_of_the_chunked_form_is_that_of_the_recurrence(shape):
    p = problem(*shape)
    p["state"] = torch.randn(shape[0], shape[2], 3, 5, dtype=torch.float64)
    for tensor in p.values():
        tensor.requires_grad_()
    gradients = []
    for scan in (ssd_sequential, ssd_chunked):
        y, state = scan(**p)
        loss = (y * y.detach().cos()).sum() + (state * state.detach().sin()).sum()
        gradients.append(torch.autograd.grad(loss, tuple(p.values())))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-9)


def test_a_sequence_in_two_parts_is_the_sequence():
    p = problem(2, 50, 4, 2)
    whole, last = ssd_chunked(**p)
    first, state = ssd_chunked(**{k: t[:, :23] for k, t in p.items()})
    second, end = ssd_chunked(**{k: t[:, 23:] for k, t in p.items()}, state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


def test_an_empty_sequence_keeps_the_state():
    p = problem(2, 0, 4, 2)
    state = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    for scan in (ssd_sequential, ssd_chunked):
        y, after = scan(**p, state=state)
        assert y.shape == (2, 0, 4, 3)
        assert after.equal(state)


def test_sixteen_bit_inputs_are_scanned_in_float32():
    p = problem(1, 70, 2, 1, torch.bfloat16)
    y, state = ssd_chunked(**p)
    exact, _ = ssd_sequential(**{k: t.double() for k, t in p.items()})
    assert y.dtype == state.dtype == torch.float32
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_decay_of_zero_forgets_and_no_form_makes_a_nan_of_it():
    p = problem(1, 40, 1, 1)
    p["log_decay"][:, 20] = -torch.inf
    y, state = ssd_sequential(**p)
    assert y.isfinite().all()
    assert state.isfinite().all()


def test_the_scan_module_decays_by_the_sigmoid_and_adds_the_skip():
    p = problem(2, 33, 4, 2)
    a_log, d = torch.randn(2, 33, 4).double(), torch.randn(4).double()
    y, state = LlambaScan()(p["x"], p["b"], p["c"], a_log, d)
    expected, end = ssd_sequential(p["x"], p["b"], p["c"], torch.sigmoid(-a_log).log())
    torch.testing.assert_close(y, expected + d[:, None] * p["x"])
    torch.testing.assert_close(state, end)


def test_autocast_does_not_round_the_scan():
    p = problem(1, 33, 2, 1, torch.float32)
    a_log, d = torch.randn(1, 33, 2), torch.randn(2)
    plain, _ = LlambaScan()(p["x"], p["b"], p["c"], a_log, d)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = LlambaScan()(p["x"], p["b"], p["c"], a_log, d)
    assert cast.equal(plain)
