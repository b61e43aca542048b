"""The Triton kernel, interpreted where there is no GPU, is the PyTorch function."""

import pytest
import torch
from torch import nn

from mar_snn.distill import chunked_bidirectional_kl
from mar_snn.distill.divergences import compare_rows, make_divergence
from mar_snn.distill.heads import UNCHANGED, LogitTransform
from tests.bounds import assert_as_exact, assert_sums

DIVERGENCES = [("sbds", None), ("skew", 0.3), ("jsd", 0.4)]
CAPPED = LogitTransform(0.7, 5.0), LogitTransform(-1.3, 4.0)
DTYPES = [torch.float32, torch.float64]


@pytest.fixture
def fused(triton_device, monkeypatch):
    """The kernel, which takes 64 words at a time."""
    from mar_snn.distill import triton_divergences

    monkeypatch.setattr(triton_divergences, "_WORDS", 64)
    return triton_divergences.compare_rows


def some_rows(device, rows, vocab, dtype=torch.float32):
    return (2 * torch.randn(rows, vocab)).to(device, dtype)


def compare(fused, student, teacher, row_weights, *how):
    """Terms and gradients of both; `how` of the divergence, transforms, temperature."""
    found = []
    for function, dtype in (
        (fused, student.dtype),
        (compare_rows, student.dtype),
        (compare_rows, torch.float64),
    ):
        scores, weights = student.to(dtype, copy=True), row_weights.to(dtype)
        terms = function(scores, teacher.to(dtype, copy=True), weights, *how)
        found.append((terms, scores))
    if student.dtype == torch.float64:
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    else:
        assert_as_exact(*found)
    return found[0]


@pytest.mark.parametrize("transforms", [(UNCHANGED, UNCHANGED), CAPPED])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "mixture"), DIVERGENCES)
def test_every_divergence_and_its_gradient(
    triton_device, fused, name, mixture, dtype, transforms
):
    divergence = make_divergence(name, mixture, alpha=0.3, beta=0.6)
    student, teacher = (some_rows(triton_device, 3, 100, dtype) for _ in range(2))
    row_weights = torch.tensor([0.5, 0.0, 2.0], device=triton_device, dtype=dtype)
    how = divergence, transforms, 1.7
    terms, gradient = compare(fused, student, teacher, row_weights, *how)
    assert terms.min() > 0.01
    assert gradient[0].any()
    assert gradient[1].eq(0).all()
    # without weights there is no gradient to write
    assert torch.equal(fused(student, teacher, None, *how), terms)


@pytest.mark.parametrize("vocab", [1, 7, 63, 64, 65, 129])
def test_any_number_of_words(triton_device, fused, vocab):
    divergence = make_divergence("jsd", None, 0.2, 0.7)
    student, teacher = (some_rows(triton_device, 2, vocab) for _ in range(2))
    ones = torch.ones(2, device=triton_device)
    compare(fused, student, teacher, ones, divergence, (UNCHANGED, UNCHANGED), 1.0)


def test_rows_of_a_wider_buffer(triton_device, fused):
    divergence = make_divergence("sbds", None, 0.2, 0.7)
    rows = some_rows(triton_device, 2, 300)
    wide = [row.expand(2, 300).clone()[:, :100] for row in rows]
    ones = torch.ones(2, device=triton_device)
    compare(fused, *wide, ones, divergence, (UNCHANGED, UNCHANGED), 1.0)


def test_maxima_that_rise_and_fall_from_tile_to_tile(triton_device, fused):
    # what was added up before is e^-100 of what comes, and the other way round
    rise = torch.linspace(-100.0, 100.0, 256, device=triton_device)
    student, teacher = torch.stack([rise, -rise]), torch.stack([rise - 1, 0.5 * -rise])
    divergence = make_divergence("sbds", None, 0.2, 0.7)
    ones = torch.ones(2, device=triton_device)
    terms = [
        function(
            student.clone().to(dtype),
            teacher.clone().to(dtype),
            ones.to(dtype),
            divergence,
            (UNCHANGED, UNCHANGED),
            1.0,
        )
        for function, dtype in ((fused, torch.float32), (compare_rows, torch.float64))
    ]
    assert terms[1].amax() > 0.1
    # a loss is a mean of differences of scores
    assert_sums(terms[0], terms[1], rise.abs().max(), 1)


@pytest.mark.parametrize(("name", "mixture"), DIVERGENCES)
def test_equal_rows_are_exactly_zero_apart(triton_device, fused, name, mixture):
    divergence = make_divergence(name, mixture, 0.2, 0.7)
    same = some_rows(triton_device, 2, 103)
    for transform in (LogitTransform(0.7), CAPPED[0]):
        scores = same.clone()
        ones = torch.ones(2, device=triton_device)
        how = divergence, (transform, transform), 1.7
        assert fused(scores, same.clone(), ones, *how).eq(0).all()
        assert scores.eq(0).all()


def test_the_chunked_loss_runs_on_the_kernel(triton_device, fused):
    head, teacher_head = (
        nn.Linear(width, 103, device=triton_device) for width in (8, 12)
    )
    hidden = torch.randn(2, 3, 8, device=triton_device, requires_grad=True)
    teacher_hidden = torch.randn(2, 3, 12, device=triton_device)
    labels = torch.zeros(2, 3, dtype=torch.long, device=triton_device)
    labels[1, 1:] = -100
    found = []
    for backend, dtype in (
        ("triton", torch.float32),
        ("torch", torch.float32),
        ("torch", torch.float64),
    ):
        given = hidden.detach().to(dtype).requires_grad_()
        head, teacher_head = head.to(dtype), teacher_head.to(dtype)
        result = chunked_bidirectional_kl(
            *(given, head, teacher_hidden.to(dtype), teacher_head, labels),
            chunk_size=5,
            divergence="skew",
            student_transform=CAPPED[0],
            backend=backend,
        )
        leaves = [given, *head.parameters()]
        found.append([*result, *torch.autograd.grad(result.loss, leaves)])
    assert_as_exact(*found)
