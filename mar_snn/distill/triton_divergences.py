"""`divergences.compare_rows` in Triton: a block takes one token through the vocabulary.

The first pass over a row makes both log-sum-exps and both divergences at once, rescaled
as its maxima grow; mixtures need another pass, because they mix what is normalised; the
last one overwrites the student's row with the gradient. Nothing is read but the row.
"""

from typing import no_type_check

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mar_snn.distill.divergences import Divergence
from mar_snn.distill.heads import LogitTransform

__all__ = ["compare_rows"]

#: words that a block reads at a time: four 16-byte accesses of each thread
_WORDS = 4096
# no fused multiply-add: it would round the two models' equal scores differently, and
# what has to vanish where they agree would not
_LAUNCH = {"num_warps": 8, "enable_fp_fusion": False}


def compare_rows(
    student: Float[Tensor, "rows vocab"],
    teacher: Float[Tensor, "rows vocab"],
    row_weights: Float[Tensor, " rows"] | None,
    divergence: Divergence,
    transforms: tuple[LogitTransform, LogitTransform],
    temperature: float,
) -> Float[Tensor, "3 rows"]:
    """What `divergences.RowKernel` promises."""
    rows, vocab = student.shape
    terms = student.new_empty(3, rows)
    units, heights = zip(*map(_unit_and_height, transforms), strict=True)
    _compare_kernel[(rows,)](
        *(student, teacher, row_weights, terms, vocab),
        *(student.stride(0), teacher.stride(0), terms.stride(0)),
        *divergence,
        *units,
        *(height / temperature for height in heights),
        STUDENT_BENDS=transforms[0].soft_cap is not None,
        TEACHER_BENDS=transforms[1].soft_cap is not None,
        MIXED=divergence.mixed,
        WORDS=min(_WORDS, triton.next_power_of_2(vocab)),
        **_LAUNCH,
    )
    return terms


def _unit_and_height(transform: LogitTransform) -> tuple[float, float]:
    """Logits are height · tanh(unit · z), or height · z where nothing bends."""
    scale, cap = transform.scale, transform.soft_cap
    return (1.0, scale) if cap is None else (scale / cap, cap)


# ---- on the device: z a head's output, V words, M the type of the scores


@triton.jit
@no_type_check
def _tanh(x):
    """The hyperbolic tangent; Triton's own is not there on every device."""
    decay = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - decay) / (1.0 + decay)
    return tl.where(x < 0.0, -size, size)


@triton.jit
@no_type_check
def _bent(z, k, V, unit, BENDS: tl.constexpr):
    """The head's output for the words k, or its tanh where there is a cap."""
    value = tl.load(z + k, k < V, other=0.0)
    if BENDS:
        value = _tanh(value * unit)
    return value


@triton.jit
@no_type_check
def _logits(z, k, V, unit, height, BENDS: tl.constexpr):
    """Logits of the words k; minus infinity, no share of any sum, beyond the last."""
    return tl.where(k < V, _bent(z, k, V, unit, BENDS) * height, float("-inf"))


@triton.jit
@no_type_check
def _log_mixture(gap, share):
    """The log of (c p + (1 - c) q) / q, from log p - log q; 0 < c < 1."""
    of_smaller = tl.where(gap > 0.0, 1.0 - share, share)
    fall = tl.exp(-tl.abs(gap)) - 1.0
    return tl.log(1.0 + of_smaller * fall) + tl.where(gap > 0.0, gap, 0.0)


