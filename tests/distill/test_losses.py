import math

import pytest
import torch

from mar_snn.distill import bidirectional_kl, feature_alignment
from tests.bounds import assert_sums


def logits(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


# p = (1/2, 1/2), q = (1/4, 3/4)
FORWARD = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
REVERSE = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)


@pytest.mark.usefixtures("float64")
def test_both_divergences_are_worked_by_hand():
    result = bidirectional_kl(logits(0.25, 0.75), logits(0.5, 0.5), alpha=0.2, beta=0.7)
    assert result.forward_kl.item() == pytest.approx(FORWARD)
    assert result.reverse_kl.item() == pytest.approx(REVERSE)
    assert result.loss.item() == pytest.approx(0.2 * FORWARD + 0.7 * REVERSE)


def test_the_loss_is_the_papers_sum():
    student, teacher = torch.randn(2, 5, 7, 11).double()
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = ((0.3 * p - 0.6 * q) * (p.log() - q.log())).sum(-1).mean()
    result = bidirectional_kl(student, teacher, alpha=0.3, beta=0.6)
    torch.testing.assert_close(result.loss, expected)


def test_the_gradient_is_the_analytic_one_and_only_the_student_has_it():
    student = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    bidirectional_kl(student, teacher, alpha=0.2, beta=0.7).loss.backward()
    p, q = teacher.detach().softmax(-1), student.detach().softmax(-1)
    gap = (q / p).log()
    reverse = (q * gap).sum(-1, keepdim=True)
    expected = (0.2 * (q - p) + 0.7 * q * (gap - reverse)) / 6
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-12)
    assert teacher.grad is None


def test_the_gradient_agrees_with_finite_differences():
    student, teacher = torch.randn(2, 3, 7).double()
    labels = torch.tensor([1, -100, 2])

    def loss(logits):
        return bidirectional_kl(logits, teacher, labels, temperature=1.7).loss

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def test_the_loss_is_exactly_zero_where_the_student_is_the_teacher():
    same = torch.randn(4, 9, 1000, requires_grad=True)
    result = bidirectional_kl(same, same.detach().clone())
    assert [term.item() for term in result] == [0.0, 0.0, 0.0]
    result.loss.backward()
    assert same.grad.eq(0).all()


@pytest.mark.usefixtures("float64")
def test_tokens_labelled_minus_100_do_not_count_whatever_they_hold():
    student, teacher = torch.randn(2, 3, 5, 8)
    labels = torch.zeros(3, 5, dtype=torch.long)
    labels[0, 2:] = -100
    labels[2] = -100
    expected = bidirectional_kl(student[labels == 0], teacher[labels == 0])
    student[2], teacher[2, 0] = torch.nan, torch.inf
    result = bidirectional_kl(student.requires_grad_(), teacher, labels)
    torch.testing.assert_close(result.loss, expected.loss)
    result.loss.backward()
    assert student.grad[labels == 0].any(-1).all()
    assert student.grad[labels != 0].eq(0).all()


def test_nothing_to_learn_from_is_a_loss_of_zero():
    student = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.full((2, 3), -100)
    result = bidirectional_kl(student, torch.randn(2, 3, 5), labels)
    result.loss.backward()
    assert result.loss == 0
    assert student.grad.eq(0).all()


