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

__all__ = [
    "DISTANCES",
    "BidirectionalKL",
    "bidirectional_kl",
    "feature_alignment",
    "feature_distance",
    "mean_over_layers",
]

#: Ways to measure the distance of two features; see `feature_distance`.
DISTANCES = ("rms", "l2", "mse", "relative")


class BidirectionalKL(NamedTuple):
    """The weighted sum and its two divergences, each a mean over tokens in nats."""

    loss: Float[Tensor, ""]
    #: KL(teacher ‖ student)
    forward_kl: Float[Tensor, ""]
    #: KL(student ‖ teacher)
    reverse_kl: Float[Tensor, ""]


def bidirectional_kl(
    student_logits: Float[Tensor, "*tokens vocab"],
    teacher_logits: Float[Tensor, "*tokens teacher_vocab"],
    labels: Int[Tensor, "*tokens"] | None = None,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: float = 1.0,
    num_items: Tensor | float | int | None = None,
) -> BidirectionalKL:
    """α·KL(teacher‖student) + β·KL(student‖teacher), the mean over tokens that count.

    Computed in float32, or float64 where the student's logits are. Gradients flow to
    the student only. It is 0 exactly where both agree.

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

    Raises:
        ValueError: where the shapes differ or the temperature is not positive.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            "student and teacher must score the same tokens and vocabulary, got logits "
            f"of shapes {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above zero, got {temperature}")
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    forward_kl, reverse_kl, _, _ = _Divergences.apply(
        student_logits.to(dtype) / temperature,
        teacher_logits.detach().to(dtype) / temperature,
    )
    mask = None if labels is None else labels != -100
    forward_kl, reverse_kl = (
        _token_mean(divergence, mask, num_items) * temperature**2
        for divergence in (forward_kl, reverse_kl)
    )
    return BidirectionalKL(
        alpha * forward_kl + beta * reverse_kl,
        forward_kl.detach(),
        reverse_kl.detach(),
    )


class _Divergences(torch.autograd.Function):
    """KL(p‖q) and KL(q‖p) of each token, with their gradient to the student's logits.

        ∂KL(p‖q)/∂z = q - p        ∂KL(q‖p)/∂z = q (log q - log p - KL(q‖p))

    It is exactly 0 where both agree: the rounding that a chain of operations leaves
    would be blown up to full steps by an optimiser that divides by the gradient's size.
    """

    @staticmethod
    def forward(
        student_logits: Tensor, teacher_logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_q = student_logits.log_softmax(-1)
        log_p = teacher_logits.log_softmax(-1)
        gap = log_p - log_q
        forward_kl = (log_p.exp() * gap).sum(-1)
        reverse_kl = -(log_q.exp() * gap).sum(-1)
        return forward_kl, reverse_kl, log_p, log_q

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Tensor],  # noqa: ARG004  the name is PyTorch's
        output: tuple[Tensor, ...],
    ) -> None:
        _, reverse_kl, log_p, log_q = output
        ctx.mark_non_differentiable(log_p, log_q)
        ctx.save_for_backward(reverse_kl, log_p, log_q)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_forward: Tensor, grad_reverse: Tensor, *_: Tensor
    ) -> tuple[Tensor, None]:
        reverse_kl, log_p, log_q = ctx.saved_tensors
        q = log_q.exp()
        gap = log_q - log_p
        grad = (gap - reverse_kl[..., None]).mul_(q).mul_(grad_reverse[..., None])
        return grad.addcmul_(q.sub_(log_p.exp()), grad_forward[..., None]), None


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
        return (difference * (grad * slope)[..., None]).to(student.dtype), None, None


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


def _token_mean(
    values: Float[Tensor, "*tokens"],
    mask: Bool[Tensor, "*tokens"] | None,
    num_items: Tensor | float | int | None,
) -> Float[Tensor, ""]:
    """The sum over the tokens that count, divided by their number or `num_items`."""
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    # where, not a product: a masked token may hold inf or NaN
    total = values.where(mask, 0.0).sum()
    if num_items is None:
        num_items = mask.sum().clamp(min=1)
    return total / num_items
