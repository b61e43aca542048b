"""The equations themselves: values by hand, gradients against float64 autograd."""

import math

import pytest
import torch

from mar_snn.distill import bidirectional_kl
from mar_snn.distill.divergences import compare_rows, make_divergence
from mar_snn.distill.heads import LogitTransform

SBDS = {"divergence": "sbds"}
SKEW = {"divergence": "skew", "mixture": 0.3}
JSD = {"divergence": "jsd", "mixture": 0.4}


def mixture_loss(student, teacher, *, alpha, beta, divergence, mixture=None):
    """The definitions of the papers, written with probabilities."""
    q, p = student.softmax(-1), teacher.softmax(-1)
    if divergence == "sbds":
        m, m_too = q, p
    elif divergence == "skew":
        m = mixture * p + (1 - mixture) * q
        m_too = (1 - mixture) * p + mixture * q
    else:
        m = m_too = mixture * p + (1 - mixture) * q
    forward = (p * (p / m).log()).sum(-1)
    reverse = (q * (q / m_too).log()).sum(-1)
    return (alpha * forward + beta * reverse).mean()


def test_the_skewed_divergences_are_worked_by_hand():
    # p = (1/2, 1/2), q = (1/4, 3/4), half and half: m = (3/8, 5/8) for both
    q, p = (torch.tensor([row]).double().log() for row in ([0.25, 0.75], [0.5, 0.5]))
    forward = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    reverse = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    for name in ("skew", "jsd"):
        result = bidirectional_kl(q, p, divergence=name, mixture=0.5)
        assert result.loss.item() == pytest.approx(0.2 * forward + 0.7 * reverse)


def test_skewing_is_small_by_default_and_jsd_symmetric():
    student, teacher = torch.randn(2, 3, 9).double()
    for name, mixture in (("skew", 0.1), ("jsd", 0.5)):
        ours, same = (
            bidirectional_kl(student, teacher, divergence=name, mixture=m).loss
            for m in (None, mixture)
        )
        assert torch.equal(ours, same)


@pytest.mark.parametrize("options", [SBDS, SKEW, JSD])
def test_every_divergence_is_its_papers_and_so_is_the_gradient(options):
    student, teacher = 3 * torch.randn(2, 5, 11).double()
    how = {"alpha": 0.3, "beta": 0.6} | options
    student.requires_grad_()
    ours, papers = (
        function(student, teacher, **how)
        for function in (bidirectional_kl, mixture_loss)
    )
    torch.testing.assert_close(ours.loss, papers, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours.loss, papers)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-14)


def test_both_divergences_are_reported_whatever_the_loss():
    student, teacher = torch.randn(2, 5, 11).double()
    plain = bidirectional_kl(student, teacher)
    for options in (SKEW, JSD):
        result = bidirectional_kl(student, teacher, **options)
        assert torch.equal(result.forward_kl, plain.forward_kl)
        assert torch.equal(result.reverse_kl, plain.reverse_kl)
        assert result.loss != plain.loss


@pytest.mark.parametrize(("options", "shares"), [(SKEW, (0.3, 0.3)), (JSD, (0.4, 0.6))])
def test_mixtures_of_distributions_far_apart_stay_finite(options, shares):
    # each is then the -log of its own share of the mixture; e^400 has no float32
    student = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    result = bidirectional_kl(student, -student.detach(), **options)
    result.loss.backward()
    expected = -0.2 * math.log(shares[0]) - 0.7 * math.log(shares[1])
    assert result.loss.item() == pytest.approx(expected, rel=1e-5)
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("options", [SKEW, JSD])
def test_every_divergence_is_exactly_zero_where_both_agree(options):
    same = (3 * torch.randn(4, 1003)).requires_grad_()
    result = bidirectional_kl(same, same.detach().clone(), **options)
    result.loss.backward()
    assert [term.item() for term in result] == [0.0, 0.0, 0.0]
    assert same.grad.eq(0).all()


@pytest.mark.parametrize("options", [SBDS, SKEW, JSD])
@pytest.mark.parametrize("soft_cap", [None, 5.0])
def test_rows_have_the_gradient_of_what_the_head_puts_out(options, soft_cap):
    student, teacher = 3 * torch.randn(2, 5, 11).double()
    row_weights = torch.rand(5).double()
    transforms = LogitTransform(0.7, soft_cap), LogitTransform(1.3, soft_cap)
    student.requires_grad_()
    loss = [
        mixture_loss(
            transforms[0](student[row]) / 1.7,
            transforms[1](teacher[row]) / 1.7,
            alpha=0.3,
            beta=0.6,
            **options,
        )
        for row in range(5)
    ]
    (expected,) = torch.autograd.grad((torch.stack(loss) * row_weights).sum(), student)
    divergence = make_divergence(
        options["divergence"], options.get("mixture"), alpha=0.3, beta=0.6
    )
    rows = student.detach().clone()
    how = (divergence, transforms, 1.7)
    terms = compare_rows(rows, teacher.clone(), row_weights, *how)
    torch.testing.assert_close(terms[0], torch.stack(loss).detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-13)
    untouched = student.detach().clone()
    without = compare_rows(untouched, teacher.clone(), None, *how)
    assert torch.equal(without, terms)


def test_unknown_divergences_and_mixtures_are_refused():
    logits = torch.zeros(2, 8)
    with pytest.raises(ValueError, match="one of sbds, skew, jsd, got 'kl'"):
        bidirectional_kl(logits, logits, divergence="kl")
    with pytest.raises(ValueError, match=r"no mixture, got 0.1: leave it out"):
        bidirectional_kl(logits, logits, mixture=0.1)
    for mixture in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="mixture must be between zero and one"):
            bidirectional_kl(logits, logits, divergence="jsd", mixture=mixture)
