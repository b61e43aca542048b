"""The losses of SBDS (MAR, arXiv 2601.21503): pure functions of logits and features.

With p the teacher and q the student,

    L1 = α KL(p‖q) + β KL(q‖p) = Σ_k [α p(k) - β q(k)] [log p(k) - log q(k)]
    L2 = ‖h_teacher - h_student‖                          per token and layer
    L  = mean over tokens of L1 + mean over tokens and layers of L2
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from mar_snn.distill.divergences import (
    DIVERGENCES,
    Divergence,
    compare,
    make_divergence,
)

__all__ = [
    "DISTANCES",
    "DIVERGENCES",
    "BidirectionalKL",
    "bidirectional_kl",
    "check_temperature",
    "common_vocabulary",
    "feature_alignment",
    "feature_distance",
    "mean_over_layers",
    "token_weights",
]

#: Ways to measure the distance of two features; see `feature_distance`.
DISTANCES = ("rms", "l2", "mse", "relative")


class BidirectionalKL(NamedTuple):
    """The loss and both divergences, means over tokens; the latter in nats."""

    loss: Float[Tensor, ""]
    #: KL(teacher ‖ student)
    forward_kl: Float[Tensor, ""]
    #: KL(student ‖ teacher)
    reverse_kl: Float[Tensor, ""]


def bidirectional_kl(
    student_logits: Float[Tensor, "*tokens vocab"],
    teacher_logits: Float[Tensor, "*teacher_tokens teacher_vocab"],
    labels: Int[Tensor, "*tokens"] | None = None,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: float = 1.0,
    num_items: Tensor | float | int | None = None,
    vocab_size: int | None = None,
    divergence: str = "sbds",
    mixture: float | None = None,
) -> BidirectionalKL:
    """α·KL(teacher‖student) + β·KL(student‖teacher), the mean over tokens that count.

    Computed in float32, or float64 where the student's logits are. Gradients flow to
    the student only. It is 0 exactly where both agree. `chunked_bidirectional_kl` is
    the same without logits.

    Args:
        student_logits: the student's scores.
        teacher_logits: the teacher's scores.
        labels: already shifted, so that labels[t] is what logits[t] predict; tokens
            labelled -100 do not count. None: all tokens count.
        alpha: weight of the forward divergence.
        beta: weight of the reverse divergence.
        temperature: both scores are divided by it; the divergences are multiplied by
            its square, so that gradients keep their size (Hinton et al.,
            arXiv 1503.02531).
        num_items: what the sums over tokens are divided by; None: the number of tokens
            that count. A trainer passes the count of the whole accumulated batch.
        vocab_size: words that exist; scores beyond are padding and do not count. None:
            all, and both models must have the same number.
        divergence: "sbds", the two divergences above; "skew" (DistiLLM,
            arXiv 2402.03898), α·KL(p‖λp+(1-λ)q) + β·KL(q‖(1-λ)p+λq); "jsd" (GKD,
            arXiv 2306.13649), α·KL(p‖m) + β·KL(q‖m) with m = πp+(1-π)q, which is the
            generalised Jensen-Shannon divergence for alpha = π and beta = 1-π; here p
            is the teacher and q the student.
        mixture: λ of "skew" (None: 0.1), π of "jsd" (None: 0.5).

    Raises:
        ValueError: where the shapes differ or an option is out of its range.
    """
    if student_logits.shape[:-1] != teacher_logits.shape[:-1]:
        raise ValueError(
            "student and teacher must score the same tokens, got logits of shapes "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    check_temperature(temperature)
    words = slice(
        common_vocabulary(
            student_logits.shape[-1], teacher_logits.shape[-1], vocab_size
        )
    )
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    terms = _Divergences.apply(
        student_logits[..., words].to(dtype) / temperature,
        teacher_logits.detach()[..., words].to(dtype) / temperature,
        make_divergence(divergence, mixture, alpha, beta),
    )
    mask = None if labels is None else labels != -100
    return BidirectionalKL(
        *(_token_mean(term, mask, num_items) * temperature**2 for term in terms)
    )


class _Divergences(torch.autograd.Function):
    """Loss, KL(p‖q) and KL(q‖p) of each token, with the loss's analytic gradient."""

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_logits: Tensor, divergence: Divergence
    ) -> tuple[Tensor, ...]:
        terms, slope = compare(
            student_logits.log_softmax(-1),
            teacher_logits.log_softmax(-1),
            divergence,
            slope=ctx.needs_input_grad[0],
        )
        ctx.save_for_backward(slope)
        loss, forward_kl, reverse_kl = terms.unbind()
        ctx.mark_non_differentiable(forward_kl, reverse_kl)
        return loss, forward_kl, reverse_kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        upstream = upstream[..., None]
        # a masked token may hold inf or NaN
        return (slope * upstream).where(upstream != 0, 0.0), None, None


