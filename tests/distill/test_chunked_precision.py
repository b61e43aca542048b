"""What 16 bits cost the chunked loss: one rounding of the gradient, and no more."""

from unittest import mock

import pytest
import torch
from torch import nn

from mar_snn.distill import bidirectional_kl, chunked_bidirectional_kl


def with_gradients(result, *leaves):
    """The three terms and the gradients of the leaves, in one list."""
    return [*result, *torch.autograd.grad(result.loss, leaves)]


def near_pair(divergence_of_about, dtype):
    """Hidden states of 16 bits that are that far apart, and the head of both."""
    teacher_hidden = torch.randn(32, 128)
    head = nn.Linear(128, 4000, bias=False)
    nn.init.normal_(head.weight, std=0.3)
    noise = (2 * divergence_of_about) ** 0.5 / 0.3 / 128**0.5
    hidden = teacher_hidden + noise * torch.randn_like(teacher_hidden)
    head = head.to(dtype)
    return hidden.to(dtype).requires_grad_(), head, teacher_hidden.to(dtype), head


def relative_error(mine, exact):
    return ((mine.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_cost_one_percent_of_the_gradient_at_most(dtype, autocast):
    hidden, head, teacher_hidden, _ = near_pair(0.01, dtype)
    with torch.autocast("cpu", enabled=autocast):
        result = chunked_bidirectional_kl(
            hidden, head, teacher_hidden, head, chunk_size=10
        )
    ours = with_gradients(result, hidden, head.weight)
    assert [value.dtype for value in ours] == [torch.float32] * 3 + [dtype] * 2
    exact_hidden = hidden.detach().double().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    exact = bidirectional_kl(
        exact_hidden @ weight.T, (teacher_hidden.double() @ weight.T).detach()
    )
    assert 0.005 < exact.forward_kl < 0.02
    exact = with_gradients(exact, exact_hidden, weight)
    for mine, other in zip(ours[:3], exact[:3], strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=0)
    # a gradient is rounded once, where it is handed over
    for mine, other in zip(ours[3:], exact[3:], strict=True):
        assert relative_error(mine, other) <= 0.01


def test_the_gradient_of_the_head_is_summed_in_float32():
    # 600 equal tokens: a sum in bfloat16 stops growing at 256 times its terms
    one, *others = near_pair(0.1, torch.bfloat16)
    hidden = one.detach()[:1].expand(600, -1).contiguous().requires_grad_()
    others[1] = others[1][:1].expand(600, -1)
    chunked_bidirectional_kl(hidden, *others, chunk_size=1, num_items=1).loss.backward()
    many = others[0].weight.grad.clone()
    others[0].weight.grad = None
    chunked_bidirectional_kl(
        one[:1], others[0], others[1][:1], others[2], num_items=1
    ).loss.backward()
    assert relative_error(many, 600 * others[0].weight.grad.double()) <= 0.01


def test_products_of_16_bit_factors_have_the_dtype_of_their_sum(monkeypatch):
    # what a GPU does: factors stay in bfloat16, of which only the gradient is rounded
    def mm(a, b, *, out_dtype):
        assert a.dtype == b.dtype == torch.bfloat16
        return a.to(out_dtype) @ b.to(out_dtype)

    pair = near_pair(0.01, torch.bfloat16)
    expected = with_gradients(chunked_bidirectional_kl(*pair), pair[0], pair[1].weight)
    monkeypatch.setattr(
        "mar_snn.distill.chunked.product_dtype", lambda *_: torch.bfloat16
    )
    with mock.patch.object(torch, "mm", mm):
        ours = with_gradients(chunked_bidirectional_kl(*pair), pair[0], pair[1].weight)
    for mine, other in zip(ours, expected, strict=True):
        assert relative_error(mine, other.double()) <= 0.005