@triton.jit
@no_type_check
def _compare_kernel(
    student_rows, teacher_rows, row_weights, terms, V,
    student_stride: tl.int64, teacher_stride: tl.int64, term_stride: tl.int64,
    alpha: tl.float64, beta: tl.float64,
    forward_share: tl.float64, reverse_share: tl.float64,
    student_unit: tl.float64, teacher_unit: tl.float64,
    student_height: tl.float64, teacher_height: tl.float64,
    STUDENT_BENDS: tl.constexpr, TEACHER_BENDS: tl.constexpr, MIXED: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    student = student_rows + row * student_stride
    teacher = teacher_rows + row * teacher_stride
    M: tl.constexpr = student_rows.dtype.element_ty
    alpha, beta = tl.full([], alpha, M), tl.full([], beta, M)
    a, b = tl.full([], forward_share, M), tl.full([], reverse_share, M)
    unit_s, unit_t = tl.full([], student_unit, M), tl.full([], teacher_unit, M)
    height_s, height_t = tl.full([], student_height, M), tl.full([], teacher_height, M)

    top_q = tl.full([], float("-inf"), M)
    top_p = tl.full([], float("-inf"), M)
    sum_q = tl.full([], 0.0, M)
    sum_p = tl.full([], 0.0, M)
    # the sums with which log p - log q, without its constant, is averaged
    gap_q = tl.full([], 0.0, M)
    gap_p = tl.full([], 0.0, M)
    for start in range(0, V, WORDS):
        k = start + tl.arange(0, WORDS)
        z_q = _logits(student, k, V, unit_s, height_s, STUDENT_BENDS)
        z_p = _logits(teacher, k, V, unit_t, height_t, TEACHER_BENDS)
        gap = tl.where(k < V, z_p - z_q, 0.0)
        before_q, before_p = top_q, top_p
        top_q = tl.maximum(top_q, tl.max(z_q, 0))
        top_p = tl.maximum(top_p, tl.max(z_p, 0))
        q, p = tl.exp(z_q - top_q), tl.exp(z_p - top_p)
        keep_q, keep_p = tl.exp(before_q - top_q), tl.exp(before_p - top_p)
        sum_q = sum_q * keep_q + tl.sum(q, 0)
        sum_p = sum_p * keep_p + tl.sum(p, 0)
        gap_q = gap_q * keep_q + tl.sum(q * gap, 0)
        gap_p = gap_p * keep_p + tl.sum(p * gap, 0)
    log_sum_q = top_q + tl.log(sum_q)
    log_sum_p = top_p + tl.log(sum_p)
    rise = log_sum_p - log_sum_q
    forward_kl = gap_p / sum_p - rise
    reverse_kl = rise - gap_q / sum_q
    loss = alpha * forward_kl + beta * reverse_kl

    # KL(q‖m') - E_q[u'] and E_p[u] of the slope; without mixtures KL(q‖p) and 0
    level = reverse_kl
    excess_p = tl.full([], 0.0, M)
    if MIXED:
        forward = tl.full([], 0.0, M)
        reverse = tl.full([], 0.0, M)
        excess_q = tl.full([], 0.0, M)
        for start in range(0, V, WORDS):
            k = start + tl.arange(0, WORDS)
            z_q = _logits(student, k, V, unit_s, height_s, STUDENT_BENDS)
            z_p = _logits(teacher, k, V, unit_t, height_t, TEACHER_BENDS)
            log_q, log_p = z_q - log_sum_q, z_p - log_sum_p
            q, p = tl.exp(log_q), tl.exp(log_p)
            gap = tl.where(k < V, log_p - log_q, 0.0)
            above, above_too = _log_mixture(gap, a), _log_mixture(gap, b)
            forward += tl.sum(p * (gap - above), 0)
            reverse -= tl.sum(q * above_too, 0)
            excess_p += tl.sum(p * (tl.exp(-above) - 1.0), 0)
            excess_q += tl.sum(q * (tl.exp(-above_too) - 1.0), 0)
        loss = alpha * forward + beta * reverse
        level = reverse - (1.0 - b) * excess_q
        excess_p *= 1.0 - a
    tl.store(terms + row, loss)
    tl.store(terms + term_stride + row, forward_kl)
    tl.store(terms + 2 * term_stride + row, reverse_kl)

    if row_weights is not None:
        weight = tl.load(row_weights + row) * unit_s * height_s
        for start in range(0, V, WORDS):
            k = start + tl.arange(0, WORDS)
            z_q = _logits(student, k, V, unit_s, height_s, STUDENT_BENDS)
            z_p = _logits(teacher, k, V, unit_t, height_t, TEACHER_BENDS)
            log_q, log_p = z_q - log_sum_q, z_p - log_sum_p
            q, p = tl.exp(log_q), tl.exp(log_p)
            gap = tl.where(k < V, log_p - log_q, 0.0)
            if MIXED:
                above, above_too = _log_mixture(gap, a), _log_mixture(gap, b)
                pull = (1.0 - a) * ((q - p) - p * (tl.exp(-above) - 1.0)) + q * excess_p
                push = -above_too - (1.0 - b) * (tl.exp(-above_too) - 1.0) - level
            else:
                pull, push = q - p, -gap - level
            slope = alpha * pull + beta * q * push
            if STUDENT_BENDS:
                bent = _bent(student, k, V, unit_s, STUDENT_BENDS)
                slope *= 1.0 - bent * bent
            tl.store(student + k, slope * weight, k < V)