@pytest.mark.usefixtures("float64")
def test_a_trainer_divides_by_the_tokens_of_the_whole_batch():
    student, teacher = torch.randn(2, 10, 8)
    whole = bidirectional_kl(student, teacher).loss
    parts = [
        bidirectional_kl(student[s], teacher[s], num_items=10).loss
        for s in (slice(0, 3), slice(3, 10))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_the_temperature_softens_both_and_keeps_the_size_of_the_gradient():
    student, teacher = torch.randn(2, 4, 8).double()
    result = bidirectional_kl(student, teacher, temperature=2.0)
    softened = bidirectional_kl(student / 2, teacher / 2)
    torch.testing.assert_close(result.loss, 4 * softened.loss)
    assert result.loss != bidirectional_kl(student, teacher).loss


def test_sixteen_bit_logits_are_compared_in_float32():
    student, teacher = torch.randn(2, 4, 100).bfloat16()
    result = bidirectional_kl(student, teacher).loss
    exact = bidirectional_kl(student.double(), teacher.double()).loss
    assert result.dtype == torch.float32
    # a term is a probability times the difference of two of these
    size = max(z.double().log_softmax(-1).abs().max() for z in (student, teacher))
    assert_sums(result, exact, 2 * size, 100)


def test_padding_behind_the_vocabulary_does_not_count():
    student, teacher = torch.randn(2, 4, 8)
    expected = bidirectional_kl(student[:, :7], teacher[:, :7])
    student[:, 7] = 100.0
    assert bidirectional_kl(student, teacher[:, :7], vocab_size=7) == expected


def test_different_vocabularies_are_refused_with_the_way_out():
    eight, nine = torch.zeros(2, 8), torch.zeros(2, 9)
    with pytest.raises(ValueError, match=r"8 words and the teacher 9: .* vocab_size="):
        bidirectional_kl(eight, nine)
    for size in (0, 9):
        with pytest.raises(ValueError, match=f"got {size} where the student scores 8"):
            bidirectional_kl(eight, nine, vocab_size=size)


def test_different_tokens_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(2, 8\) and \(3, 8\)"):
        bidirectional_kl(torch.zeros(2, 8), torch.zeros(3, 8))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_of_zero_or_less_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above zero"):
        bidirectional_kl(torch.zeros(2, 8), torch.zeros(2, 8), temperature=temperature)


# layer one differs by (3, 4, 0, 0) and nothing, layer two by (0, 2, 0, 0) twice
STUDENT = [torch.tensor([[3.0, 4, 0, 0], [1, 1, 1, 1]]), torch.ones(2, 4)]
TEACHER = [
    torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]]),
    torch.tensor([[1.0, -1, 1, 1], [1, 3, 1, 1]]),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        ("l2", ((5 + 0) / 2 + (2 + 2) / 2) / 2),
        ("rms", ((2.5 + 0) / 2 + (1 + 1) / 2) / 2),
        ("mse", ((6.25 + 0) / 2 + (1 + 1) / 2) / 2),
    ],
)
def test_every_distance_of_features_is_worked_by_hand(distance, expected):
    result = feature_alignment(STUDENT, TEACHER, distance=distance)
    assert result.item() == pytest.approx(expected)


@pytest.mark.usefixtures("float64")
def test_masked_tokens_have_no_features():
    mask = torch.tensor([True, False])
    result = feature_alignment(STUDENT, TEACHER, mask, distance="l2")
    assert result.item() == pytest.approx((5 + 2) / 2)
    shared = feature_alignment(STUDENT, TEACHER, mask, distance="l2", num_items=4)
    assert shared.item() == pytest.approx((5 + 2) / 4 / 2)


@pytest.mark.parametrize("distance", ["l2", "rms", "mse"])
def test_equal_features_have_distance_and_gradient_zero(distance):
    same = torch.randn(3, 4, requires_grad=True)
    result = feature_alignment([same], [same.detach()], distance=distance)
    result.backward()
    assert result == 0
    assert same.grad.eq(0).all()


@pytest.mark.usefixtures("float64")
def test_the_gradient_of_the_distance_points_from_teacher_to_student():
    student = torch.tensor([[3.0, 4.0]], requires_grad=True)
    teacher = torch.zeros(1, 2, requires_grad=True)
    feature_alignment([student], [teacher], distance="l2").backward()
    torch.testing.assert_close(student.grad, torch.tensor([[0.6, 0.8]]))
    assert teacher.grad is None


@pytest.mark.parametrize("wrong", [[], [torch.zeros(2, 3)], [torch.zeros(2, 4)] * 3])
def test_other_layers_or_widths_are_refused(wrong):
    with pytest.raises(ValueError, match="the same layers and widths"):
        feature_alignment(wrong, TEACHER)
    with pytest.raises(ValueError, match="one of rms, l2, mse, relative, got 'cosine'"):
        feature_alignment(STUDENT, TEACHER, distance="cosine")
