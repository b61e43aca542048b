from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mar_snn.llamba import scan as scan_module
from mar_snn.llamba.scan import (
    CPU_CHUNK,
    LlambaScan,
    ssd_chunked,
    ssd_matrix,
    ssd_sequential,
    ssd_step,
)
from tests.bounds import assert_sums


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


def sizes(p: dict[str, Tensor]) -> dict[str, Tensor]:
    """The problem without signs: what comes out bounds every sum of terms."""
    return {k: t if k == "log_decay" else t.abs() for k, t in p.items()}


def assert_rounded(
    found: Sequence[Tensor],
    exact: Sequence[Tensor],
    p: dict[str, Tensor],
    magnitudes: Sequence[Tensor],
) -> None:
    """What a scan in chunks of float32 rounds off, and no more.

    An entry is a sum over tokens and state. Each term holds a decay, e to the
    difference of two running sums over a chunk, whose roundings grow with what they add
    up; and so do the gradients of decays, down to entries that are next to nothing.
    """
    terms = p["x"].shape[1] * p["b"].shape[-1]
    running = p["log_decay"].detach().abs().unfold(1, CPU_CHUNK, 1).sum(-1).max()
    growth = 1 + running.double() / (4 * terms**0.5)
    for one, wanted, magnitude in zip(found, exact, magnitudes, strict=True):
        largest = magnitude.max().expand_as(wanted)
        assert_sums(one, wanted, growth * largest, terms)


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
    found = ssd_chunked(**p)
    assert [result.dtype for result in found] == [torch.float32] * 2
    p = {k: t.double() for k, t in p.items()}
    assert_rounded(found, ssd_sequential(**p), p, ssd_sequential(**sizes(p)))


def test_a_decay_of_zero_forgets_and_no_form_makes_a_nan_of_it():
    p = problem(1, 40, 1, 1)
    p["log_decay"][:, 20] = -torch.inf
    expected = ssd_sequential(**p)
    assert expected[0].isfinite().all()
    p["log_decay"].requires_grad_()
    y, state = ssd_chunked(**p)
    torch.testing.assert_close((y, state), expected, rtol=0, atol=1e-12)
    (y.sum() + state.sum()).backward()
    assert p["log_decay"].grad.isfinite().all()
    # forgotten: not a bit of what was before is left
    p["x"][:, :20] = 1e30
    assert ssd_chunked(**p)[0][:, 20:].equal(y[:, 20:])


# ---- small numbers and large tensors


class Watch(TorchDispatchMode):
    """Everything that is computed while it looks."""

    def __init__(self):
        super().__init__()
        self.largest = self.denormal = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                continue
            self.largest = max(self.largest, tensor.untyped_storage().nbytes())
            size = tensor.detach().abs()
            tiny = torch.finfo(tensor.dtype).tiny
            self.denormal += ((size > 0) & (size < tiny)).sum().item()
        return result


def decaying(strength: float, length: int = 200) -> dict[str, Tensor]:
    p = problem(1, length, 2, 2, torch.float32)
    p["log_decay"] = p["log_decay"] * strength
    return p


def scanned(p: dict[str, Tensor], form=ssd_chunked, signs=torch.cos) -> list[Tensor]:
    """Results, and the gradients of their sum with weights from -1 to 1."""
    p = {k: t.detach().requires_grad_() for k, t in p.items()}
    results = form(**p)
    weights = [signs(torch.arange(r.numel()).view_as(r).to(r)) for r in results]
    gradients = torch.autograd.grad(results, tuple(p.values()), weights)
    return [*results, *gradients]


@pytest.mark.parametrize("strength", [0.1, 1, 3, 10, 80])
def test_no_number_of_either_pass_is_too_small_to_be_normal(strength):
    with Watch() as watch:
        scanned(decaying(strength))
    assert watch.denormal == 0


def test_without_the_bound_some_would_be(monkeypatch):
    monkeypatch.setattr(scan_module, "_LOG_OF_NOTHING", -1e4)
    with Watch() as watch:
        scanned(decaying(3))
    assert watch.denormal > 100


@pytest.mark.parametrize("strength", [0.01, 1, 10, 40, 300])
def test_what_is_left_out_is_below_what_float32_rounds_off(strength):
    p = decaying(strength)
    double = {k: t.double() for k, t in p.items()}
    exact = scanned(double, ssd_sequential)
    magnitudes = scanned(sizes(double), ssd_sequential, torch.ones_like)
    assert_rounded(scanned(p), exact, p, magnitudes)
    assert_rounded(scanned(double), exact, p, magnitudes)


def test_no_tensor_grows_with_the_square_of_the_length():
    peaks = []
    for length in (8 * CPU_CHUNK, 32 * CPU_CHUNK):
        with Watch() as watch:
            scanned(decaying(1, length))
        peaks.append(watch.largest)
        # float32 pairs inside of chunks: two heads, Q of every token
        assert watch.largest == 4 * 2 * CPU_CHUNK * length
    assert peaks[1] == 4 * peaks[0]


# ---- one token


def test_a_step_is_the_recurrence_and_starts_from_zero_without_a_state():
    p = problem(2, 1, 4, 2)
    state = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    for start in (None, state):
        expected = ssd_sequential(**p, state=start)
        given = None if start is None else start.clone()
        torch.testing.assert_close(ssd_step(**p, state=given), expected)


def test_a_step_writes_over_its_state_where_no_gradient_is_recorded():
    p = problem(2, 1, 4, 2)
    state = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    kept = state.clone()
    _, after = ssd_step(**p, state=state)
    assert state.equal(kept)  # gradients may be wanted here
    with torch.no_grad():
        _, overwritten = ssd_step(**p, state=state)
    assert overwritten.data_ptr() == state.data_ptr()
    torch.testing.assert_close(state, after)


def test_a_step_leaves_a_state_that_a_graph_or_inference_mode_made():
    p = problem(2, 1, 4, 2)
    state = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    made = state * 2
    with torch.inference_mode():
        inferred = torch.zeros_like(state)
    with torch.no_grad():
        for given in (made, inferred):
            _, after = ssd_step(**p, state=given)
            assert after.data_ptr() != given.data_ptr()
    made.sum().backward()


def test_a_steps_gradients_are_those_of_the_recurrence():
    p = problem(2, 1, 4, 2)
    p["state"] = torch.randn(2, 4, 3, 5, dtype=torch.float64)
    results = [scanned(p, form) for form in (ssd_sequential, ssd_step)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-12)


# ---- the module


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
