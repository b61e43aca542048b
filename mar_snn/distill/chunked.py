"""`bidirectional_kl` from hidden states and heads: the logits never exist as a whole.

Tokens are taken a chunk at a time. A chunk's scores are made tile of words by tile of
words, compared where they stand, overwritten by their gradient, and turned at once into
gradients of hidden states and head: four matrix products, as in the dense loss, where
recomputing scores in the backward pass takes six.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mar_snn.distill.divergences import (
    Divergence,
    RowKernel,
    compare_rows,
    make_divergence,
)
from mar_snn.distill.heads import UNCHANGED, LogitTransform, head_parameters
from mar_snn.distill.losses import (
    BidirectionalKL,
    check_temperature,
    common_vocabulary,
    token_weights,
)
from mar_snn.distill.products import add_product, product_dtype, score, tiles
from mar_snn.neurons.backends import available_backends

__all__ = ["chunked_bidirectional_kl"]

#: scores of a chunk where none is asked for; a GPU needs more to be busy
_SCORES, _SCORES_ON_A_GPU = 2**24, 2**27


@torch.compiler.disable
def chunked_bidirectional_kl(
    student_hidden: Float[Tensor, "*tokens student_hidden"],
    student_head: nn.Module | Tensor,
    teacher_hidden: Float[Tensor, "*teacher_tokens teacher_hidden"],
    teacher_head: nn.Module | Tensor,
    labels: Int[Tensor, "*tokens"] | None = None,
    *,
    alpha: float = 0.2,
    beta: float = 0.7,
    temperature: float = 1.0,
    chunk_size: int | None = None,
    num_items: Tensor | float | int | None = None,
    vocab_size: int | None = None,
    divergence: str = "sbds",
    mixture: float | None = None,
    student_transform: LogitTransform = UNCHANGED,
    teacher_transform: LogitTransform = UNCHANGED,
    backend: str = "auto",
) -> BidirectionalKL:
    """What `bidirectional_kl` returns for the logits of two heads.

    The memory beyond hidden states, heads and their gradients does not grow with the
    tokens. Products are summed and kept in float32, also for 16-bit inputs and under
    autocast, or in float64 where the student's hidden states are; gradients are added
    up in the same and rounded once to the dtype of what they belong to. The loss and
    its gradient are exactly 0 where both models agree.

    Args:
        student_hidden: what the student's head gets, behind the last norm.
        student_head: its output projection (`weight` [vocab, hidden] and perhaps
            `bias`), or the weight alone. Parameters sharded by FSDP2 are gathered, and
            their gradients averaged over its mesh.
        teacher_hidden: what the teacher's head gets; it may have another width.
        teacher_head: the teacher's output projection. No gradient flows to the teacher.
        labels: this and all that is not said here is said in `bidirectional_kl`.
        alpha: weight of the forward divergence.
        beta: weight of the reverse divergence.
        temperature: divides both models' logits.
        chunk_size: tokens at a time; None: as many as make 2²⁴ scores on a CPU, 2²⁷ on
            a GPU.
        num_items: what the sums over tokens are divided by.
        vocab_size: words that exist, where heads are padded.
        divergence: "sbds", "skew" or "jsd".
        mixture: λ of "skew", π of "jsd".
        student_transform: what the model does to its head's output; see
            `mar_snn.distill.heads.logit_transform`.
        teacher_transform: the same of the teacher.
        backend: "torch", "triton", or "auto": Triton on a GPU that has it.

    Raises:
        ValueError: where tokens, widths or vocabularies do not fit, or an option is
            out of its range.
        RuntimeError: where `backend` was asked for by name and cannot run.
    """
    check_temperature(temperature)
    student = (student_hidden, *head_parameters(student_head))
    teacher = (teacher_hidden, *head_parameters(teacher_head))
    _check_tokens(student, teacher, labels)
    vocab_size = common_vocabulary(len(student[1]), len(teacher[1]), vocab_size)
    if chunk_size is None:
        scores = _SCORES if student_hidden.device.type == "cpu" else _SCORES_ON_A_GPU
        chunk_size = max(scores // vocab_size, 1)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be one token or more, got {chunk_size}")
    plan = _Plan(
        make_divergence(divergence, mixture, alpha, beta),
        (student_transform, teacher_transform),
        temperature,
        vocab_size,
        chunk_size,
        _row_kernel(backend, student_hidden.device),
        tuple(
            torch.is_grad_enabled() and part is not None and part.requires_grad
            for part in student
        ),
    )
    weights = token_weights(
        student_hidden[..., 0].to(
            torch.promote_types(student_hidden.dtype, torch.float32)
        ),
        None if labels is None else labels != -100,
        num_items,
    )
    return BidirectionalKL(
        *_ChunkedDivergence.apply(
            plan,
            _rows(student_hidden),
            *student[1:],
            _rows(teacher_hidden.detach()),
            *(None if part is None else part.detach() for part in teacher[1:]),
            weights.flatten() * temperature**2,
        )
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    divergence: Divergence
    transforms: tuple[LogitTransform, LogitTransform]
    temperature: float
    vocab_size: int
    chunk_size: int
    compare_rows: RowKernel
    #: whether hidden states, weight and bias of the student want a gradient
    wanted: tuple[bool, ...]


class _ChunkedDivergence(torch.autograd.Function):
    """The three sums over tokens, with gradients made in the forward pass.

    They are held where the backward pass, which comes next in every training step,
    would otherwise make them, so the peak of memory is the same.
    """

    @staticmethod
    def forward(ctx: Any, plan: "_Plan", *tensors: Any) -> tuple[Tensor, ...]:
        sums, ctx.grads = _sweep(plan, *tensors)
        ctx.plan = plan
        ctx.save_for_backward(*tensors)
        loss, forward_kl, reverse_kl = sums.unbind()
        ctx.mark_non_differentiable(forward_kl, reverse_kl)
        return loss, forward_kl, reverse_kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        if grads is None:
            # a second pass through a retained graph: the first one took them
            grads = _sweep(ctx.plan, *ctx.saved_tensors)[1]
        scaled = [
            None if grad is None else grad.mul_(upstream).to(part.dtype)
            for grad, part in zip(grads, ctx.saved_tensors[:3], strict=True)
        ]
        return (None, *scaled, None, None, None, None)


def _sweep(
    plan: _Plan,
    hidden: Float[Tensor, "tokens student_hidden"],
    weight: Float[Tensor, "rows student_hidden"],
    bias: Float[Tensor, " rows"] | None,
    teacher_hidden: Float[Tensor, "tokens teacher_hidden"],
    teacher_weight: Float[Tensor, "teacher_rows teacher_hidden"],
    teacher_bias: Float[Tensor, " teacher_rows"] | None,
    row_weights: Float[Tensor, " tokens"],
) -> tuple[Float[Tensor, "3"], list[Tensor | None]]:
    """The weighted sums over tokens, and the gradients of the first that are wanted."""
    grads = [
        torch.zeros_like(part, dtype=row_weights.dtype)
        if part is not None and wanted
        else None
        for part, wanted in zip((hidden, weight, bias), plan.wanted, strict=True)
    ]
    grad_hidden, grad_weight, grad_bias = grads
    terms = row_weights.new_empty(3, len(hidden))
    height = min(plan.chunk_size, len(hidden))
    buffers = row_weights.new_empty(2, height, plan.vocab_size)
    product, teacher_product = (
        product_dtype(part, row_weights.dtype) for part in (hidden, teacher_hidden)
    )
    no_autocast = torch.autocast(hidden.device.type, enabled=False)
    # Triton launches on the current device
    with no_autocast, torch.cuda.device_of(hidden):
        for start in range(0, len(hidden), plan.chunk_size):
            rows = slice(start, start + plan.chunk_size)
            weights = row_weights[rows]
            # a masked token may hold inf or NaN
            counts = (weights != 0)[:, None]
            inputs = hidden[rows].where(counts, 0.0).to(product)
            teacher_inputs = teacher_hidden[rows].where(counts, 0.0).to(teacher_product)
            scores, teacher_scores = buffers[:, : len(weights)]
            score(inputs, weight, bias, out=scores)
            score(teacher_inputs, teacher_weight, teacher_bias, out=teacher_scores)
            terms[:, rows] = plan.compare_rows(
                scores,
                teacher_scores,
                weights if any(plan.wanted) else None,
                plan.divergence,
                plan.transforms,
                plan.temperature,
            )
            if grad_bias is not None:
                grad_bias[: plan.vocab_size] += scores.sum(0)
            if grad_hidden is None and grad_weight is None:
                continue
            for words in tiles(weight, plan.vocab_size):
                grad = scores[:, words].to(product)
                if grad_hidden is not None:
                    add_product(grad_hidden[rows], grad, weight[words].to(product))
                if grad_weight is not None:
                    add_product(grad_weight[words], grad.T, inputs)
    return (terms * row_weights).sum(-1), grads


def _rows(hidden: Float[Tensor, "*tokens width"]) -> Float[Tensor, "rows width"]:
    return hidden.reshape(-1, hidden.shape[-1])


def _row_kernel(backend: str, device: torch.device) -> RowKernel:
    """The kernel of that name for tensors on `device`."""
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(
            f"backend must be one of 'auto', 'torch', 'triton', got {backend!r}"
        )
    if (backend, device.type) == ("auto", "cpu"):
        return compare_rows
    obstacle = available_backends(device)["triton"]
    if backend == "triton" and obstacle:
        raise RuntimeError(
            f"backend='triton' cannot run here: {obstacle}; use backend='auto'"
        )
    if backend == "torch" or obstacle:
        return compare_rows
    from mar_snn.distill.triton_divergences import compare_rows as fused

    return fused


def _check_tokens(
    student: tuple[Tensor, Tensor, Tensor | None],
    teacher: tuple[Tensor, Tensor, Tensor | None],
    labels: Tensor | None,
) -> None:
    tokens = [tuple(hidden.shape[:-1]) for hidden, *_ in (student, teacher)]
    if labels is not None:
        tokens.append(tuple(labels.shape))
    if len(set(tokens)) > 1:
        raise ValueError(
            "student, teacher and labels must have the same tokens, got "
            + " and ".join(map(str, tokens))
        )
    for name, (hidden, weight, _) in (("student", student), ("teacher", teacher)):
        if weight.shape[1] != hidden.shape[-1]:
            raise ValueError(
                f"the {name}'s head takes vectors of {weight.shape[1]} and its hidden "
                f"states are of {hidden.shape[-1]}: pass what its head gets"
            )