def feature_alignment(
    student_features: Sequence[Float[Tensor, "*tokens _"]],
    teacher_features: Sequence[Float[Tensor, "*tokens _"]],
    mask: Bool[Tensor, "*tokens"] | None = None,
    *,
    distance: str = "rms",
    num_items: Tensor | float | int | None = None,
) -> Float[Tensor, ""]:
    """The distance of features, the mean over layers and the tokens that count.

    Args:
        student_features: one tensor a layer.
        teacher_features: the same layers of the teacher; no gradient flows to them.
        mask: True on tokens that count; None: all.
        distance: as for `feature_distance`.
        num_items: what the sums over tokens are divided by; None: the number of tokens
            that count.

    Raises:
        ValueError: where the layers or widths differ, or for an unknown distance.
    """
    shapes = [
        [tuple(f.shape) for f in fs] for fs in (student_features, teacher_features)
    ]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            "student and teacher must give features of the same layers and widths, got "
            f"shapes {shapes[0]} and {shapes[1]}"
        )
    distances = [
        feature_distance(student, teacher, distance)
        for student, teacher in zip(student_features, teacher_features, strict=True)
    ]
    return mean_over_layers(distances, mask, num_items)


def feature_distance(
    student: Float[Tensor, "*tokens width"],
    teacher: Float[Tensor, "*tokens width"],
    distance: str = "rms",
) -> Float[Tensor, "*tokens"]:
    """The distance of each token's features, in float32 or float64.

    Backward needs the features alone, which the student's pass keeps anyway, and no
    gradient flows to the teacher's. Where both agree the gradient is zero.

    Args:
        student: features of the student.
        teacher: those of the teacher.
        distance: "l2", the paper's norm of the difference, which grows with the root
            of the width D; "rms", that norm divided by √D, so that its weight need not
            follow the width; "mse", the squared "rms"; "relative", the norm divided by
            the teacher's, so that its weight need not follow the features' scale.

    Raises:
        ValueError: for an unknown distance.
    """
    if distance not in DISTANCES:
        raise ValueError(
            f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}"
        )
    return _Distance.apply(student, teacher.detach(), distance)[0]


class _Distance(torch.autograd.Function):
    """A distance f(‖s - t‖) of each token, with the gradient (s - t) f'/‖s - t‖.

    A chain of operations would save the difference, one more tensor a layer.
    """

    @staticmethod
    def forward(
        student: Tensor, teacher: Tensor, distance: str
    ) -> tuple[Tensor, Tensor]:
        wide = _wide(teacher, student)
        size = vector_norm(_wide(student, student) - wide, dim=-1)
        width = student.shape[-1]
        if distance == "mse":
            return size.square() / width, torch.full_like(size, 2 / width)
        if distance == "relative":
            scale = vector_norm(wide, dim=-1).clamp(min=torch.finfo(wide.dtype).tiny)
        else:
            scale = torch.full_like(size, width**0.5 if distance == "rms" else 1.0)
        slope = (1 / (size * scale)).where(size > 0, 0.0)
        return size / scale, slope

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, str], output: tuple[Tensor, Tensor]
    ) -> None:
        student, teacher, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(student, teacher, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, slope = ctx.saved_tensors
        difference = _wide(student, student) - _wide(teacher, student)
        weight = (grad * slope)[..., None]
        # a masked token may hold inf or NaN
        grad_student = (difference * weight).where(weight != 0, 0.0)
        return grad_student.to(student.dtype), None, None


def _wide(features: Tensor, student: Tensor) -> Tensor:
    """`features` in float32, or float64 where the student's are."""
    return features.to(torch.promote_types(student.dtype, torch.float32))


def mean_over_layers(
    values: Sequence[Float[Tensor, "*tokens"]],
    mask: Bool[Tensor, "*tokens"] | None = None,
    num_items: Tensor | float | int | None = None,
) -> Float[Tensor, ""]:
    """The mean over layers and tokens that count of one value for each of them."""
    total = sum(_token_mean(value, mask, num_items) for value in values)
    return torch.as_tensor(total) / len(values)


def check_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above zero."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above zero, got {temperature}")


def common_vocabulary(student: int, teacher: int, vocab_size: int | None) -> int:
    """How many words both models score, padding left out.

    Raises:
        ValueError: where they score different numbers, or fewer than `vocab_size`.
    """
    if vocab_size is None and student == teacher:
        return student
    if vocab_size is None:
        raise ValueError(
            f"the student scores {student} words and the teacher {teacher}: where the "
            "difference is padding behind the same vocabulary, pass vocab_size=, the "
            "number of words that exist, or else use a teacher of the same tokenizer"
        )
    if not 0 < vocab_size <= min(student, teacher):
        raise ValueError(
            f"vocab_size must be the number of words that both models score, got "
            f"{vocab_size} where the student scores {student} and the teacher {teacher}"
        )
    return vocab_size


def token_weights(
    like: Float[Tensor, "*tokens"],
    mask: Bool[Tensor, "*tokens"] | None,
    num_items: Tensor | float | int | None,
) -> Float[Tensor, "*tokens"]:
    """What each token weighs in a mean over those that count; 0 where it does not."""
    if mask is None:
        mask = torch.ones_like(like, dtype=torch.bool)
    if num_items is None:
        num_items = mask.sum().clamp(min=1)
    return mask.to(like.dtype) / num_items


def _token_mean(
    values: Float[Tensor, "*tokens"],
    mask: Bool[Tensor, "*tokens"] | None,
    num_items: Tensor | float | int | None,
) -> Float[Tensor, ""]:
    """The sum over the tokens that count, divided by their number or `num_items`."""
    weights = token_weights(values, mask, num_items)
    # where, not a product alone: a masked token may hold inf or NaN
    return (values.where(weights != 0, 0.0) * weights).sum()
